//! Label and field selectors: `app in (a,b),tier!=x` and `spec.nodeName=n1`.

use std::collections::BTreeSet;

/// A label selector. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    In(BTreeSet<String>),
    /// Also true when the label is missing.
    NotIn(BTreeSet<String>),
    Above(i64),
    Below(i64),
}

/// A field selector. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

/// A selector that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Label(String),
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Field { selector: String, term: String },
    #[error("field label not supported: {0}")]
    UnknownField(String),
}

impl LabelSelector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let tokens = tokens(text);
        let mut rest = tokens.as_slice();
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (requirement, after) = requirement(rest)?;
            all.push(requirement);
            rest = match after {
                [] => after,
                [Token::Symbol(","), tail @ ..] if !tail.is_empty() => tail,
                [token, ..] => return Err(unexpected(token, "',' or the end")),
            };
        }
        Ok(LabelSelector(all))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, labels: &[(String, String)]) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels
                .iter()
                .find(|(k, _)| *k == requirement.key)
                .map(|(_, v)| v.as_str());
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::In(values) => value.is_some_and(|v| values.contains(v)),
                Test::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Test::Above(bound) => value
                    .and_then(|v| v.parse::<i64>().ok())
                    .is_some_and(|v| v > *bound),
                Test::Below(bound) => value
                    .and_then(|v| v.parse::<i64>().ok())
                    .is_some_and(|v| v < *bound),
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'a str),
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '=' if rest.starts_with("==") => 2,
            '!' if rest.starts_with("!=") => 2,
            '=' | '!' | '(' | ')' | ',' | '<' | '>' => 1,
            _ => rest
                .find(|c: char| "=!(),<>".contains(c) || c.is_whitespace())
                .unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(length);
        found.push(if "=!(),<>".contains(first) {
            Token::Symbol(token)
        } else {
            Token::Word(token)
        });
        rest = after.trim_start();
    }
    found
}

fn requirement<'t, 'a>(
    tokens: &'t [Token<'a>],
) -> Result<(Requirement, &'t [Token<'a>]), SelectorError> {
    let done = |key: &str, test, rest| {
        Ok((
            Requirement {
                key: key.to_owned(),
                test,
            },
            rest,
        ))
    };
    match tokens {
        [Token::Symbol("!"), Token::Word(key), rest @ ..] => {
            done(valid_key(key)?, Test::Missing, rest)
        }
        [Token::Word(key), rest @ ..] => {
            let key = valid_key(key)?;
            match rest {
                [] | [Token::Symbol(","), ..] => done(key, Test::Exists, rest),
                [Token::Symbol("=" | "=="), rest @ ..] => {
                    let (value, rest) = optional_word(rest);
                    done(
                        key,
                        Test::In(BTreeSet::from([valid_value(key, value)?])),
                        rest,
                    )
                }
                [Token::Symbol("!="), rest @ ..] => {
                    let (value, rest) = optional_word(rest);
                    done(
                        key,
                        Test::NotIn(BTreeSet::from([valid_value(key, value)?])),
                        rest,
                    )
                }
                [Token::Word("in"), rest @ ..] => {
                    let (values, rest) = set(key, rest)?;
                    done(key, Test::In(values), rest)
                }
                [Token::Word("notin"), rest @ ..] => {
                    let (values, rest) = set(key, rest)?;
                    done(key, Test::NotIn(values), rest)
                }
                [
                    Token::Symbol(sign @ (">" | "<")),
                    Token::Word(bound),
                    rest @ ..,
                ] => {
                    let bound = bound.parse().map_err(|_| {
                        SelectorError::Label(format!(
                            "'{bound}': for 'Gt', 'Lt' operators, the value must be an integer"
                        ))
                    })?;
                    done(
                        key,
                        if *sign == ">" {
                            Test::Above(bound)
                        } else {
                            Test::Below(bound)
                        },
                        rest,
                    )
                }
                [token, ..] => Err(unexpected(token, "in, notin, =, ==, !=, gt, lt")),
            }
        }
        [token, ..] => Err(unexpected(token, "!, identifier, or 'end of string'")),
        [] => Err(SelectorError::Label(
            "found the end, expected: identifier".to_owned(),
        )),
    }
}

/// `a=` selects the empty value.
fn optional_word<'t, 'a>(tokens: &'t [Token<'a>]) -> (&'a str, &'t [Token<'a>]) {
    match tokens {
        [Token::Word(word), rest @ ..] => (word, rest),
        rest => ("", rest),
    }
}

/// `(a, b)`; an omitted value is the empty one.
fn set<'t, 'a>(
    key: &str,
    tokens: &'t [Token<'a>],
) -> Result<(BTreeSet<String>, &'t [Token<'a>]), SelectorError> {
    let [Token::Symbol("("), rest @ ..] = tokens else {
        return Err(SelectorError::Label(
            "expected: '(' after in or notin".to_owned(),
        ));
    };
    let mut rest = rest;
    let mut values = BTreeSet::new();
    loop {
        let (value, after) = optional_word(rest);
        values.insert(valid_value(key, value)?);
        match after {
            [Token::Symbol(","), tail @ ..] => rest = tail,
            [Token::Symbol(")"), tail @ ..] => return Ok((values, tail)),
            [token, ..] => return Err(unexpected(token, "',' or ')'")),
            [] => {
                return Err(SelectorError::Label(
                    "found the end, expected: ',' or ')'".to_owned(),
                ));
            }
        }
    }
}

fn unexpected(token: &Token<'_>, wanted: &str) -> SelectorError {
    let (Token::Word(text) | Token::Symbol(text)) = token;
    SelectorError::Label(format!("found '{text}', expected: {wanted}"))
}

fn valid_key(key: &str) -> Result<&str, SelectorError> {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(p, n)| (Some(p), n));
    let prefix_ok = prefix.is_none_or(|p| {
        !p.is_empty()
            && p.len() <= 253
            && p.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
    });
    if prefix_ok && !name.is_empty() && label_shaped(name) {
        return Ok(key);
    }
    Err(SelectorError::Label(format!(
        "<nil>: Invalid value: \"{key}\": not a label key"
    )))
}

fn valid_value(key: &str, value: &str) -> Result<String, SelectorError> {
    if label_shaped(value) {
        return Ok(value.to_owned());
    }
    Err(SelectorError::Label(format!(
        "values[0][{key}]: Invalid value: \"{value}\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
    )))
}

fn label_shaped(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && text.bytes().all(inner)
        && ends.iter().flatten().all(u8::is_ascii_alphanumeric)
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text, ',')
            .into_iter()
            .filter(|t| !t.is_empty())
        {
            let broken = || SelectorError::Field {
                selector: text.to_owned(),
                term: term.to_owned(),
            };
            let at = term.find('=').ok_or_else(broken)?;
            let (path, equal) = match term[..at].strip_suffix('!') {
                Some(path) => (path, false),
                None => (&term[..at], true),
            };
            let value = &term[at + 1..];
            let value = if equal {
                value.strip_prefix('=').unwrap_or(value)
            } else {
                value
            };
            terms.push(FieldTerm {
                path: path.to_owned(),
                value: unescape(value).ok_or_else(broken)?,
                equal,
            });
        }
        Ok(FieldSelector(terms))
    }

    /// The same, and this field must have this value.
    pub fn and(mut self, path: &str, value: &str) -> Self {
        self.0.push(FieldTerm {
            path: path.to_owned(),
            value: value.to_owned(),
            equal: true,
        });
        self
    }

    /// Refuses paths that the kind does not offer.
    pub fn check(&self, known: &[&str]) -> Result<(), SelectorError> {
        match self.0.iter().find(|t| !known.contains(&t.path.as_str())) {
            Some(term) => Err(SelectorError::UnknownField(term.path.clone())),
            None => Ok(()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a field must equal, if the selector says so.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|t| t.equal && t.path == path)
            .map(|t| t.value.as_str())
    }

    pub fn matches(&self, fields: &[(&'static str, String)]) -> bool {
        self.0.iter().all(|term| {
            let value = fields
                .iter()
                .find(|(path, _)| *path == term.path)
                .map_or("", |(_, v)| v.as_str());
            (value == term.value) == term.equal
        })
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        if !escaped && c == separator {
            parts.push(&text[start..at]);
            start = at + c.len_utf8();
        }
        escaped = !escaped && c == '\\';
    }
    parts.push(&text[start..]);
    parts
}

/// `\\`, `\,` and `\=` are the characters themselves; no other escape exists.
fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            '=' => return None,
            c => plain.push(c),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Vec<_> = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        LabelSelector::parse(selector)
            .expect(selector)
            .matches(&labels)
    }

    #[test]
    fn label_selectors_select_as_documented() {
        let web = [("app", "web"), ("tier", "front"), ("weight", "7")];
        for selector in [
            "",
            "app",
            "app=web",
            "app==web",
            "app!=db",
            "missing!=x",
            "!missing",
            "app in (web,db)",
            "app in (web)",
            "app notin (db)",
            "missing notin (a)",
            "app=web,tier in (front, back),!x",
            "weight>6",
            "weight<8",
            " app = web , tier ",
        ] {
            assert!(selects(selector, &web), "{selector}");
        }
        for selector in [
            "app=db",
            "!app",
            "missing",
            "app notin (web,db)",
            "app in (db)",
            "weight>7",
            "app>1",
            "app=",
        ] {
            assert!(!selects(selector, &web), "{selector}");
        }
        assert!(selects("app=", &[("app", "")]));
        assert!(selects("app in (,a)", &[("app", "")]));
    }

    #[test]
    fn label_selectors_that_make_no_sense_are_refused() {
        for selector in [
            ",", "a,", "a b", "a in", "a in (b", "a in b", "a=b=c", "=b", "!", "a>b", "a/b/c",
            "-a", "a=b!", "/a",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn field_selectors_compare_and_unescape() {
        let fields = [
            ("metadata.name", "a,b".to_owned()),
            ("spec.nodeName", String::new()),
        ];
        let on = |text: &str| FieldSelector::parse(text).expect(text).matches(&fields);
        assert!(on("metadata.name=a\\,b"));
        assert!(on("spec.nodeName="));
        assert!(on("metadata.name!=x,spec.nodeName=="));
        assert!(!on("spec.nodeName!="));
        assert!(FieldSelector::parse("metadata.name").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
        let selector = FieldSelector::parse("spec.foo=x").expect("a selector");
        assert_eq!(
            selector.check(&["metadata.name"]),
            Err(SelectorError::UnknownField("spec.foo".into()))
        );
        assert_eq!(selector.required("spec.foo"), Some("x"));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn in_and_notin_are_opposites(value in "[a-c]", set in proptest::collection::vec("[a-c]", 1..3)) {
            let labels = [("k", value.as_str())];
            let list = set.join(",");
            prop_assert_ne!(selects(&format!("k in ({list})"), &labels), selects(&format!("k notin ({list})"), &labels));
        }
    }
}
