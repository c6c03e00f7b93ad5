//! The loop: follows pods and nodes, chooses at once, binds many at a time.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::SchedulerConfig;
use super::choose::{Choice, choose};
use super::evict::{drive_away, withdraw};
use super::preempt::{Budget, Preemption, preempt};
use super::queue::Queue;
use super::snapshot::{PodInfo, Snapshot};
use super::tell::Teller;
use crate::controllers::cache::{WatchBackoff, report_watch_error};

/// What came of a binding.
struct Bound {
    pod: PodInfo,
    node: String,
    outcome: Result<(), kube::Error>,
}

struct Scheduler {
    client: kube::Client,
    config: SchedulerConfig,
    teller: Teller,
    snapshot: Snapshot,
    queue: Queue,
    /// Chosen for, but not yet seen bound: uid.
    assumed: HashSet<String>,
    /// Grows with each draw, so that equals take turns.
    draws: u64,
    binding: JoinSet<Bound>,
    /// Disruption budgets, by `namespace/name`.
    budgets: HashMap<String, Budget>,
    /// Pods for which others gave way, by uid, and where.
    nominated: HashMap<String, (String, PodInfo)>,
    evicting: JoinSet<()>,
}

/// Places pods until `shutdown`. Survives errors of the API server and starts from whatever it finds.
pub async fn run(client: kube::Client, config: SchedulerConfig, shutdown: CancellationToken) {
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
        .backoff(WatchBackoff::new());
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default())
        .backoff(WatchBackoff::new());
    let api = Api::<Namespace>::all(client.clone());
    let namespaces = watcher(api, watcher::Config::default()).backoff(WatchBackoff::new());
    let api = Api::<PodDisruptionBudget>::all(client.clone());
    let budgets = watcher(api, watcher::Config::default()).backoff(WatchBackoff::new());
    let mut budgets = std::pin::pin!(budgets);
    let mut namespaces = std::pin::pin!(namespaces);
    let mut nodes = std::pin::pin!(nodes);
    let mut pods = std::pin::pin!(pods);
    let mut scheduler = Scheduler {
        teller: Teller::new(client.clone()),
        draws: config.seed,
        client,
        config,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        assumed: HashSet::new(),
        binding: JoinSet::new(),
        budgets: HashMap::new(),
        nominated: HashMap::new(),
        evicting: JoinSet::new(),
    };
    // No pod is placed before all are known: what runs on a node already is not to be counted as free.
    let (mut nodes_listed, mut pods_listed) = (Listing::default(), Listing::default());
    let mut namespaces_listed = Listing::default();
    let mut budgets_listed = Listing::default();
    // To be placed as soon as all is known: new pods, and those whose time to be tried again has come.
    let mut ready: Vec<PodInfo> = Vec::new();
    loop {
        let due = scheduler.queue.next_due();
        let listed = [
            &nodes_listed,
            &pods_listed,
            &namespaces_listed,
            &budgets_listed,
        ];
        let is_synced = listed.iter().all(|listing| listing.is_complete);
        // All arms are cancel-safe: streams, join sets and timers lose nothing when polled in vain.
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = nodes.next() => match event {
                Ok(event) => scheduler.node_event(event, &mut nodes_listed),
                Err(error) => report_watch_error("Node", &error),
            },
            Some(event) = namespaces.next() => match event {
                Ok(event) => scheduler.namespace_event(event, &mut namespaces_listed),
                Err(error) => report_watch_error("Namespace", &error),
            },
            Some(event) = budgets.next() => match event {
                Ok(event) => scheduler.budget_event(event, &mut budgets_listed),
                Err(error) => report_watch_error("PodDisruptionBudget", &error),
            },
            Some(event) = pods.next() => match event {
                Ok(event) => ready.extend(scheduler.pod_event(event, &mut pods_listed)),
                Err(error) => report_watch_error("Pod", &error),
            },
            Some(bound) = scheduler.binding.join_next() => {
                if let Ok(bound) = bound {
                    scheduler.bound(bound);
                }
            }
            () = scheduler.teller.written() => {}
            Some(_) = scheduler.evicting.join_next() => {}
            () = sleep_until(due), if is_synced && due.is_some() => {
                let now = Instant::now();
                ready.extend(scheduler.queue.take_due(now));
            }
        }
        let listed = [
            &nodes_listed,
            &pods_listed,
            &namespaces_listed,
            &budgets_listed,
        ];
        if listed.iter().all(|listing| listing.is_complete) {
            ready.sort_by_key(|pod| std::cmp::Reverse(pod.priority));
            for pod in ready.drain(..) {
                scheduler.schedule(pod);
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    let wait = due.map_or(Duration::MAX, |due| {
        due.saturating_duration_since(Instant::now())
    });
    tokio::time::sleep(wait).await;
}

/// What a list has named so far; whatever it did not name is gone when it is complete.
#[derive(Default)]
struct Listing {
    seen: HashSet<String>,
    is_complete: bool,
}

impl Scheduler {
    fn node_event(&mut self, event: watcher::Event<Node>, listing: &mut Listing) {
        match event {
            watcher::Event::Init => listing.seen.clear(),
            watcher::Event::InitApply(node) => {
                listing.seen.extend(node.metadata.name.clone());
                self.snapshot.set_node(&node);
            }
            watcher::Event::InitDone => {
                for name in self
                    .snapshot
                    .node_names()
                    .into_iter()
                    .filter(|name| !listing.seen.contains(name))
                {
                    self.snapshot.remove_node(&name);
                }
                listing.is_complete = true;
            }
            watcher::Event::Apply(node) => self.snapshot.set_node(&node),
            watcher::Event::Delete(node) => {
                self.snapshot
                    .remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        }
        self.queue.nudge_all();
    }

    fn namespace_event(&mut self, event: watcher::Event<Namespace>, listing: &mut Listing) {
        match event {
            watcher::Event::Init => listing.seen.clear(),
            watcher::Event::InitApply(namespace) => {
                listing.seen.extend(namespace.metadata.name.clone());
                self.snapshot.set_namespace(&namespace);
            }
            watcher::Event::InitDone => {
                self.snapshot
                    .retain_namespaces(|name| listing.seen.contains(name));
                listing.is_complete = true;
            }
            watcher::Event::Apply(namespace) => self.snapshot.set_namespace(&namespace),
            watcher::Event::Delete(namespace) => {
                let gone = namespace.metadata.name;
                self.snapshot
                    .retain_namespaces(|name| Some(name) != gone.as_deref());
            }
        }
        self.queue.nudge_minding();
    }

    fn budget_event(&mut self, event: watcher::Event<PodDisruptionBudget>, listing: &mut Listing) {
        let key = |budget: &PodDisruptionBudget| {
            let meta = &budget.metadata;
            let of = |name: &Option<String>| name.clone().unwrap_or_default();
            format!("{}/{}", of(&meta.namespace), of(&meta.name))
        };
        match event {
            watcher::Event::Init => listing.seen.clear(),
            watcher::Event::InitApply(budget) => {
                listing.seen.insert(key(&budget));
                self.set_budget(key(&budget), &budget);
            }
            watcher::Event::InitDone => {
                self.budgets.retain(|key, _| listing.seen.contains(key));
                listing.is_complete = true;
            }
            watcher::Event::Apply(budget) => self.set_budget(key(&budget), &budget),
            watcher::Event::Delete(budget) => drop(self.budgets.remove(&key(&budget))),
        }
    }

    fn set_budget(&mut self, key: String, budget: &PodDisruptionBudget) {
        match Budget::of(budget) {
            Some(known) => self.budgets.insert(key, known),
            None => self.budgets.remove(&key),
        };
    }

    /// Gives the pod back if it is to be scheduled now.
    fn pod_event(&mut self, event: watcher::Event<Pod>, listing: &mut Listing) -> Option<PodInfo> {
        match event {
            watcher::Event::Init => {
                listing.seen.clear();
                None
            }
            watcher::Event::InitApply(pod) => {
                listing.seen.extend(pod.metadata.uid.clone());
                self.pod_seen(&pod)
            }
            watcher::Event::InitDone => {
                for uid in self
                    .snapshot
                    .placed_uids()
                    .into_iter()
                    .filter(|uid| !listing.seen.contains(uid))
                {
                    self.pod_gone(&uid);
                }
                self.queue.retain(|uid| listing.seen.contains(uid));
                self.nominated.retain(|uid, _| listing.seen.contains(uid));
                listing.is_complete = true;
                None
            }
            watcher::Event::Apply(pod) => self.pod_seen(&pod),
            watcher::Event::Delete(pod) => {
                self.pod_gone(pod.metadata.uid.as_deref().unwrap_or_default());
                None
            }
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.nominated.remove(uid);
        self.queue.forget(uid);
        self.teller.take_back(uid);
        self.assumed.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.nudge_all();
        }
    }

    fn pod_seen(&mut self, pod: &Pod) -> Option<PodInfo> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.pod_gone(uid);
            return None;
        }
        let spec = pod.spec.as_ref()?;
        if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
            self.nominated.remove(uid);
            self.queue.forget(uid);
            self.teller.take_back(uid);
            self.assumed.remove(uid);
            if self.snapshot.place(PodInfo::of(pod), node) {
                self.queue.nudge_minding();
            }
            return None;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            self.nominated.remove(uid);
            self.queue.forget(uid);
            return None;
        }
        let ours = spec.scheduler_name.as_deref().unwrap_or(&self.config.name) == self.config.name;
        let gated = spec
            .scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty());
        if !ours || gated || self.assumed.contains(uid) {
            return None;
        }
        let info = PodInfo::of(pod);
        if self.queue.contains(uid) {
            // Most often it is our own condition that comes back; it alone is no reason to try again.
            self.queue.refresh(info);
            return None;
        }
        // What an earlier scheduler has seen to.
        let status = pod.status.as_ref();
        if let Some(node) = status.and_then(|status| status.nominated_node_name.clone()) {
            self.nominated.insert(uid.to_owned(), (node, info.clone()));
        }
        Some(info)
    }

    fn schedule(&mut self, pod: PodInfo) {
        if self.snapshot.is_placed(&pod.uid) || self.queue.contains(&pod.uid) {
            return;
        }
        self.draws = self.draws.wrapping_add(1);
        let kept = self.keep_room(&pod);
        let choice = choose(&pod, &self.snapshot, self.draws);
        let preemption = match &choice {
            Choice::Node(_) => None,
            Choice::None(_) => Some(self.preempt(&pod)),
        };
        for uid in kept {
            self.snapshot.remove_pod(&uid);
        }
        match choice {
            Choice::Node(node) => {
                self.nominated.remove(&pod.uid);
                self.teller.take_back(&pod.uid);
                self.assumed.insert(pod.uid.clone());
                if self.snapshot.place(pod.clone(), &node) {
                    self.queue.nudge_minding();
                }
                self.binding.spawn(bind(self.client.clone(), pod, node));
            }
            Choice::None(mut message) => {
                match preemption {
                    Some(Preemption::On { node, victims }) => self.drive_away(&pod, node, victims),
                    Some(Preemption::Awaited(why)) => {
                        message = format!("{message} preemption: {why}");
                    }
                    Some(Preemption::None(why)) => {
                        self.withdraw(|uid, _| uid == pod.uid);
                        if self.snapshot.nodes().next().is_some() {
                            message = format!("{message} preemption: {why}");
                        }
                    }
                    None => {}
                }
                debug!(
                    pod = pod.name,
                    namespace = pod.namespace,
                    message,
                    "no node for this pod"
                );
                self.teller.unschedulable(&pod, message);
                self.queue.put_off(pod, Instant::now());
            }
        }
    }

    /// Places pods that are no less important, and for which others gave way, where they did; gives their uids. They are to be
    /// taken out again.
    fn keep_room(&mut self, pod: &PodInfo) -> Vec<String> {
        let mut kept = Vec::new();
        for (uid, (node, other)) in &self.nominated {
            if *uid != pod.uid && other.priority >= pod.priority && !self.snapshot.is_placed(uid) {
                self.snapshot.place(other.clone(), node);
                kept.push(uid.clone());
            }
        }
        kept
    }

    fn preempt(&mut self, pod: &PodInfo) -> Preemption {
        let nominated = self.nominated.get(&pod.uid).map(|(node, _)| node.as_str());
        let budgets: Vec<Budget> = self.budgets.values().cloned().collect();
        preempt(pod, nominated, &mut self.snapshot, &budgets)
    }

    fn drive_away(&mut self, pod: &PodInfo, node: String, victims: Vec<PodInfo>) {
        // Less important pods that were to go there look anew.
        self.withdraw(|_, (on, other)| *on == node && other.priority < pod.priority);
        self.nominated
            .insert(pod.uid.clone(), (node.clone(), pod.clone()));
        let (client, events) = (self.client.clone(), self.teller.events());
        self.evicting
            .spawn(drive_away(client, events, pod.clone(), node, victims));
    }

    /// Keeps no room any more for those pods for which others gave way in vain.
    fn withdraw(&mut self, is_vain: impl Fn(&str, &(String, PodInfo)) -> bool) {
        let vain = self.nominated.extract_if(|uid, place| is_vain(uid, place));
        for (_, (_, pod)) in vain {
            self.evicting.spawn(withdraw(self.client.clone(), pod));
        }
    }

    fn bound(&mut self, Bound { pod, node, outcome }: Bound) {
        match outcome {
            Ok(()) => self.teller.scheduled(&pod, &node),
            // Seen bound or gone meanwhile: the watch knows better than this answer.
            Err(_) if !self.assumed.contains(&pod.uid) => {}
            Err(error) => {
                self.assumed.remove(&pod.uid);
                self.snapshot.remove_pod(&pod.uid);
                if matches!(&error, kube::Error::Api(status) if status.is_not_found()) {
                    self.pod_gone(&pod.uid);
                    return;
                }
                warn!(pod = pod.name, namespace = pod.namespace, node, %error, "cannot bind, trying again");
                let uid = pod.uid.clone();
                self.queue.put_off(pod, Instant::now());
                self.queue.nudge(&uid);
                // The room that it held is free again.
                self.queue.nudge_all();
            }
        }
    }
}

async fn bind(client: kube::Client, pod: PodInfo, node: String) -> Bound {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.clone()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let answer: Result<serde_json::Value, _> = api
        .create_subresource("binding", &pod.name, &PostParams::default(), &binding)
        .await;
    Bound {
        pod,
        node,
        outcome: answer.map(drop),
    }
}
