//! What merging must know of the types: which lists are merged, and by which keys, and what has one owner.
//!
//! Only types with such a field below them are here. OpenAPI documents carry the same facts as
//! `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`, for server-side apply as `x-kubernetes-list-type`,
//! `x-kubernetes-list-map-keys` and `x-kubernetes-map-type`, made from these tables.

mod workloads;

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
    pub owned: Owned,
    /// The type of the field, or of the items of its list.
    pub of: Option<&'static Type>,
}

/// How a field takes a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Structures are merged, lists replaced.
    Plain,
    /// A list of structures, told apart by the first of these.
    ByKey(&'static [Key]),
    /// The same, and clients say in `$retainKeys` which fields an item keeps.
    ByKeyRetaining(&'static [Key]),
    /// A list of plain values, without duplicates.
    Set,
    /// A structure of which clients say in `$retainKeys` what it keeps.
    Retaining,
    /// A structure of which nothing is kept that the patch does not say.
    Replace,
}

/// A field that tells the items of a list apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub name: &'static str,
    /// What it is where an item does not say it.
    pub default: Option<&'static str>,
}

/// What server-side apply takes as one thing, which has one owner or several that agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    /// Of structures and maps each field, of lists that are merged each item, of others the whole.
    AsMerged,
    /// All of it.
    Whole,
    /// Each item of a list that strategic merging replaces.
    Items(&'static [Key]),
    /// Each value of such a list.
    Values,
}

/// The same, for a value at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Of a structure or map each field; of a list the whole.
    Fields,
    Whole,
    /// Of a list each item, told apart by these.
    Items(&'static [Key]),
    /// Of a list each value.
    Values,
}

impl Field {
    pub fn topology(&self) -> Topology {
        match (self.owned, self.merge) {
            (Owned::Whole, _) => Topology::Whole,
            (Owned::Items(keys), _)
            | (Owned::AsMerged, Merge::ByKey(keys) | Merge::ByKeyRetaining(keys)) => {
                Topology::Items(keys)
            }
            (Owned::Values, _) | (Owned::AsMerged, Merge::Set) => Topology::Values,
            (Owned::AsMerged, Merge::Plain | Merge::Retaining | Merge::Replace) => Topology::Fields,
        }
    }
}

impl Merge {
    /// The field that tells items apart.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::ByKey(keys) | Self::ByKeyRetaining(keys) => keys.first().map(|key| key.name),
            Self::Plain | Self::Set | Self::Retaining | Self::Replace => None,
        }
    }

    /// The value of `x-kubernetes-patch-strategy`.
    pub fn strategy(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::ByKey(_) | Self::Set => Some("merge"),
            Self::ByKeyRetaining(_) => Some("merge,retainKeys"),
            Self::Retaining => Some("retainKeys"),
            Self::Replace => Some("replace"),
        }
    }
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// What is known of a kind's type, by its OpenAPI definition: `io.k8s.api.core.v1.Pod`.
pub fn of(definition: &str) -> Option<&'static Type> {
    all().find(|known| known.name == definition)
}

/// Every type that is known.
pub fn all() -> impl Iterator<Item = &'static Type> {
    TYPES.iter().chain(workloads::TYPES).copied()
}

const fn plain(name: &'static str, of: &'static Type) -> Field {
    Field {
        name,
        merge: Merge::Plain,
        owned: Owned::AsMerged,
        of: Some(of),
    }
}

const fn by_key(name: &'static str, keys: &'static [Key], of: Option<&'static Type>) -> Field {
    Field {
        name,
        merge: Merge::ByKey(keys),
        owned: Owned::AsMerged,
        of,
    }
}

const fn retaining(name: &'static str, keys: &'static [Key]) -> Field {
    Field {
        name,
        merge: Merge::ByKeyRetaining(keys),
        owned: Owned::AsMerged,
        of: None,
    }
}

const fn set(name: &'static str) -> Field {
    Field {
        name,
        merge: Merge::Set,
        owned: Owned::AsMerged,
        of: None,
    }
}

/// A structure or map with one owner.
const fn whole(name: &'static str) -> Field {
    Field {
        name,
        merge: Merge::Plain,
        owned: Owned::Whole,
        of: None,
    }
}

/// A list that strategic merging replaces and server-side apply merges.
const fn items(name: &'static str, keys: &'static [Key]) -> Field {
    Field {
        name,
        merge: Merge::Plain,
        owned: Owned::Items(keys),
        of: None,
    }
}

/// A list of plain values that strategic merging replaces and server-side apply takes as a set.
const fn values(name: &'static str) -> Field {
    Field {
        name,
        merge: Merge::Plain,
        owned: Owned::Values,
        of: None,
    }
}

const fn key(name: &'static str) -> Key {
    Key {
        name,
        default: None,
    }
}

const PROTOCOL: Key = Key {
    name: "protocol",
    default: Some("TCP"),
};
const NAME: &[Key] = &[key("name")];
const TYPE: &[Key] = &[key("type")];
const IP: &[Key] = &[key("ip")];

static OBJECT_META: Type = Type {
    name: "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    fields: &[
        by_key("ownerReferences", &[key("uid")], None),
        set("finalizers"),
    ],
};

const METADATA: Field = plain("metadata", &OBJECT_META);

static ENV_VAR: Type = Type {
    name: "io.k8s.api.core.v1.EnvVar",
    fields: &[plain("valueFrom", &ENV_VAR_SOURCE)],
};

static ENV_VAR_SOURCE: Type = Type {
    name: "io.k8s.api.core.v1.EnvVarSource",
    fields: &[
        whole("configMapKeyRef"),
        whole("fieldRef"),
        whole("resourceFieldRef"),
        whole("secretKeyRef"),
    ],
};

static CONTAINER: Type = Type {
    name: "io.k8s.api.core.v1.Container",
    fields: CONTAINER_FIELDS,
};

static EPHEMERAL_CONTAINER: Type = Type {
    name: "io.k8s.api.core.v1.EphemeralContainer",
    fields: CONTAINER_FIELDS,
};

const CONTAINER_FIELDS: &[Field] = &[
    by_key("env", NAME, Some(&ENV_VAR)),
    by_key("ports", &[key("containerPort"), PROTOCOL], None),
    by_key("volumeMounts", &[key("mountPath")], None),
    by_key("volumeDevices", &[key("devicePath")], None),
];

static POD_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.PodSpec",
    fields: &[
        by_key("containers", NAME, Some(&CONTAINER)),
        by_key("initContainers", NAME, Some(&CONTAINER)),
        by_key("ephemeralContainers", NAME, Some(&EPHEMERAL_CONTAINER)),
        retaining("volumes", NAME),
        retaining("resourceClaims", NAME),
        by_key("imagePullSecrets", NAME, None),
        by_key("hostAliases", IP, None),
        by_key("schedulingGates", NAME, None),
        whole("nodeSelector"),
        by_key(
            "topologySpreadConstraints",
            &[key("topologyKey"), key("whenUnsatisfiable")],
            None,
        ),
    ],
};

static POD_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.PodStatus",
    fields: &[
        by_key("conditions", TYPE, None),
        by_key("podIPs", IP, None),
        by_key("hostIPs", IP, None),
        retaining("resourceClaimStatuses", NAME),
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
            owned: Owned::AsMerged,
            of: None,
        },
        whole("selector"),
        plain("template", &POD_TEMPLATE_SPEC),
    ],
};

static DEPLOYMENT_STATUS: Type = Type {
    name: "io.k8s.api.apps.v1.DeploymentStatus",
    fields: &[by_key("conditions", TYPE, None)],
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
    fields: &[whole("selector"), plain("template", &POD_TEMPLATE_SPEC)],
};

static REPLICA_SET_STATUS: Type = Type {
    name: "io.k8s.api.apps.v1.ReplicaSetStatus",
    fields: &[by_key("conditions", TYPE, None)],
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
    fields: &[
        by_key("ports", &[key("port"), PROTOCOL], None),
        whole("selector"),
    ],
};

static SERVICE_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.ServiceStatus",
    fields: &[by_key("conditions", TYPE, None)],
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
    fields: &[METADATA, by_key("secrets", NAME, None)],
};

static NODE_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.NodeSpec",
    fields: &[set("podCIDRs")],
};

static NODE_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.NodeStatus",
    fields: &[
        by_key("conditions", TYPE, None),
        by_key("addresses", TYPE, None),
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
    fields: &[by_key("conditions", TYPE, None)],
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
static NETWORK_POLICY_SPEC: Type = Type {
    name: "io.k8s.api.networking.v1.NetworkPolicySpec",
    fields: &[whole("podSelector")],
};
static NETWORK_POLICY: Type = Type {
    name: "io.k8s.api.networking.v1.NetworkPolicy",
    fields: &[METADATA, plain("spec", &NETWORK_POLICY_SPEC)],
};
static SIGNING_REQUEST_STATUS: Type = Type {
    name: "io.k8s.api.certificates.v1.CertificateSigningRequestStatus",
    fields: &[items("conditions", TYPE)],
};
static SIGNING_REQUEST: Type = Type {
    name: "io.k8s.api.certificates.v1.CertificateSigningRequest",
    fields: &[METADATA, plain("status", &SIGNING_REQUEST_STATUS)],
};

static LIMIT_RANGE: Type = Type {
    name: "io.k8s.api.core.v1.LimitRange",
    fields: &[METADATA],
};
static RESOURCE_QUOTA_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.ResourceQuotaSpec",
    fields: &[whole("scopeSelector")],
};
static RESOURCE_QUOTA: Type = Type {
    name: "io.k8s.api.core.v1.ResourceQuota",
    fields: &[METADATA, plain("spec", &RESOURCE_QUOTA_SPEC)],
};
static VOLUME_NODE_AFFINITY: Type = Type {
    name: "io.k8s.api.core.v1.VolumeNodeAffinity",
    fields: &[whole("required")],
};
static PERSISTENT_VOLUME_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.PersistentVolumeSpec",
    fields: &[plain("nodeAffinity", &VOLUME_NODE_AFFINITY)],
};
static PERSISTENT_VOLUME: Type = Type {
    name: "io.k8s.api.core.v1.PersistentVolume",
    fields: &[METADATA, plain("spec", &PERSISTENT_VOLUME_SPEC)],
};
static PERSISTENT_VOLUME_CLAIM_SPEC: Type = Type {
    name: "io.k8s.api.core.v1.PersistentVolumeClaimSpec",
    fields: &[whole("selector"), whole("dataSource")],
};
static PERSISTENT_VOLUME_CLAIM_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
    fields: &[by_key("conditions", TYPE, None)],
};
static PERSISTENT_VOLUME_CLAIM: Type = Type {
    name: "io.k8s.api.core.v1.PersistentVolumeClaim",
    fields: &[
        METADATA,
        plain("spec", &PERSISTENT_VOLUME_CLAIM_SPEC),
        plain("status", &PERSISTENT_VOLUME_CLAIM_STATUS),
    ],
};
static INGRESS_SERVICE_BACKEND: Type = Type {
    name: "io.k8s.api.networking.v1.IngressServiceBackend",
    fields: &[whole("port")],
};
static INGRESS_BACKEND: Type = Type {
    name: "io.k8s.api.networking.v1.IngressBackend",
    fields: &[
        whole("resource"),
        plain("service", &INGRESS_SERVICE_BACKEND),
    ],
};
static INGRESS_SPEC: Type = Type {
    name: "io.k8s.api.networking.v1.IngressSpec",
    fields: &[plain("defaultBackend", &INGRESS_BACKEND)],
};
static INGRESS: Type = Type {
    name: "io.k8s.api.networking.v1.Ingress",
    fields: &[METADATA, plain("spec", &INGRESS_SPEC)],
};
static INGRESS_CLASS: Type = Type {
    name: "io.k8s.api.networking.v1.IngressClass",
    fields: &[METADATA],
};
static IP_ADDRESS: Type = Type {
    name: "io.k8s.api.networking.v1.IPAddress",
    fields: &[METADATA],
};
static SERVICE_CIDR_STATUS: Type = Type {
    name: "io.k8s.api.networking.v1.ServiceCIDRStatus",
    fields: &[by_key("conditions", TYPE, None)],
};
static SERVICE_CIDR: Type = Type {
    name: "io.k8s.api.networking.v1.ServiceCIDR",
    fields: &[METADATA, plain("status", &SERVICE_CIDR_STATUS)],
};
static RUNTIME_CLASS_SCHEDULING: Type = Type {
    name: "io.k8s.api.node.v1.Scheduling",
    fields: &[whole("nodeSelector")],
};
static RUNTIME_CLASS: Type = Type {
    name: "io.k8s.api.node.v1.RuntimeClass",
    fields: &[METADATA, plain("scheduling", &RUNTIME_CLASS_SCHEDULING)],
};
static PRIORITY_CLASS: Type = Type {
    name: "io.k8s.api.scheduling.v1.PriorityClass",
    fields: &[METADATA],
};
static CSI_DRIVER: Type = Type {
    name: "io.k8s.api.storage.v1.CSIDriver",
    fields: &[METADATA],
};
static CSI_NODE_SPEC: Type = Type {
    name: "io.k8s.api.storage.v1.CSINodeSpec",
    fields: &[by_key("drivers", NAME, None)],
};
static CSI_NODE: Type = Type {
    name: "io.k8s.api.storage.v1.CSINode",
    fields: &[METADATA, plain("spec", &CSI_NODE_SPEC)],
};
static CSI_STORAGE_CAPACITY: Type = Type {
    name: "io.k8s.api.storage.v1.CSIStorageCapacity",
    fields: &[METADATA, whole("nodeTopology")],
};
static STORAGE_CLASS: Type = Type {
    name: "io.k8s.api.storage.v1.StorageClass",
    fields: &[METADATA],
};
static VOLUME_ATTACHMENT: Type = Type {
    name: "io.k8s.api.storage.v1.VolumeAttachment",
    fields: &[METADATA],
};
static VOLUME_ATTRIBUTES_CLASS: Type = Type {
    name: "io.k8s.api.storage.v1.VolumeAttributesClass",
    fields: &[METADATA],
};

static ROLE: Type = Type {
    name: "io.k8s.api.rbac.v1.Role",
    fields: &[METADATA],
};
static ROLE_BINDING: Type = Type {
    name: "io.k8s.api.rbac.v1.RoleBinding",
    fields: &[METADATA, whole("roleRef")],
};
static CLUSTER_ROLE: Type = Type {
    name: "io.k8s.api.rbac.v1.ClusterRole",
    fields: &[METADATA],
};
static CLUSTER_ROLE_BINDING: Type = Type {
    name: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    fields: &[METADATA, whole("roleRef")],
};

static COMPONENT_STATUS: Type = Type {
    name: "io.k8s.api.core.v1.ComponentStatus",
    fields: &[METADATA, by_key("conditions", TYPE, None)],
};

static TYPES: &[&Type] = &[
    &COMPONENT_STATUS,
    &OBJECT_META,
    &ENV_VAR,
    &ENV_VAR_SOURCE,
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
    &NETWORK_POLICY_SPEC,
    &NETWORK_POLICY,
    &SIGNING_REQUEST_STATUS,
    &SIGNING_REQUEST,
    &LIMIT_RANGE,
    &RESOURCE_QUOTA_SPEC,
    &RESOURCE_QUOTA,
    &VOLUME_NODE_AFFINITY,
    &PERSISTENT_VOLUME_SPEC,
    &PERSISTENT_VOLUME,
    &PERSISTENT_VOLUME_CLAIM_SPEC,
    &PERSISTENT_VOLUME_CLAIM_STATUS,
    &PERSISTENT_VOLUME_CLAIM,
    &INGRESS_SERVICE_BACKEND,
    &INGRESS_BACKEND,
    &INGRESS_SPEC,
    &INGRESS,
    &INGRESS_CLASS,
    &IP_ADDRESS,
    &SERVICE_CIDR_STATUS,
    &SERVICE_CIDR,
    &RUNTIME_CLASS_SCHEDULING,
    &RUNTIME_CLASS,
    &PRIORITY_CLASS,
    &CSI_DRIVER,
    &CSI_NODE_SPEC,
    &CSI_NODE,
    &CSI_STORAGE_CAPACITY,
    &STORAGE_CLASS,
    &VOLUME_ATTACHMENT,
    &VOLUME_ATTRIBUTES_CLASS,
    &ROLE,
    &ROLE_BINDING,
    &CLUSTER_ROLE,
    &CLUSTER_ROLE_BINDING,
];
