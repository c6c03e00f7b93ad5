//! The pod network: addresses, veth pairs, routes between nodes.

pub mod addresses;
pub mod namespaces;
pub mod routes;

use std::net::IpAddr;
use std::path::Path;

/// Connects pods to the network. The pod half calls it; a test can put a failing one in its place.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync {
    /// Gives the network namespace at `netns` an address and connects it; the same answer again for the same pod.
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError>;
    /// Disconnects the pod and frees its address. Succeeds when there is nothing left to do.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
}

/// Why a pod could not be connected or disconnected.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the node's pod range is taken; pods must go before new ones can start.
    #[error("no free pod address in {0}")]
    NoFreeAddress(ipnet::IpNet),
}
