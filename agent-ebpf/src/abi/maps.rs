//! Names of the maps, in the object and on bpffs.

pub const SERVICES: &str = "SERVICES";
pub const BACKEND_TABLE: &str = "BACKEND_TABLE";
pub const BACKENDS: &str = "BACKENDS";
pub const SOCKETS: &str = "SOCKETS";
pub const SOCK_REVERSE: &str = "SOCK_REVERSE";
pub const AFFINITY: &str = "AFFINITY";
pub const STATS: &str = "STATS";
pub const SERVICE_STATS: &str = "SERVICE_STATS";
pub const CONFIG: &str = "CONFIG";
pub const EVENTS: &str = "EVENTS";
pub const EVENTS_LOST: &str = "EVENTS_LOST";
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
pub const HOST_PORTS: &str = "HOST_PORTS";
pub const SERVICE_PORTS: &str = "SERVICE_PORTS";
pub const TRANSLATING: &str = "TRANSLATING";
pub const STAGES: &str = "STAGES";
pub const POD_RANGES: &str = "POD_RANGES";
pub const MAGLEV: &str = "MAGLEV";
pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
pub const POLICY_PODS: &str = "POLICY_PODS";
pub const POLICY_RULES: &str = "POLICY_RULES";
pub const POLICY_GENERATION: &str = "POLICY_GENERATION";
pub const POLICY_FLOWS: &str = "POLICY_FLOWS";
pub const POLICY_DROPS: &str = "POLICY_DROPS";
pub const IDENTITIES: &str = "IDENTITIES";
pub const PODS: &str = "PODS";
pub const POD_ADDRESSES: &str = "POD_ADDRESSES";
pub const POD_TRAFFIC: &str = "POD_TRAFFIC";
pub const DROPS: &str = "DROPS";
pub const UPLINKS: &str = "UPLINKS";
pub const XDP_LINKS: &str = "XDP_LINKS";
pub const CONNECTIONS: &str = "CONNECTIONS";
pub const FRAGMENTS: &str = "FRAGMENTS";
pub const EXEMPT: &str = "EXEMPT";
pub const NEAR: &str = "NEAR";
pub const FORMERS: &str = "FORMERS";
pub const OUTSIDE_OPENS: &str = "OUTSIDE_OPENS";

/// All of them.
pub const ALL: [&str; 37] = [
    SERVICES,
    BACKEND_TABLE,
    BACKENDS,
    SOCKETS,
    SOCK_REVERSE,
    AFFINITY,
    STATS,
    SERVICE_STATS,
    CONFIG,
    EVENTS,
    EVENTS_LOST,
    NODE_ADDRESSES,
    HOST_PORTS,
    SERVICE_PORTS,
    TRANSLATING,
    STAGES,
    POD_RANGES,
    MAGLEV,
    SOURCE_RANGES,
    POLICY_PODS,
    POLICY_RULES,
    POLICY_GENERATION,
    POLICY_FLOWS,
    POLICY_DROPS,
    IDENTITIES,
    PODS,
    POD_ADDRESSES,
    POD_TRAFFIC,
    DROPS,
    UPLINKS,
    XDP_LINKS,
    CONNECTIONS,
    FRAGMENTS,
    EXEMPT,
    NEAR,
    FORMERS,
    OUTSIDE_OPENS,
];
