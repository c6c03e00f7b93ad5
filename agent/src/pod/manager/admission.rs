//! Which new pods the node takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::super::admission::Taken;
use super::super::demand::{
    Demand, EVICTED, Eviction, NODE_SHUTDOWN, OS_NOT_SUPPORTED, SYSCTL_FORBIDDEN,
};
use super::super::shared::Order;
use super::super::spec::PodView;
use super::super::{app_armor, host_ports, node_affinity, sysctls};
use super::Pods;

/// Why a node that goes down takes no new pods, as upstream.
const SHUTTING_DOWN: &str = "Pod was rejected as the node is shutting down.";
/// Why it takes none that is for another operating system.
const OTHER_OS: &str = "Failed to admit pod as the OS field doesn't match node OS";
/// So long the API server is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pod that takes what the node gives to pods. One that is deleted, and is here no longer than it takes to end, has given
/// its place to another.
fn holder(order: &Order) -> Option<&Arc<PodView>> {
    let pod = order.pod.as_ref()?;
    let is_over = matches!(pod.phase(), Some("Succeeded" | "Failed"));
    (!is_over && !order.is_rejected && order.vanished_by.is_none()).then_some(pod)
}

/// The end of a pod before it began.
fn rejected(reason: &'static str, why: &str) -> Eviction {
    Eviction {
        reason,
        message: format!("Pod was rejected: {why}"),
        by: Timestamp::now(),
    }
}

impl Pods {
    /// Whether the node cannot have a new pod, as another has its host ports. The scheduler sees to it that this does not
    /// come to pass; not every pod is its.
    pub(super) fn is_rejected(&self, pod: &PodView) -> bool {
        if !self.is_new(pod) {
            return false;
        }
        let clashes = |order: &Order| holder(order).is_some_and(|it| host_ports::clash(pod, it));
        let mut workers = self.workers.values();
        workers.any(|worker| clashes(&worker.orders.borrow()))
    }

    /// Whether nothing of the pod was on the node before.
    pub(super) fn is_new(&self, pod: &PodView) -> bool {
        let begun = pod.phase().is_some_and(|phase| phase != "Pending");
        !begun && !self.adopted.contains_key(&pod.id.uid)
    }

    /// The end, before it began, of a new pod that the node does not take.
    pub(super) fn refusal(&self, pod: &PodView) -> Option<Eviction> {
        if !self.is_new(pod) {
            return None;
        }
        let (reason, why) = self.why_refused(pod)?;
        Some(rejected(reason, &why))
    }

    fn why_refused(&self, pod: &PodView) -> Option<(&'static str, String)> {
        let settings = &self.shared.settings;
        if self.is_shutting_down {
            return Some((NODE_SHUTDOWN, SHUTTING_DOWN.to_owned()));
        }
        let os = pod.spec().os.as_ref();
        if os.is_some_and(|os| os.name != "linux") {
            return Some((OS_NOT_SUPPORTED, OTHER_OS.to_owned()));
        }
        if !settings.app_armor && app_armor::is_required(pod) {
            return Some((app_armor::REASON, app_armor::WORDS.to_owned()));
        }
        let sysctl = sysctls::refusal(pod, &settings.allowed_sysctls);
        sysctl
            .map(|why| (SYSCTL_FORBIDDEN, why))
            .or_else(|| Some((EVICTED, self.pressures.refusal(pod)?)))
            .or_else(|| self.shortage(pod))
    }

    /// What has to be asked of the node before a new pod may begin: whether it is one that the pod asks for. Its labels are
    /// read at that time, as the scheduler may know newer ones than any watch of ours has told. Gives whether the pod
    /// is to be evicted. Where nobody answers, whoever put the pod here is believed.
    pub(super) fn look_at_node(&self, order: &Order) -> impl Future<Output = bool> + Send + use<> {
        let pod = order.pod.clone();
        let pod = pod.filter(|pod| order.evicted.is_none() && self.is_new(pod));
        let (client, demands) = (self.shared.client.clone(), self.demands.clone());
        let name = self.shared.settings.node_name.clone();
        async move {
            let Some(pod) = pod else { return false };
            let labels = match node_affinity::needs_labels(pod.spec()) {
                false => BTreeMap::new(),
                true => {
                    let nodes = Api::<Node>::all(client);
                    let node = tokio::time::timeout(PATIENCE, nodes.get_metadata(&name)).await;
                    let Ok(Ok(node)) = node else { return false };
                    node.metadata.labels.unwrap_or_default()
                }
            };
            if node_affinity::matches(pod.spec(), &name, &labels) {
                return false;
            }
            let eviction = rejected(node_affinity::REASON, node_affinity::WORDS);
            let uid = pod.id.uid.clone();
            demands.ask(Demand::Evict { uid, eviction }).await
        }
    }

    /// What the node has too little of for a new pod. Those from files are the node's own.
    fn shortage(&self, pod: &PodView) -> Option<(&'static str, String)> {
        if pod.is_static() {
            return None;
        }
        let mut taken = Taken::default();
        for worker in self.workers.values() {
            let order = worker.orders.borrow();
            if let Some(other) = holder(&order).filter(|_| order.evicted.is_none()) {
                taken.add(other);
            }
        }
        taken.shortage(pod, &self.shared.settings.allocatable)
    }
}
