//! Roles of the control plane's own parts: scheduler and controllers.

use super::system::{ACCESS_REVIEWS, EVENTS, TOKEN_REVIEWS};
use super::{Bound, Default, Local, role};
use crate::auth::rules::{READ, Rule, rule};
use crate::auth::{CONTROLLER_MANAGER, SCHEDULER};

const CREATE: &[&str] = &["create"];
const CORE: &[&str] = &[""];
const LEASES: &[&str] = &["coordination.k8s.io"];
const ANY: &[&str] = &["*"];

/// What this control plane's controllers need beyond upstream's role for them.
const CONTROLLERS: &str = "kernelet:controllers";

pub(super) const ROLES: &[Default] = &[
    role("system:kube-scheduler", KUBE_SCHEDULER),
    role("system:kube-controller-manager", KUBE_CONTROLLER_MANAGER),
    role(CONTROLLERS, OWN_CONTROLLERS),
];

const KUBE_SCHEDULER: &[Rule] = &[
    EVENTS,
    rule(CREATE, LEASES, &["leases"]),
    rule(&["get", "list", "update", "watch"], LEASES, &["leases"]).of(&["kube-scheduler"]),
    rule(READ, CORE, &["nodes"]),
    rule(&["delete", "get", "list", "watch"], CORE, &["pods"]),
    rule(CREATE, CORE, &["bindings", "pods/binding"]),
    rule(&["patch", "update"], CORE, &["pods/status"]),
    rule(READ, CORE, &["replicationcontrollers", "services"]),
    rule(READ, &["apps"], &["replicasets", "statefulsets"]),
    rule(READ, &["policy"], &["poddisruptionbudgets"]),
    rule(READ, CORE, &["persistentvolumeclaims", "persistentvolumes"]),
    TOKEN_REVIEWS,
    ACCESS_REVIEWS,
    rule(
        READ,
        &["storage.k8s.io"],
        &[
            "csidrivers",
            "csinodes",
            "csistoragecapacities",
            "storageclasses",
        ],
    ),
    rule(READ, CORE, &["namespaces"]),
];

const KUBE_CONTROLLER_MANAGER: &[Rule] = &[
    EVENTS,
    rule(CREATE, LEASES, &["leases"]),
    rule(&["get", "list", "update", "watch"], LEASES, &["leases"]).of(&["kube-controller-manager"]),
    rule(CREATE, CORE, &["secrets", "serviceaccounts"]),
    rule(&["delete"], CORE, &["secrets"]),
    rule(
        &["get"],
        CORE,
        &["configmaps", "namespaces", "secrets", "serviceaccounts"],
    ),
    rule(&["update"], CORE, &["secrets", "serviceaccounts"]),
    TOKEN_REVIEWS,
    ACCESS_REVIEWS,
    rule(&["list", "watch"], ANY, ANY),
    rule(CREATE, CORE, &["serviceaccounts/token"]),
];

/// One identity runs all controllers. Garbage collection and namespace deletion are why it may remove anything.
const OWN_CONTROLLERS: &[Rule] = &[
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
        CREATE,
        CORE,
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
            "persistentvolumeclaims",
            "persistentvolumes",
        ],
    ),
    rule(CREATE, &["apps"], &["replicasets", "controllerrevisions"]),
    rule(CREATE, &["batch"], &["jobs"]),
    rule(CREATE, &["discovery.k8s.io"], &["endpointslices"]),
    rule(CREATE, LEASES, &["leases"]),
    rule(&["approve", "sign"], &["certificates.k8s.io"], &["signers"]),
    // Aggregated roles hold what the controllers themselves may not do.
    rule(
        &["escalate"],
        &["rbac.authorization.k8s.io"],
        &["clusterroles"],
    ),
];

pub(super) const BOUND: &[Bound] = &[Bound {
    role: CONTROLLERS,
    name: CONTROLLERS,
    users: &[CONTROLLER_MANAGER],
    groups: &[],
}];

pub(super) const LOCAL: &[Local] = &[
    Local {
        namespace: "kube-system",
        role: role(
            "extension-apiserver-authentication-reader",
            &[rule(READ, CORE, &["configmaps"]).of(&["extension-apiserver-authentication"])],
        ),
        binding: "system::extension-apiserver-authentication-reader",
        users: &[CONTROLLER_MANAGER, SCHEDULER],
    },
    Local {
        namespace: "kube-system",
        role: role(
            "system::leader-locking-kube-controller-manager",
            &[
                rule(&["watch"], CORE, &["configmaps"]),
                rule(&["get", "update"], CORE, &["configmaps"]).of(&["kube-controller-manager"]),
            ],
        ),
        binding: "system::leader-locking-kube-controller-manager",
        users: &[CONTROLLER_MANAGER],
    },
    Local {
        namespace: "kube-system",
        role: role(
            "system::leader-locking-kube-scheduler",
            &[
                rule(&["watch"], CORE, &["configmaps"]),
                rule(&["get", "update"], CORE, &["configmaps"]).of(&["kube-scheduler"]),
            ],
        ),
        binding: "system::leader-locking-kube-scheduler",
        users: &[SCHEDULER],
    },
];
