//! Roles for everybody, for nodes, and for programs that people add to a cluster.

use super::{Bound, Default, role};
use crate::auth::rules::{READ, Rule, paths, rule};
use crate::auth::{
    AUTHENTICATED, BOOTSTRAPPERS, CONTROLLER_MANAGER, KUBE_PROXY, MASTERS, SCHEDULER,
    SERVICE_ACCOUNTS, UNAUTHENTICATED,
};

const LIST: &[&str] = &["list", "watch"];
const CREATE: &[&str] = &["create"];
const CORE: &[&str] = &[""];
const STORAGE: &[&str] = &["storage.k8s.io"];
const CERTIFICATES: &[&str] = &["certificates.k8s.io"];

pub(super) const EVENTS: Rule = rule(
    &["create", "patch", "update"],
    &["", "events.k8s.io"],
    &["events"],
);
pub(super) const TOKEN_REVIEWS: Rule = rule(CREATE, &["authentication.k8s.io"], &["tokenreviews"]);
pub(super) const ACCESS_REVIEWS: Rule =
    rule(CREATE, &["authorization.k8s.io"], &["subjectaccessreviews"]);

const fn approver(name: &'static str, signer: &'static [Rule]) -> Default {
    role(name, signer)
}

pub(super) const ROLES: &[Default] = &[
    role(
        "system:discovery",
        &[paths(&[
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/healthz",
            "/livez",
            "/openapi",
            "/openapi/*",
            "/readyz",
            "/version",
            "/version/",
        ])],
    ),
    role(
        "system:public-info-viewer",
        &[paths(&[
            "/healthz",
            "/livez",
            "/readyz",
            "/version",
            "/version/",
        ])],
    ),
    role(
        "system:monitoring",
        &[paths(&[
            "/healthz",
            "/healthz/*",
            "/livez",
            "/livez/*",
            "/metrics",
            "/metrics/slis",
            "/readyz",
            "/readyz/*",
        ])],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[paths(&[
            "/.well-known/openid-configuration",
            "/openid/v1/jwks",
        ])],
    ),
    role(
        "system:basic-user",
        &[
            rule(
                CREATE,
                &["authorization.k8s.io"],
                &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            ),
            rule(CREATE, &["authentication.k8s.io"], &["selfsubjectreviews"]),
        ],
    ),
    role("system:auth-delegator", &[TOKEN_REVIEWS, ACCESS_REVIEWS]),
    role(
        "system:kube-aggregator",
        &[rule(READ, CORE, &["endpoints", "services"])],
    ),
    role(
        "system:kube-dns",
        &[rule(LIST, CORE, &["endpoints", "services"])],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            rule(READ, CORE, &["nodes"]),
            rule(&["proxy"], CORE, &["nodes"]),
            rule(
                &["*"],
                CORE,
                &[
                    "nodes/configz",
                    "nodes/healthz",
                    "nodes/log",
                    "nodes/metrics",
                    "nodes/pods",
                    "nodes/proxy",
                    "nodes/stats",
                ],
            ),
        ],
    ),
    // Nobody has it: nodes have the node authorizer.
    role("system:node", NODE),
    role(
        "system:node-bootstrapper",
        &[rule(
            &["create", "get", "list", "watch"],
            CERTIFICATES,
            &["certificatesigningrequests"],
        )],
    ),
    role(
        "system:node-problem-detector",
        &[
            rule(&["get"], CORE, &["nodes"]),
            rule(&["patch"], CORE, &["nodes/status"]),
            EVENTS,
        ],
    ),
    role(
        "system:node-proxier",
        &[
            rule(LIST, CORE, &["endpoints", "services"]),
            rule(READ, CORE, &["nodes"]),
            EVENTS,
            rule(LIST, &["networking.k8s.io"], &["servicecidrs"]),
            rule(LIST, &["discovery.k8s.io"], &["endpointslices"]),
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            rule(
                &["create", "delete", "get", "list", "watch"],
                CORE,
                &["persistentvolumes"],
            ),
            rule(
                &["get", "list", "update", "watch"],
                CORE,
                &["persistentvolumeclaims"],
            ),
            rule(READ, STORAGE, &["storageclasses"]),
            rule(&["watch"], CORE, &["events"]),
            EVENTS,
        ],
    ),
    role(
        "system:volume-scheduler",
        &[
            rule(
                &["get", "list", "patch", "update", "watch"],
                CORE,
                &["persistentvolumes", "persistentvolumeclaims"],
            ),
            rule(READ, STORAGE, &["storageclasses"]),
        ],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[rule(
            CREATE,
            CERTIFICATES,
            &["certificatesigningrequests/nodeclient"],
        )],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[rule(
            CREATE,
            CERTIFICATES,
            &["certificatesigningrequests/selfnodeclient"],
        )],
    ),
    approver(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[APPROVE.of(&["kubernetes.io/kube-apiserver-client"])],
    ),
    approver(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[APPROVE.of(&["kubernetes.io/kube-apiserver-client-kubelet"])],
    ),
    approver(
        "system:certificates.k8s.io:kubelet-serving-approver",
        &[APPROVE.of(&["kubernetes.io/kubelet-serving"])],
    ),
    approver(
        "system:certificates.k8s.io:legacy-unknown-approver",
        &[APPROVE.of(&["kubernetes.io/legacy-unknown"])],
    ),
];

const APPROVE: Rule = rule(&["approve"], CERTIFICATES, &["signers"]);

const NODE: &[Rule] = &[
    TOKEN_REVIEWS,
    rule(
        CREATE,
        &["authorization.k8s.io"],
        &["localsubjectaccessreviews", "subjectaccessreviews"],
    ),
    rule(READ, CORE, &["services"]),
    rule(&["create", "get", "list", "watch"], CORE, &["nodes"]),
    rule(&["patch", "update"], CORE, &["nodes", "nodes/status"]),
    rule(&["create", "patch", "update"], CORE, &["events"]),
    rule(READ, CORE, &["pods"]),
    rule(&["create", "delete"], CORE, &["pods"]),
    rule(&["patch", "update"], CORE, &["pods/status"]),
    rule(CREATE, CORE, &["pods/eviction"]),
    rule(READ, CORE, &["configmaps", "secrets"]),
    rule(
        &["get"],
        CORE,
        &["persistentvolumeclaims", "persistentvolumes"],
    ),
    rule(&["get"], CORE, &["endpoints"]),
    rule(
        &["create", "get", "list", "watch"],
        CERTIFICATES,
        &["certificatesigningrequests"],
    ),
    rule(
        &["create", "delete", "get", "patch", "update"],
        &["coordination.k8s.io"],
        &["leases"],
    ),
    rule(&["get"], STORAGE, &["volumeattachments"]),
    rule(CREATE, CORE, &["serviceaccounts/token"]),
    rule(
        &["get", "patch", "update"],
        CORE,
        &["persistentvolumeclaims/status"],
    ),
    rule(READ, STORAGE, &["csidrivers"]),
    rule(
        &["create", "delete", "get", "patch", "update"],
        STORAGE,
        &["csinodes"],
    ),
    rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
];

const fn to_users(role: &'static str, users: &'static [&'static str]) -> Bound {
    Bound {
        role,
        name: role,
        users,
        groups: &[],
    }
}

const fn to_groups(role: &'static str, groups: &'static [&'static str]) -> Bound {
    Bound {
        role,
        name: role,
        users: &[],
        groups,
    }
}

pub(super) const BOUND: &[Bound] = &[
    to_groups("cluster-admin", &[MASTERS]),
    to_groups("system:monitoring", &["system:monitoring"]),
    to_groups("system:discovery", &[AUTHENTICATED]),
    to_groups("system:basic-user", &[AUTHENTICATED]),
    to_groups(
        "system:public-info-viewer",
        &[AUTHENTICATED, UNAUTHENTICATED],
    ),
    to_groups(
        "system:service-account-issuer-discovery",
        &[SERVICE_ACCOUNTS],
    ),
    to_groups("system:node", &[]),
    to_groups("system:node-bootstrapper", &[BOOTSTRAPPERS]),
    to_users("system:node-proxier", &[KUBE_PROXY]),
    to_users("system:kube-controller-manager", &[CONTROLLER_MANAGER]),
    to_users("system:kube-scheduler", &[SCHEDULER]),
    to_users("system:volume-scheduler", &[SCHEDULER]),
];
