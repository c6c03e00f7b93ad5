//! What strategic merging must know of the types: which lists are merged, and by which key.
//!
//! Only types with such a list below them are here. OpenAPI documents carry the same facts as
//! `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`, made from these tables.

/// A structure, under the name of its OpenAPI definition.
#[derive(Debug)]
pub struct Type {
    pub name: &'static str,
    pub fields: &'static [Field],
}

/// A field of a structure that is merged in its own way, or holds something that is.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub merge: Merge,
    /// The type of the field, or of the items of its list.
    pub of: Option<&'static Type>,
}

/// How a field takes a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Structures are merged, lists replaced.
    Plain,
    /// A list of structures, told apart by a field.
    ByKey(&'static str),
    /// The same, and clients say in `$retainKeys` which fields an item keeps.
    ByKeyRetaining(&'static str),
    /// A list of plain values, without duplicates.
    Set,
    /// A structure of which clients say in `$retainKeys` what it keeps.
    Retaining,
}

impl Merge {
    /// The field that tells items apart.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::ByKey(key) | Self::ByKeyRetaining(key) => Some(key),
            Self::Plain | Self::Set | Self::Retaining => None,
        }
    }

    /// The value of `x-kubernetes-patch-strategy`.
    pub fn strategy(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::ByKey(_) | Self::Set => Some("merge"),
            Self::ByKeyRetaining(_) => Some("merge,retainKeys"),
            Self::Retaining => Some("retainKeys"),
        }
    }
}

impl Type {
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// What is known of a kind's type, by its OpenAPI definition: `io.k8s.api.core.v1.Pod`.
pub fn of(definition: &str) -> Option<&'static Type> {
    TYPES.into_iter().find(|known| known.name == definition)
}

/// Every type that is known.
pub fn all() -> &'static [&'static Type] {
    &TYPES
}

const fn plain(name: &'static str, of: &'static Type) -> Field {
    Field {
        name,
        merge: Merge::Plain,
        of: Some(of),
    }
}

const fn by_key(name: &'static str, key: &'static str, of: Option<&'static Type>) -> Field {
    Field {
        name,
        merge: Merge::ByKey(key),
        of,
    }
}

const fn retaining(name: &'static str, key: &'static str) -> Field {
    Field {
        name,
        merge: Merge::ByKeyRetaining(key),
        of: None,
    }
}

const fn set(name: &'static str) -> Field {
    Field {
        name,
        merge: Merge::Set,
        of: None,
    }
}

static OBJECT_META: Type = Type {
    name: "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    fields: &[by_key("ownerReferences", "uid", None), set("finalizers")],
};

const METADATA: Field = plain("metadata", &OBJECT_META);

static CONTAINER: Type = Type {
    name: "io.k8s.api.core.v1.Container",
    fields: CONTAINER_FIELDS,
};

static EPHEMERAL_CONTAINER: Type = Type {
    name: "io.k8s.api.core.v1.EphemeralContainer",
    fields: CONTAINER_FIELDS,
};

const CONTAINER_FIELDS: &[Field] = &[
    by_key("env", "name", None),
    by_key("ports", "containerPort", None),
    by_key("volumeMounts", "mountPath", None),
    by_key("volumeDevices", "devicePath", None),
];

static POD_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.PodSpec",
    fields: &[
        by_key("containers", "name", Some(&CONTAINER)),
        by_key("initContainers", "name", Some(&CONTAINER)),
        by_key("ephemeralContainers", "name", Some(&EPHEMERAL_CONTAINER)),
        retaining("volumes", "name"),
        retaining("resourceClaims", "name"),
        by_key("imagePullSecrets", "name", None),
        by_key("hostAliases", "ip", None),
        by_key("schedulingGates", "name", None),
        by_key("topologySpreadConstraints", "topologyKey", None),
    ],
};

static POD_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.PodStatus",
    fields: &[
        by_key("conditions", "type", None),
        by_key("podIPs", "ip", None),
        by_key("hostIPs", "ip", None),
        retaining("resourceClaimStatuses", "name"),
    ],
};

static POD: Type = Type {
    name: "io.k8s.api.core.v1.Pod",
    fields: &[
        METADATA,
        plain("spec", &POD_SPEC),
        plain("status", &POD_STATUS),
    ],
};

static POD_TEMPLATE_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.PodTemplateSpec",
    fields: &[METADATA, plain("spec", &POD_SPEC)],
};

static DEPLOYMENT_SPEC: Type = Type {
    name: "io.k8s.api.apps.v1.DeploymentSpec",
    fields: &[
        Field {
            name: "strategy",
            merge: Merge::Retaining,
            of: None,
        },
        plain("template", &POD_TEMPLATE_SPEC),
    ],
};

static DEPLOYMENT_STATUS: Type = Type {
    name: "io.k8s.api.apps.v1.DeploymentStatus",
    fields: &[by_key("conditions", "type", None)],
};

static DEPLOYMENT: Type = Type {
    name: "io.k8s.api.apps.v1.Deployment",
    fields: &[
        METADATA,
        plain("spec", &DEPLOYMENT_SPEC),
        plain("status", &DEPLOYMENT_STATUS),
    ],
};

static REPLICA_SET_SPEC: Type = Type {
    name: "io.k8s.api.apps.v1.ReplicaSetSpec",
    fields: &[plain("template", &POD_TEMPLATE_SPEC)],
};

static REPLICA_SET_STATUS: Type = Type {
    name: "io.k8s.api.apps.v1.ReplicaSetStatus",
    fields: &[by_key("conditions", "type", None)],
};

static REPLICA_SET: Type = Type {
    name: "io.k8s.api.apps.v1.ReplicaSet",
    fields: &[
        METADATA,
        plain("spec", &REPLICA_SET_SPEC),
        plain("status", &REPLICA_SET_STATUS),
    ],
};

static SERVICE_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.ServiceSpec",
    fields: &[by_key("ports", "port", None)],
};

static SERVICE_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.ServiceStatus",
    fields: &[by_key("conditions", "type", None)],
};

static SERVICE: Type = Type {
    name: "io.k8s.api.core.v1.Service",
    fields: &[
        METADATA,
        plain("spec", &SERVICE_SPEC),
        plain("status", &SERVICE_STATUS),
    ],
};

static SERVICE_ACCOUNT: Type = Type {
    name: "io.k8s.api.core.v1.ServiceAccount",
    fields: &[METADATA, by_key("secrets", "name", None)],
};

static NODE_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.NodeSpec",
    fields: &[set("podCIDRs")],
};

static NODE_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.NodeStatus",
    fields: &[
        by_key("conditions", "type", None),
        by_key("addresses", "type", None),
    ],
};

static NODE: Type = Type {
    name: "io.k8s.api.core.v1.Node",
    fields: &[
        METADATA,
        plain("spec", &NODE_SPEC),
        plain("status", &NODE_STATUS),
    ],
};

static NAMESPACE_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.NamespaceStatus",
    fields: &[by_key("conditions", "type", None)],
};

static NAMESPACE: Type = Type {
    name: "io.k8s.api.core.v1.Namespace",
    fields: &[METADATA, plain("status", &NAMESPACE_STATUS)],
};

static CONFIG_MAP: Type = Type {
    name: "io.k8s.api.core.v1.ConfigMap",
    fields: &[METADATA],
};
static SECRET: Type = Type {
    name: "io.k8s.api.core.v1.Secret",
    fields: &[METADATA],
};
static ENDPOINTS: Type = Type {
    name: "io.k8s.api.core.v1.Endpoints",
    fields: &[METADATA],
};
static EVENT: Type = Type {
    name: "io.k8s.api.core.v1.Event",
    fields: &[METADATA],
};
static NEWER_EVENT: Type = Type {
    name: "io.k8s.api.events.v1.Event",
    fields: &[METADATA],
};
static LEASE: Type = Type {
    name: "io.k8s.api.coordination.v1.Lease",
    fields: &[METADATA],
};
static ENDPOINT_SLICE: Type = Type {
    name: "io.k8s.api.discovery.v1.EndpointSlice",
    fields: &[METADATA],
};
static SIGNING_REQUEST: Type = Type {
    name: "io.k8s.api.certificates.v1.CertificateSigningRequest",
    fields: &[METADATA],
};

static TYPES: [&Type; 30] = [
    &OBJECT_META,
    &CONTAINER,
    &EPHEMERAL_CONTAINER,
    &POD_SPEC,
    &POD_STATUS,
    &POD,
    &POD_TEMPLATE_SPEC,
    &DEPLOYMENT_SPEC,
    &DEPLOYMENT_STATUS,
    &DEPLOYMENT,
    &REPLICA_SET_SPEC,
    &REPLICA_SET_STATUS,
    &REPLICA_SET,
    &SERVICE_SPEC,
    &SERVICE_STATUS,
    &SERVICE,
    &SERVICE_ACCOUNT,
    &NODE_SPEC,
    &NODE_STATUS,
    &NODE,
    &NAMESPACE_STATUS,
    &NAMESPACE,
    &CONFIG_MAP,
    &SECRET,
    &ENDPOINTS,
    &EVENT,
    &NEWER_EVENT,
    &LEASE,
    &ENDPOINT_SLICE,
    &SIGNING_REQUEST,
];
