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

/// Starts the names of pods that stand among services. No object's own name has a slash.
const POD: &str = "pod/";

impl ObjectKey {
    /// A pod, where what has an address is else a service: the name is as `kubectl` writes it.
    pub fn of_pod(namespace: &str, name: &str) -> Self {
        Self::new(namespace, format!("{POD}{name}"))
    }

    /// The name of the pod that it is, if it is one.
    pub fn pod_name(&self) -> Option<&str> {
        self.name.strip_prefix(POD)
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
    /// How clients outside the cluster reach it; `None` for most services.
    pub exposed: Option<Box<Exposed>>,
    /// `loadBalancerClass` names a load balancer that is not ours: somebody else announces its addresses.
    pub balanced_elsewhere: bool,
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

/// What of a Service is for clients outside the cluster: `type: NodePort`, `type: LoadBalancer`, or external IPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposed {
    /// The type gives its ports node ports, and they are answered.
    pub node_ports: bool,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, but for those with `ipMode: Proxy`: the load balancer is meant to see that
    /// traffic.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// `healthCheckNodePort`, where a load balancer asks it.
    pub health_check_node_port: Option<u16>,
    /// `loadBalancerSourceRanges`; `None` lets everybody in, an empty list nobody.
    pub source_ranges: Option<Arc<[IpNet]>>,
    /// Annotation `kernelet.io/forwarding: dsr`.
    pub direct_return: bool,
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

/// The host ports of a pod of this node that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPorts {
    /// Of the pod: at most one of each family.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<HostPort>,
    /// When the pod was made, in seconds since 1970.
    pub created: i64,
    pub uid: Name,
}

/// One of them. Ports are in host order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub name: Name,
    pub protocol: Protocol,
    /// `hostIP`, where it names one address; `None` for every address of the node, of either family.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub container_port: u16,
}

/// A Node, as far as its peers need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub pod_cidrs: Vec<IpNet>,
    pub internal_ips: Vec<IpAddr>,
    pub zone: Option<Name>,
}
