//! Names: what DNS and Kubernetes allow, and the sentences that say what they do not.

const MAX_LABEL: usize = 63;
const MAX_SUBDOMAIN: usize = 253;

fn regex_note(message: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<_> = examples
        .iter()
        .map(|example| format!("'{example}'"))
        .collect();
    match examples.is_empty() {
        true => format!("{message} (regex used for validation is '{regex}')"),
        false => format!(
            "{message} (e.g. {}, regex used for validation is '{regex}')",
            examples.join(",  or ")
        ),
    }
}

pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_dns1123_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if lower_or_digit(first) && lower_or_digit(last))
        && bytes
            .iter()
            .all(|&byte| lower_or_digit(byte) || byte == b'-')
}

/// The text that stands in for a prefix: what is generated after it makes a trailing dash fine.
fn complete(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(head) if prefix && !head.is_empty() => format!("{head}a"),
        _ => name.to_owned(),
    }
}

/// Lower-case letters, digits and dashes, at most 63.
pub fn dns1123_label(name: &str, prefix: bool) -> Vec<String> {
    let name = complete(name, prefix);
    let mut errors = Vec::new();
    if name.len() > MAX_LABEL {
        errors.push(too_long(MAX_LABEL));
    }
    if !is_dns1123_label(&name) {
        errors.push(if is_dns1123_subdomain(&name) {
            "must not contain dots".to_owned()
        } else {
            regex_note(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

fn is_dns1123_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns1123_label)
}

/// Labels joined by dots, at most 253.
pub fn dns1123_subdomain(name: &str, prefix: bool) -> Vec<String> {
    let name = complete(name, prefix);
    let mut errors = Vec::new();
    if name.len() > MAX_SUBDOMAIN {
        errors.push(too_long(MAX_SUBDOMAIN));
    }
    if !is_dns1123_subdomain(&name) {
        errors.push(regex_note(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    errors
}

/// `*.` and labels joined by dots.
pub fn wildcard_subdomain(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > MAX_SUBDOMAIN {
        errors.push(too_long(MAX_SUBDOMAIN));
    }
    if !name.strip_prefix("*.").is_some_and(is_dns1123_subdomain) {
        errors.push(regex_note(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        ));
    }
    errors
}

/// As `dns1123_label`, and beginning with a letter: what a Service may be called.
pub fn dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    let name = complete(name, prefix);
    let mut errors = Vec::new();
    if name.len() > MAX_LABEL {
        errors.push(too_long(MAX_LABEL));
    }
    if !(is_dns1123_label(&name) && name.starts_with(|first: char| first.is_ascii_lowercase())) {
        errors.push(regex_note(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// Anything that fits into one segment of a URL path.
pub fn path_segment(name: &str, _prefix: bool) -> Vec<String> {
    let mut errors = Vec::new();
    if name == "." || name == ".." {
        errors.push(format!("may not be '{name}'"));
    }
    errors.extend(
        ['/', '%']
            .into_iter()
            .filter(|&bad| name.contains(bad))
            .map(|bad| format!("may not contain '{bad}'")),
    );
    errors
}

/// The name of a container's port: a short word with at least one letter.
pub fn port_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 15 {
        errors.push(too_long(15));
    }
    if !name
        .bytes()
        .all(|byte| lower_or_digit(byte) || byte == b'-')
    {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// What may stand in the path of a URL.
pub fn http_path(path: &str) -> Vec<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    match !path.is_empty() && path.bytes().all(fits) {
        true => Vec::new(),
        false => vec![regex_note(
            "Invalid path",
            r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+",
            &[],
        )],
    }
}

/// The reason of a condition: one word, or several joined by commas or colons.
pub fn condition_reason(reason: &str) -> Vec<String> {
    let bytes = reason.as_bytes();
    let fits = matches!((bytes.first(), bytes.last()), (Some(first), Some(last))
        if first.is_ascii_alphabetic() && (last.is_ascii_alphanumeric() || *last == b'_'))
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_,:".contains(byte));
    if fits {
        return Vec::new();
    }
    vec![regex_note(
        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
        &[
            "my_name",
            "MY_NAME",
            "MyName",
            "ReasonA,ReasonB",
            "ReasonA:ReasonB",
        ],
    )]
}

fn word(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// `app` or `example.com/app`: the keys of labels, annotations, taints and resources.
pub fn qualified(name: &str) -> Vec<String> {
    const WORD: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    const WORD_NOTE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const WORDS: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = name.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let base = match (second, third) {
        (None, _) => first,
        (Some(base), None) => {
            if first.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(first, false)
                        .into_iter()
                        .map(|message| format!("prefix part {message}")),
                );
            }
            base
        }
        (Some(_), Some(_)) => {
            let note = regex_note(WORD_NOTE, WORD, WORDS);
            return vec![format!(
                "a qualified name {note} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if base.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if base.len() > MAX_LABEL {
        errors.push(format!("name part {}", too_long(MAX_LABEL)));
    }
    if !word(base) {
        errors.push(format!("name part {}", regex_note(WORD_NOTE, WORD, WORDS)));
    }
    errors
}

/// The value of a label: empty, or a word of at most 63.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > MAX_LABEL {
        errors.push(too_long(MAX_LABEL));
    }
    if !value.is_empty() && !word(value) {
        errors.push(regex_note(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A key of a ConfigMap or Secret: it becomes a file name.
pub fn config_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if key.len() > MAX_SUBDOMAIN {
        errors.push(too_long(MAX_SUBDOMAIN));
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        errors.push(regex_note(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match key {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var(name: &str) -> Vec<String> {
    match !name.is_empty() && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        true => Vec::new(),
        false => vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bad_name_is_explained_as_upstream_explains_it() {
        assert_eq!(
            dns1123_subdomain("My_Pod", false),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            dns1123_label("-", false),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(dns1123_label("a.b", false), ["must not contain dots"]);
        assert_eq!(
            label_value("a b"),
            [
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            ]
        );
    }

    #[test]
    fn what_begins_a_name_may_end_with_a_dash() {
        assert!(dns1123_subdomain("web-", false).len() == 1);
        assert!(dns1123_subdomain("web-", true).is_empty());
    }

    #[test]
    fn qualified_names_take_one_prefix() {
        for good in ["app", "example.com/app", "kubernetes.io/os", "A.b_c-9"] {
            assert!(qualified(good).is_empty(), "{good}");
        }
        for bad in ["", "/app", "a/b/c", "UPPER/app", "app-", &"x".repeat(64)] {
            assert!(!qualified(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn port_names_are_short_words() {
        assert!(port_name("http-8080").is_empty());
        for bad in ["8080", "-a", "a--b", "Http", "a-very-long-name1"] {
            assert!(!port_name(bad).is_empty(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_regex_matches_is_a_subdomain(name in "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?){0,3}") {
            prop_assert!(dns1123_subdomain(&name, false).is_empty());
        }

        #[test]
        fn a_service_name_is_also_a_label(name in "\\PC{0,70}") {
            if dns1035_label(&name, false).is_empty() {
                prop_assert!(dns1123_label(&name, false).is_empty());
                prop_assert!(dns1123_subdomain(&name, false).is_empty());
            }
        }
    }
}
