//! The pod network: addresses, veth pairs, routes between nodes.
//!
//! What to do is decided by [`addresses`] and [`routes`], which are pure; [`netlink`] does it. [`pods`] connects pods and
//! keeps them connected, [`routing`] keeps the routes to other nodes; [`monitor`] wakes both when somebody changes the network.

pub mod addresses;
pub mod leftovers;
mod messages;
pub mod monitor;
pub mod namespaces;
pub mod netlink;
pub mod pods;
pub mod routes;
pub mod routing;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Connects pods to the network. The pod half calls it; a test can put a failing one in its place.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync {
    /// Gives the network namespace at `netns` an address and connects it; the same answer again for the same pod.
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError>;
    /// Disconnects the pod and frees its address. Succeeds when there is nothing left to do.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
}

/// Why a pod could not be connected or disconnected. Trying again is safe after each of them.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the node's pod range is taken; pods must go before new ones can start.
    #[error("no free pod address in {0}")]
    NoFreeAddress(ipnet::IpNet),
    /// The node's own address is on none of its links, so its uplink is unknown.
    #[error("no network link of this node has its address {0}; name another with --node-ip")]
    NoUplink(Ipv4Addr),
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
    #[error(transparent)]
    Namespace(#[from] namespaces::NamespaceError),
    #[error(transparent)]
    Netlink(#[from] netlink::NetlinkError),
}
