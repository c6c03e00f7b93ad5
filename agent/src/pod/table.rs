//! What the other parts of the agent see of the pods: one plain summary each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use agent_ebpf::abi::Address;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::observed::Observed;
use super::probe_counts::ProbeCounts;
use super::resize;
use super::spec::PodView;
use super::status::is_ready;
use crate::runtime::PodRef;

/// The pods of this node. Clones share it; the pod workers write it.
#[derive(Clone, Debug, Default)]
pub struct PodTable {
    summaries: Arc<RwLock<BTreeMap<String, PodSummary>>>,
    /// The same in full, for those that the API or a file has.
    objects: Arc<RwLock<BTreeMap<String, Shown>>>,
    probes: ProbeCounts,
}

/// A pod's object, and the status that was told of it last.
#[derive(Clone, Debug)]
struct Shown {
    pod: Arc<PodView>,
    status: Arc<PodStatus>,
}

/// One pod, as people ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSummary {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// `Pending`, `Running` …
    pub phase: String,
    pub ready: bool,
    /// Its network is the node's.
    pub host_network: bool,
    pub addresses: Vec<IpAddr>,
    pub started_at: Option<Timestamp>,
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
    /// Of one that runs.
    pub started_at: Option<Timestamp>,
}

impl PodSummary {
    /// Which pod it is.
    pub fn id(&self) -> PodRef {
        PodRef {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// What is kept by address of a pod that has addresses of its own.
    pub fn at<T: Copy>(&self, by_address: &BTreeMap<Address, T>) -> Option<T> {
        let mut own = self.addresses.iter();
        own.find_map(|ip| by_address.get(&Address::from(*ip)).copied())
    }

    /// What a status says of a pod, and of its containers whether they run: one whose hook after the start does is not told to.
    pub(super) fn of(pod: &PodView, status: &PodStatus, observed: &Observed) -> PodSummary {
        let id = &pod.id;
        let runs = |id: &str| {
            let mut all = observed.containers.iter();
            all.find(|it| it.id == id && it.is_running())
        };
        let containers = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .chain(&status.ephemeral_container_statuses)
            .flatten();
        PodSummary {
            uid: id.uid.clone(),
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            phase: status.phase.clone().unwrap_or_default(),
            ready: is_ready(status),
            host_network: pod.host_network(),
            started_at: status.start_time.as_ref().map(|time| time.0),
            addresses: status
                .pod_ips
                .iter()
                .flatten()
                .filter_map(|ip| ip.ip.parse().ok())
                .collect(),
            containers: containers
                .map(|container| {
                    let state = container.state.clone().unwrap_or_default();
                    let id = container.container_id.as_deref().unwrap_or_default();
                    let id = id.trim_start_matches("containerd://");
                    let word = match (runs(id), state.waiting, state.terminated) {
                        (Some(_), _, _) => Some("running".to_owned()),
                        (_, Some(waiting), _) => waiting.reason,
                        (_, _, Some(terminated)) => terminated.reason,
                        _ => None,
                    };
                    ContainerSummary {
                        name: container.name.clone(),
                        id: id.to_owned(),
                        state: word.unwrap_or_default(),
                        restarts: u32::try_from(container.restart_count).unwrap_or(0),
                        image: container.image.clone(),
                        started_at: runs(id).map(|it| it.created_at),
                    }
                })
                .collect(),
        }
    }
}

impl PodTable {
    /// Puts a pod, or replaces what was known of it.
    pub fn put(&self, pod: PodSummary) {
        write(&self.summaries).insert(pod.uid.clone(), pod);
    }

    /// Puts a pod's object with its status, or replaces them.
    pub(crate) fn show(&self, pod: &Arc<PodView>, status: &Arc<PodStatus>) {
        let mut objects = write(&self.objects);
        match objects.get_mut(&pod.id.uid) {
            Some(known) => {
                known.pod.clone_from(pod);
                known.status.clone_from(status);
            }
            None => {
                let (pod, status) = (pod.clone(), status.clone());
                objects.insert(pod.id.uid.clone(), Shown { pod, status });
            }
        }
    }

    pub fn remove(&self, uid: &str) {
        write(&self.summaries).remove(uid);
        write(&self.objects).remove(uid);
        self.probes.forget(uid);
    }

    /// The pods that have not ended, as far as they are known to the API.
    pub fn active(&self) -> Vec<Arc<PodView>> {
        let objects = read(&self.objects);
        let ended = |status: &PodStatus| {
            let phase = status.phase.as_deref();
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let active = objects.values().filter(|shown| !ended(&shown.status));
        active.map(|shown| shown.pod.clone()).collect()
    }

    /// The other pods that have not ended, as their nodes have granted them.
    pub(super) fn others(&self, uid: &str) -> Vec<PodView> {
        let objects = read(&self.objects);
        let others = objects.values().filter(|shown| {
            let phase = shown.status.phase.as_deref();
            shown.pod.id.uid != uid && !matches!(phase, Some("Succeeded" | "Failed"))
        });
        others
            .map(|shown| resize::as_told(&shown.pod, &shown.status))
            .collect()
    }

    /// What the pods' probes came to.
    pub fn probes(&self) -> &ProbeCounts {
        &self.probes
    }

    /// The pods' objects, each with the status as it is here. Conditions of others stay in it.
    pub fn objects(&self) -> Vec<Pod> {
        let objects = read(&self.objects);
        let full = |shown: &Shown| {
            let mut object = shown.pod.object.clone();
            let mut status = PodStatus::clone(&shown.status);
            let known = object.status.take().and_then(|status| status.conditions);
            let ours = status.conditions.get_or_insert_default();
            let is_ours = |kind: &str| ours.iter().any(|condition| condition.type_ == kind);
            let others: Vec<_> = known
                .into_iter()
                .flatten()
                .filter(|condition| !is_ours(&condition.type_))
                .collect();
            ours.extend(others);
            object.status = Some(status);
            object
        };
        objects.values().map(full).collect()
    }

    /// The uid of the pod that alone has an address.
    pub fn alone_at(&self, address: IpAddr) -> Option<String> {
        let pods = read(&self.summaries);
        let mut there = pods.values().filter(|pod| pod.addresses.contains(&address));
        let pod = there.next()?;
        there.next().is_none().then(|| pod.uid.clone())
    }

    /// All pods, by namespace and name.
    pub fn list(&self) -> Vec<PodSummary> {
        let pods = read(&self.summaries);
        let mut all: Vec<_> = pods.values().cloned().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all
    }
}

// Each change is one call that cannot stop half-way.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_shown_with_the_newest_status_and_others_conditions() {
        let table = PodTable::default();
        let conditions = |ready: &str| json!([{"type": "Ready", "status": ready}]);
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Pending", "conditions": conditions("False")},
        });
        let gate = json!({"type": "example.com/gate", "status": "True"});
        object["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(gate);
        let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
        let status = json!({"phase": "Running", "conditions": conditions("True")});
        table.show(
            &Arc::new(pod),
            &Arc::new(serde_json::from_value(status).unwrap()),
        );
        let shown = serde_json::to_value(table.objects()).unwrap();
        assert_eq!(shown[0]["spec"]["containers"][0]["name"], "c");
        assert_eq!(
            shown[0]["status"],
            json!({"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "example.com/gate", "status": "True"},
            ]})
        );
        table.remove("u");
        assert!(table.objects().is_empty());
    }
}
