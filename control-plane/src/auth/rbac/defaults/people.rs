//! The roles for people: cluster-admin, and admin, edit and view, which are made of parts.

use super::{Default, role};
use crate::auth::rules::{READ, Rule, rule};

const ALL: &[&str] = &["*"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const READ_WRITE: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

pub(super) const ROLES: &[Default] = &[
    role(
        "cluster-admin",
        &[rule(ALL, ALL, ALL), rule(ALL, &[], &[]).on_paths(ALL)],
    ),
    Default {
        from: Some("admin"),
        ..role("admin", &[])
    },
    Default {
        from: Some("edit"),
        into: Some("admin"),
        ..role("edit", &[])
    },
    Default {
        from: Some("view"),
        into: Some("edit"),
        ..role("view", &[])
    },
    Default {
        into: Some("admin"),
        ..role("system:aggregate-to-admin", ADMIN)
    },
    Default {
        into: Some("edit"),
        ..role("system:aggregate-to-edit", EDIT)
    },
    Default {
        into: Some("view"),
        ..role("system:aggregate-to-view", VIEW)
    },
];

const ADMIN: &[Rule] = &[
    rule(
        &["create"],
        &["authorization.k8s.io"],
        &["localsubjectaccessreviews"],
    ),
    rule(
        READ_WRITE,
        &["rbac.authorization.k8s.io"],
        &["rolebindings", "roles"],
    ),
];

const EDIT: &[Rule] = &[
    // These show secrets, or act as somebody else.
    rule(
        READ,
        &[""],
        &[
            "pods/attach",
            "pods/exec",
            "pods/portforward",
            "pods/proxy",
            "secrets",
            "services/proxy",
        ],
    ),
    rule(&["impersonate"], &[""], &["serviceaccounts"]),
    rule(
        WRITE,
        &[""],
        &[
            "pods",
            "pods/attach",
            "pods/exec",
            "pods/portforward",
            "pods/proxy",
        ],
    ),
    rule(&["create"], &[""], &["pods/eviction"]),
    rule(
        WRITE,
        &[""],
        &[
            "configmaps",
            "events",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "secrets",
            "serviceaccounts",
            "services",
            "services/proxy",
        ],
    ),
    rule(&["create"], &[""], &["serviceaccounts/token"]),
    rule(
        WRITE,
        &["apps"],
        &[
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
    ),
    rule(WRITE, &["autoscaling"], &["horizontalpodautoscalers"]),
    rule(WRITE, &["batch"], &["cronjobs", "jobs"]),
    rule(WRITE, &["policy"], &["poddisruptionbudgets"]),
    rule(
        WRITE,
        &["networking.k8s.io"],
        &["ingresses", "networkpolicies"],
    ),
    rule(READ_WRITE, &["coordination.k8s.io"], &["leases"]),
];

const VIEW: &[Rule] = &[
    rule(
        READ,
        &[""],
        &[
            "configmaps",
            "endpoints",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "serviceaccounts",
            "services",
            "services/status",
        ],
    ),
    rule(
        READ,
        &[""],
        &[
            "bindings",
            "events",
            "limitranges",
            "namespaces/status",
            "pods/log",
            "pods/status",
            "replicationcontrollers/status",
            "resourcequotas",
            "resourcequotas/status",
        ],
    ),
    rule(READ, &[""], &["namespaces"]),
    rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
    rule(
        READ,
        &["apps"],
        &[
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ],
    ),
    rule(
        READ,
        &["autoscaling"],
        &[
            "horizontalpodautoscalers",
            "horizontalpodautoscalers/status",
        ],
    ),
    rule(
        READ,
        &["batch"],
        &["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
    ),
    rule(
        READ,
        &["policy"],
        &["poddisruptionbudgets", "poddisruptionbudgets/status"],
    ),
    rule(
        READ,
        &["networking.k8s.io"],
        &["ingresses", "ingresses/status", "networkpolicies"],
    ),
];
