//! What the other parts of the agent see of the pods: one plain summary each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// The pods of this node. Clones share it; the pod workers write it.
#[derive(Clone, Debug, Default)]
pub struct PodTable(Arc<RwLock<BTreeMap<String, PodSummary>>>);

/// One pod, as people ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSummary {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// `Pending`, `Running` …
    pub phase: String,
    pub ready: bool,
    pub addresses: Vec<IpAddr>,
    pub containers: Vec<ContainerSummary>,
}

/// One container of a [`PodSummary`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSummary {
    pub name: String,
    /// containerd's id.
    pub id: String,
    /// `running`, or why it is not: `CrashLoopBackOff` …
    pub state: String,
    pub restarts: u32,
    pub image: String,
}

impl PodTable {
    /// Puts a pod, or replaces what was known of it.
    pub fn put(&self, pod: PodSummary) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod.uid.clone(), pod);
    }

    pub fn remove(&self, uid: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    /// All pods, by namespace and name.
    pub fn list(&self) -> Vec<PodSummary> {
        let pods = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = pods.values().cloned().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all
    }
}
