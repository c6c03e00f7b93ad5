//! The pod network: addresses, veth pairs, routes and the tunnel between nodes.
//!
//! What to do is decided by [`ranges`], [`pool`], [`addresses`] and [`routes`], which are pure; [`netlink`] does it. [`pods`]
//! connects pods and keeps them connected, [`routing`] keeps the routes to other nodes and the [`tunnel`] that some of them
//! need, [`uplinks`] the links to other machines, of which
//! [`xdp`] says where the network stack is gone round, [`node_addresses`] where node ports are answered; [`monitor`] wakes them
//! when somebody changes the network.

pub mod addresses;
pub mod leftovers;
pub mod masquerade;
mod messages;
pub mod monitor;
pub mod namespaces;
pub mod near;
pub mod netlink;
pub mod node_addresses;
pub mod pods;
pub mod pool;
pub mod ranges;
pub mod routes;
pub mod routing;
mod sysctl;
#[cfg(test)]
mod tests;
pub mod tunnel;
mod uplink;
pub mod uplinks;
pub mod xdp;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Connects pods to the network. The pod half calls it; a test can put a failing one in its place.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync {
    /// Gives the network namespace at `netns` an address and connects it; the same answer again for the same pod.
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError>;
    /// Disconnects the pod and frees its address. Succeeds when there is nothing left to do.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
}

/// What stands guard at the node's end of pods' links. The pod half of the packets' path is one; tests have others.
pub trait LinkGuard: Send + Sync + std::fmt::Debug {
    /// Called before the link is set up, and for links that an earlier agent made: from now on only these are the
    /// addresses of the pod at its other end. Repeating it is safe.
    fn guard(&self, index: u32, name: &str, addresses: &[IpAddr]) -> Result<(), NetworkError>;
    /// A link is about to go: from now on nothing leads to its pod but the kernel's routes, which go with it.
    fn withdraw(&self, index: u32) -> Result<(), NetworkError>;
    /// A link has gone.
    fn forget(&self, index: u32) -> Result<(), NetworkError>;
    /// Links may have gone without a word: nothing leads to pods at such any more. Others may be made meanwhile.
    fn sweep(&self) -> Result<(), NetworkError>;
    /// All links but these have gone.
    fn keep_only(&self, links: &[u32]) -> Result<(), NetworkError>;
}

/// Why a pod could not be connected or disconnected. Trying again is safe after each of them.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the node's pod ranges is taken; pods must go before new ones can start.
    #[error("no free pod address in {0}")]
    NoFreeAddress(ranges::Ranges),
    /// Pods would take the addresses of machines.
    #[error(
        "the node's pod range {range} overlaps {network}, the network of its own link {link}: \
         give the cluster a --pod-cidr that no machine's address is in, delete the node and let it join again"
    )]
    Overlap {
        range: ipnet::IpNet,
        network: ipnet::IpNet,
        link: String,
    },
    #[error(
        "pods shall have IPv6 addresses, but this node's kernel has IPv6 switched off (ipv6.disable=1)"
    )]
    NoIpv6,
    #[error(
        "--pod-mtu {said} is more than the {uplink} of link {link}, by which pods' packets leave"
    )]
    MtuTooLarge {
        said: u32,
        uplink: u32,
        link: String,
    },
    #[error(
        "pods' packets of {0} bytes are fewer than the 1280 that IPv6 needs; see --pod-mtu and the MTU of the node's link"
    )]
    MtuTooSmall(u32),
    /// The node's own address is on none of its links, so its uplink is unknown.
    #[error("no network link of this node has its address {0}; name another with --node-ip")]
    NoUplink(IpAddr),
    /// A link went while it was being set up, most likely with the pod's namespace.
    #[error("network link {0} is gone")]
    LinkGone(String),
    #[error("cannot open the network namespace {}: {source}", path.display())]
    OpenNetns { path: PathBuf, source: io::Error },
    #[error("cannot set {} to {value}: {source}", path.display())]
    Sysctl {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    /// Without its guard, a pod's link stays down.
    #[error("a pod's link cannot be guarded")]
    Guard(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Namespace(#[from] namespaces::NamespaceError),
    #[error(transparent)]
    Netlink(#[from] netlink::NetlinkError),
}
