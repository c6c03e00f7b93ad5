//! Where policy meets the pods' network: at a pod's link before it is up, and before a pod's first container starts.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_ebpf::abi::LinkIndex;

use super::engine::Engine;
use crate::network::addresses::veth_name;
use crate::network::{LinkGuard, NetworkError, PodNetwork};

/// How long a pod waits for its policies before it starts all the same, closed: its containers need not hear anybody to
/// start, and probes of the node reach them.
const PATIENCE: Duration = Duration::from_secs(5);

/// A guard that sees to a link's policies before `inner` sees to the rest.
pub struct PolicyGuard {
    pub engine: Engine,
    pub inner: Arc<dyn LinkGuard>,
}

impl fmt::Debug for PolicyGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyGuard").finish_non_exhaustive()
    }
}

impl LinkGuard for PolicyGuard {
    fn guard(&self, index: u32, name: &str, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        let connected = self.engine.connected(LinkIndex(index), name, addresses);
        connected.map_err(|error| NetworkError::Guard(Box::new(error)))?;
        self.inner.guard(index, name, addresses)
    }

    fn withdraw(&self, index: u32) -> Result<(), NetworkError> {
        self.inner.withdraw(index)
    }

    fn forget(&self, index: u32) -> Result<(), NetworkError> {
        self.engine.disconnected(LinkIndex(index));
        self.inner.forget(index)
    }

    fn sweep(&self) -> Result<(), NetworkError> {
        self.inner.sweep()
    }

    fn keep_only(&self, links: &[u32]) -> Result<(), NetworkError> {
        let known: Vec<LinkIndex> = links.iter().copied().map(LinkIndex).collect();
        self.engine.links_are_known(&known);
        self.inner.keep_only(links)
    }
}

/// A network in which a pod is connected when its policies are in force.
pub struct PolicedNetwork<N> {
    pub engine: Engine,
    pub inner: Arc<N>,
}

#[async_trait::async_trait]
impl<N: PodNetwork> PodNetwork for PolicedNetwork<N> {
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let addresses = self.inner.attach(pod_uid, netns).await?;
        let name = veth_name(pod_uid);
        // Too late is no error: the pod is closed until then.
        let _ = tokio::time::timeout(PATIENCE, self.engine.settled(&name)).await;
        Ok(addresses)
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        self.inner.detach(pod_uid).await
    }
}
