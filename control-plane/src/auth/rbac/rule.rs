//! One rule: what it allows, and whether some rules allow all that another does. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::auth::Attributes;

const ALL: &str = "*";

/// A permission: any of the verbs on any of the resources in any of the groups, or on any of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    /// `plural`, `plural/subresource`, `*/subresource` or `*`.
    pub resources: Vec<String>,
    /// Of which objects; of all if it is empty.
    pub names: Vec<String>,
    /// Paths; those that end with `*` stand for all below.
    pub urls: Vec<String>,
}

impl From<PolicyRule> for Rule {
    fn from(rule: PolicyRule) -> Self {
        Self {
            verbs: rule.verbs,
            groups: rule.api_groups.unwrap_or_default(),
            resources: rule.resources.unwrap_or_default(),
            names: rule.resource_names.unwrap_or_default(),
            urls: rule.non_resource_urls.unwrap_or_default(),
        }
    }
}

impl From<Rule> for PolicyRule {
    fn from(rule: Rule) -> Self {
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        Self {
            verbs: rule.verbs,
            api_groups: some(rule.groups),
            resources: some(rule.resources),
            resource_names: some(rule.names),
            non_resource_urls: some(rule.urls),
        }
    }
}

impl Rule {
    /// Whether the rule allows the request.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource_request() {
            return self.urls.iter().any(|url| url_covers(url, a.path));
        }
        let named = self.names.is_empty() || self.names.iter().any(|name| name == a.name);
        named
            && has(&self.groups, a.group)
            && self
                .resources
                .iter()
                .any(|resource| resource_covers(resource, a.resource, a.subresource))
    }

    /// The rules with one verb and one resource, or path, each that together are this one.
    fn single(&self) -> Vec<Rule> {
        let mut all = Vec::new();
        for verb in &self.verbs {
            let of = |rule: Rule| Rule {
                verbs: vec![verb.clone()],
                ..rule
            };
            for url in &self.urls {
                all.push(of(Rule {
                    urls: vec![url.clone()],
                    ..Rule::default()
                }));
            }
            for (group, resource) in self
                .groups
                .iter()
                .flat_map(|group| self.resources.iter().map(move |resource| (group, resource)))
            {
                let one = Rule {
                    groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Rule::default()
                };
                if self.names.is_empty() {
                    all.push(of(one.clone()));
                }
                for name in &self.names {
                    all.push(of(Rule {
                        names: vec![name.clone()],
                        ..one.clone()
                    }));
                }
            }
        }
        all
    }

    /// Whether whatever `single` allows this rule allows too.
    fn covers(&self, single: &Rule) -> bool {
        let all = |own: &[String], asked: &[String]| asked.iter().all(|item| has(own, item));
        let named = self.names.is_empty()
            || (!single.names.is_empty() && single.names.iter().all(|n| self.names.contains(n)));
        let resources = single.resources.iter().all(|asked| {
            let (plural, subresource) = asked.split_once('/').unwrap_or((asked, ""));
            self.resources
                .iter()
                .any(|own| resource_covers(own, plural, subresource))
        });
        let urls = single
            .urls
            .iter()
            .all(|asked| self.urls.iter().any(|own| url_covers(own, asked)));
        all(&self.verbs, &single.verbs)
            && all(&self.groups, &single.groups)
            && resources
            && named
            && urls
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|own| own == ALL || own == item)
}

fn resource_covers(own: &str, plural: &str, subresource: &str) -> bool {
    if own == ALL {
        return true;
    }
    match own.split_once('/') {
        Some((of, sub)) => sub == subresource && (of == plural || (of == ALL && !sub.is_empty())),
        None => own == plural && subresource.is_empty(),
    }
}

fn url_covers(own: &str, path: &str) -> bool {
    own == path
        || own
            .strip_suffix(ALL)
            .is_some_and(|prefix| path.starts_with(prefix))
}

/// What of `asked` is not among `own`, in rules of one verb and one resource or path each.
pub fn missing(own: &[Rule], asked: &[Rule]) -> Vec<Rule> {
    let singles = asked.iter().flat_map(Rule::single);
    singles
        .filter(|single| !own.iter().any(|rule| rule.covers(single)))
        .collect()
}

/// Rules as upstream names them to people, one a line: those of one resource together.
pub fn described(rules: &[Rule]) -> String {
    type Place<'a> = (&'a [String], &'a [String], &'a [String], &'a [String]);
    let mut verbs: BTreeMap<Place<'_>, Vec<&str>> = BTreeMap::new();
    for rule in rules {
        let place = (
            &rule.groups[..],
            &rule.resources[..],
            &rule.urls[..],
            &rule.names[..],
        );
        let known = verbs.entry(place).or_default();
        for verb in &rule.verbs {
            if !known.contains(&verb.as_str()) {
                known.push(verb);
            }
        }
    }
    let lines = verbs
        .iter()
        .map(|((groups, resources, urls, names), verbs)| {
            let verbs: Vec<String> = verbs.iter().map(|verb| (*verb).to_owned()).collect();
            let parts = [
                ("APIGroups", *groups),
                ("Resources", *resources),
                ("NonResourceURLs", *urls),
                ("ResourceNames", *names),
                ("Verbs", &verbs[..]),
            ];
            let parts = parts.iter().filter(|(_, list)| !list.is_empty());
            let parts: Vec<String> = parts
                .map(|(name, list)| format!("{name}:{}", quoted(list)))
                .collect();
            format!("{{{}}}", parts.join(", "))
        });
    let lines: BTreeSet<String> = lines.collect();
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

/// `["a" "b"]`.
pub fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}
