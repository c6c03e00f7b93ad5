//! What the agent knows of the cluster: slim views of the Services, EndpointSlices and Nodes that it watches.
//!
//! One set of watches feeds one [`View`]; the proxy, DNS and the pod network all read it. Only the fields that they use
//! are kept: ten thousand services must not cost a hundred megabytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

/// A transport protocol that services know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A Service, as far as the node needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `clusterIPs`; empty for headless and ExternalName services.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `externalName`, for `type: ExternalName`.
    pub external_name: Option<String>,
    pub ports: Vec<ServicePort>,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds` when `sessionAffinity: ClientIP`.
    pub affinity_timeout_s: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    pub traffic_distribution: Option<String>,
    /// Annotation `kernelet.io/locality`.
    pub locality: Option<String>,
    pub publish_not_ready: bool,
    /// Label `service.kubernetes.io/service-proxy-name`: another proxy's service, which ours leaves alone.
    pub proxy_name: Option<String>,
}

/// One port of a [`Service`]. `port` is in host order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the service has one unnamed port. Matches the slice's port name.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// An EndpointSlice, as far as the node needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Name of the service that it belongs to (label `kubernetes.io/service-name`).
    pub service: String,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

/// One port of a [`Slice`]. `port` is in host order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint of a [`Slice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    pub zone: Option<String>,
    pub hostname: Option<String>,
    /// Name of the pod behind it, in the slice's namespace.
    pub pod: Option<String>,
}

/// A Node, as far as its peers need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub pod_cidrs: Vec<IpNet>,
    pub internal_ips: Vec<IpAddr>,
    pub zone: Option<String>,
}

/// Everything known. `synced` says whether the first full list of each kind has arrived: before that nothing may be
/// concluded from an absence.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub services: BTreeMap<ObjectKey, Service>,
    pub slices: BTreeMap<ObjectKey, Slice>,
    /// Slice keys of each service, so that a change costs what changed.
    pub slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    pub nodes: BTreeMap<String, Node>,
    pub synced: bool,
}
