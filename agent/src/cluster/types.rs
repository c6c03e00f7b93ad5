//! The slim objects: only what the node uses. Ten thousand services must not cost a hundred megabytes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::ignored::Ignored;

/// A name that many objects share (a namespace, a node, a zone) or that is read from many places.
pub type Name = Arc<str>;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub namespace: Name,
    pub name: Name,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<Name>, name: impl Into<Name>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that services know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// A Service, as far as the node needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `clusterIPs`; empty for headless and ExternalName services.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `externalName`, for `type: ExternalName`.
    pub external_name: Option<Name>,
    pub ports: Vec<ServicePort>,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds` when `sessionAffinity: ClientIP`.
    pub affinity_timeout_s: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    pub traffic_distribution: Option<Name>,
    /// Annotation `kernelet.io/locality`.
    pub locality: Option<Locality>,
    pub publish_not_ready: bool,
    /// Label `service.kubernetes.io/service-proxy-name`: another proxy's service, which ours leaves alone.
    pub proxy_name: Option<Name>,
    /// Label `service.kubernetes.io/headless`: no proxy's service, whatever address it has.
    pub not_for_proxies: bool,
    /// When it was made, in seconds since 1970; 0 when unknown.
    pub created: i64,
    pub uid: Option<uuid::Uuid>,
    /// What of it cannot be used.
    pub ignored: Box<[Ignored]>,
}

/// Where a service's connections go first, where nothing of Kubernetes' own says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Locality {
    /// To backends on the node.
    #[default]
    Node,
    /// To backends in the node's zone, evenly.
    Zone,
    /// To all backends, evenly.
    Cluster,
}

/// One port of a [`Service`]. `port` is in host order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the service has one unnamed port. Matches the slice's port name.
    pub name: Name,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// An EndpointSlice, as far as the node needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Name of the service that it belongs to (label `kubernetes.io/service-name`), in the slice's namespace.
    pub service: Name,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// When the world made it as it is (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
    pub changed: Option<Timestamp>,
    /// Labels say that no proxy, or another one, routes to it. DNS answers with it all the same.
    pub not_for_proxies: bool,
    /// What of it cannot be used.
    pub ignored: Box<[Ignored]>,
}

/// One port of a [`Slice`]. `port` is in host order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Name,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint of a [`Slice`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Name>,
    pub zone: Option<Name>,
    pub hostname: Option<Name>,
    /// Name of the pod behind it, in the slice's namespace.
    pub pod: Option<Name>,
    /// Who should use it, if its controller says so.
    pub hints: Option<Box<Hints>>,
}

/// Who should use an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub nodes: Vec<Name>,
    pub zones: Vec<Name>,
}

/// A Node, as far as its peers need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub pod_cidrs: Vec<IpNet>,
    pub internal_ips: Vec<IpAddr>,
    pub zone: Option<Name>,
}
