//! What the fixed identities may do, as data: the part of upstream's bootstrap policy that this control plane needs.

use super::{
    AUTHENTICATED, Attributes, BOOTSTRAPPERS, CONTROLLER_MANAGER, KUBE_PROXY, SCHEDULER,
    UNAUTHENTICATED, User,
};

const READ: &[&str] = &["get", "list", "watch"];
const ANY: &[&str] = &["*"];

/// A permission: any of the verbs on any of the resources (`plural` or `plural/subresource`) in any of the groups.
pub(super) struct Rule {
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
}

const fn rule(
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Rule {
    Rule {
        verbs,
        groups,
        resources,
    }
}

const SCHEDULER_RULES: &[Rule] = &[
    rule(
        READ,
        &[""],
        &[
            "nodes",
            "namespaces",
            "pods",
            "services",
            "persistentvolumeclaims",
            "persistentvolumes",
        ],
    ),
    rule(READ, &["apps"], &["replicasets", "statefulsets"]),
    rule(READ, &["policy"], &["poddisruptionbudgets"]),
    rule(
        READ,
        &["storage.k8s.io"],
        &[
            "storageclasses",
            "csinodes",
            "csidrivers",
            "csistoragecapacities",
        ],
    ),
    rule(&["delete"], &[""], &["pods"]),
    rule(&["create"], &[""], &["pods/binding", "bindings"]),
    rule(&["patch", "update"], &[""], &["pods/status"]),
    rule(
        &["create", "patch", "update"],
        &["", "events.k8s.io"],
        &["events"],
    ),
    rule(
        &["create", "get", "list", "watch", "update", "patch"],
        &["coordination.k8s.io"],
        &["leases"],
    ),
];

/// One identity runs all controllers. Garbage collection and namespace deletion are why it may remove anything.
const CONTROLLER_RULES: &[Rule] = &[
    rule(
        &[
            "get",
            "list",
            "watch",
            "update",
            "patch",
            "delete",
            "deletecollection",
        ],
        ANY,
        ANY,
    ),
    rule(
        &["create"],
        &[""],
        &[
            "pods",
            "pods/eviction",
            "services",
            "endpoints",
            "events",
            "serviceaccounts",
            "serviceaccounts/token",
            "secrets",
            "configmaps",
            "namespaces",
        ],
    ),
    rule(
        &["create"],
        &["apps"],
        &["replicasets", "controllerrevisions"],
    ),
    rule(&["create"], &["batch"], &["jobs"]),
    rule(&["create"], &["discovery.k8s.io"], &["endpointslices"]),
    rule(&["create"], &["events.k8s.io"], &["events"]),
    rule(&["create"], &["coordination.k8s.io"], &["leases"]),
    rule(&["approve", "sign"], &["certificates.k8s.io"], &["signers"]),
];

/// What upstream's cluster role `system:node-proxier` allows.
const PROXIER_RULES: &[Rule] = &[
    rule(&["list", "watch"], &[""], &["services", "endpoints"]),
    rule(READ, &[""], &["nodes"]),
    rule(
        &["create", "patch", "update"],
        &["", "events.k8s.io"],
        &["events"],
    ),
    rule(
        &["list", "watch"],
        &["networking.k8s.io"],
        &["servicecidrs"],
    ),
    rule(
        &["list", "watch"],
        &["discovery.k8s.io"],
        &["endpointslices"],
    ),
];

const BOOTSTRAP_RULES: &[Rule] = &[rule(
    &["create", "get", "list", "watch"],
    &["certificates.k8s.io"],
    &["certificatesigningrequests"],
)];

const AUTHENTICATED_RULES: &[Rule] = &[
    rule(
        &["create"],
        &["authorization.k8s.io"],
        &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    ),
    rule(
        &["create"],
        &["authentication.k8s.io"],
        &["selfsubjectreviews"],
    ),
];

/// Paths open to everyone, as upstream's `system:public-info-viewer` leaves them.
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// Paths open to whoever is authenticated, as upstream's `system:discovery`.
const DISCOVERY_PATHS: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/openapi",
    "/openapi/*",
];

impl Rule {
    fn allows(&self, a: &Attributes<'_>) -> bool {
        let has = |list: &[&str], item: &str| list.iter().any(|l| *l == "*" || *l == item);
        let resource = self.resources.iter().any(|r| match r.split_once('/') {
            Some((plural, sub)) => plural == a.resource && sub == a.subresource,
            None => *r == "*" || (*r == a.resource && a.subresource.is_empty()),
        });
        resource && has(self.verbs, a.verb) && has(self.groups, a.group)
    }
}

/// Whether one of `rules` allows the request.
pub(super) fn any(rules: &[Rule], a: &Attributes<'_>) -> bool {
    rules.iter().any(|r| r.allows(a))
}

/// Whether the fixed policy allows the request to the user, by name or by group.
pub(super) fn static_policy(user: &User, a: &Attributes<'_>) -> bool {
    if !a.is_resource_request() {
        let get = a.verb == "get" || a.verb == "head";
        let known = user.is_in(AUTHENTICATED);
        return get
            && ((matches(PUBLIC_PATHS, a.path) && (known || user.is_in(UNAUTHENTICATED)))
                || (matches(DISCOVERY_PATHS, a.path) && known));
    }
    (user.name == SCHEDULER && any(SCHEDULER_RULES, a))
        || (user.name == CONTROLLER_MANAGER && any(CONTROLLER_RULES, a))
        || (user.name == KUBE_PROXY && any(PROXIER_RULES, a))
        || (user.is_in(BOOTSTRAPPERS) && any(BOOTSTRAP_RULES, a))
        || (user.is_in(AUTHENTICATED) && any(AUTHENTICATED_RULES, a))
}

fn matches(patterns: &[&str], path: &str) -> bool {
    patterns.iter().any(|p| match p.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => *p == path,
    })
}

/// What a node may do whatever the object: its reads of what it routes to, its events, its certificates, its reviews.
pub(super) const NODE_RULES: &[Rule] = &[
    rule(READ, &[""], &["services", "nodes", "endpoints"]),
    rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
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
