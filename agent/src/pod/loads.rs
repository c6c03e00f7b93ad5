//! How the pods of this node are, asked by address: their CPU, and their listeners' queues.

use std::net::IpAddr;
use std::path::PathBuf;

use super::paths::Paths;
use super::spec::QosClass;
use super::table::PodTable;
use crate::dataplane::{Backlog, Listeners};
use crate::network::namespaces::Namespace;
use crate::runtime::cpu::{CpuCounters, CpuHierarchy};

/// Finds pods by their address.
#[derive(Debug)]
pub struct Loads {
    pods: PodTable,
    paths: Paths,
    hierarchy: Option<CpuHierarchy>,
    listeners: Listeners,
}

impl Loads {
    pub fn new(pods: PodTable, paths: Paths) -> Self {
        Self {
            hierarchy: CpuHierarchy::find(&paths.hierarchies),
            pods,
            paths,
            listeners: Listeners::default(),
        }
    }

    /// The accept queue of the pod that has this address alone; `None` also for a pod in the node's own network.
    pub fn backlog(&mut self, address: IpAddr, port: [u8; 2]) -> Option<Backlog> {
        let pin = self
            .paths
            .pin(Namespace::Net, &self.pods.alone_at(address)?);
        // A pod that is about to go has no listener to speak of.
        self.listeners.backlog(&pin, port).ok().flatten()
    }

    /// CPU counters of that pod, or of the one of its containers that is throttled the most.
    pub fn cpu(&self, address: IpAddr) -> Option<CpuCounters> {
        let hierarchy = self.hierarchy.as_ref()?;
        let uid = self.pods.alone_at(address)?;
        let pod = QosClass::ALL
            .into_iter()
            .map(|class| self.paths.cgroup(&uid, class))
            .find(|cgroup| hierarchy.directory(cgroup).is_dir())?;
        let children = std::fs::read_dir(hierarchy.directory(&pod));
        let containers = children.into_iter().flatten().flatten();
        let containers: Vec<PathBuf> = containers
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| pod.join(entry.file_name()))
            .collect();
        let all = std::iter::once(&pod).chain(&containers);
        let all = all.filter_map(|cgroup| hierarchy.read(cgroup));
        // Only what has a limit is throttled. Of equals the pod itself.
        all.reduce(|worst, next| {
            let rank = |counters: &CpuCounters| (counters.limit.is_some(), counters.throttled);
            if rank(&next) > rank(&worst) {
                next
            } else {
                worst
            }
        })
    }

    /// Lets go of the pods that were not asked for since the last call.
    pub fn rest(&mut self) {
        self.listeners.rest();
    }
}
