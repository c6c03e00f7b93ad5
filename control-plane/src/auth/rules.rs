//! Permissions as constants: what nodes may do, and the form in which the default roles are written down.

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::Attributes;

pub(super) const READ: &[&str] = &["get", "list", "watch"];

/// A permission: any of the verbs on any of the resources (`plural` or `plural/subresource`) in any of the groups, or on any
/// of the paths.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    names: &'static [&'static str],
    urls: &'static [&'static str],
}

pub(super) const fn rule(
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Rule {
    Rule {
        verbs,
        groups,
        resources,
        names: &[],
        urls: &[],
    }
}

/// To read these paths.
pub(super) const fn paths(urls: &'static [&'static str]) -> Rule {
    Rule {
        verbs: &["get"],
        groups: &[],
        resources: &[],
        names: &[],
        urls,
    }
}

impl Rule {
    /// The same of these objects only.
    pub(super) const fn of(self, names: &'static [&'static str]) -> Self {
        Self { names, ..self }
    }

    /// The same on every path.
    pub(super) const fn on_paths(self, urls: &'static [&'static str]) -> Self {
        Self { urls, ..self }
    }

    fn allows(&self, a: &Attributes<'_>) -> bool {
        let resource = self.resources.iter().any(|r| match r.split_once('/') {
            Some((plural, sub)) => plural == a.resource && sub == a.subresource,
            None => *r == a.resource && a.subresource.is_empty(),
        });
        resource && self.verbs.contains(&a.verb) && self.groups.contains(&a.group)
    }
}

impl From<&Rule> for PolicyRule {
    fn from(rule: &Rule) -> Self {
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        let some = |list: &[&str]| (!list.is_empty()).then(|| owned(list));
        Self {
            verbs: owned(rule.verbs),
            api_groups: some(rule.groups),
            resources: some(rule.resources),
            resource_names: some(rule.names),
            non_resource_urls: some(rule.urls),
        }
    }
}

/// Whether one of `rules` allows the request.
pub(super) fn any(rules: &[Rule], a: &Attributes<'_>) -> bool {
    rules.iter().any(|r| r.allows(a))
}

/// What a node may do whatever the object: its reads of what it routes to, its events, its certificates, its reviews.
pub(super) const NODE_RULES: &[Rule] = &[
    rule(READ, &[""], &["services", "nodes", "endpoints"]),
    rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
    // The agent is the network plugin, too. Upstream's `system:node` has neither of these; plugins bring an account that
    // may read them, and all pods.
    rule(READ, &[""], &["namespaces"]),
    rule(READ, &["networking.k8s.io"], &["networkpolicies"]),
    rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
    rule(READ, &["storage.k8s.io"], &["csidrivers"]),
    rule(
        &["create", "patch", "update"],
        &["", "events.k8s.io"],
        &["events"],
    ),
    rule(
        &["create", "get", "list", "watch"],
        &["certificates.k8s.io"],
        &["certificatesigningrequests"],
    ),
    rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
    rule(
        &["create"],
        &["authorization.k8s.io"],
        &["subjectaccessreviews", "localsubjectaccessreviews"],
    ),
];
