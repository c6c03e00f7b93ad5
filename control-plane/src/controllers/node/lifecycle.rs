//! Watches over the nodes' signs of life. A silent node is said to be so, its pods leave their Services at once, and after
//! their toleration they are deleted, so that they are replaced elsewhere.
//!
//! ```text
//!  alive ──no sign for the grace period──▶ silent: Ready=Unknown, tainted, pods not ready ──its turn──▶ pods deleted
//!    ▲                                        │
//!    └──────────── reports again ─────────────┘   taints removed
//! ```
//! A sign is a renewed Lease or a new heartbeat in the status, timed by our own clock, so that clocks need not agree.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::brake::{Brake, Pace, Zone, pace};
use super::eviction::{FirstSeen, Stay, stay};
use super::health::{NO_EXECUTE, Readiness, condition, is_cleared, readiness, silenced, taints};
use crate::controllers::Context;
use crate::controllers::cache::Key;
use crate::controllers::driver::{Queue, Result, queue};
use crate::controllers::events::{Recorder, Severity, reference};
use crate::controllers::pods::{disrupted, is_active, is_ready, node_of, on_node};

const WORKERS: usize = 8;

/// When each node last gave a sign of life.
type Signs = Arc<Mutex<HashMap<String, Instant>>>;

struct Controller {
    context: Context,
    events: Recorder,
    signs: Signs,
    brake: Mutex<Brake>,
    /// By node.
    tainted: Mutex<HashMap<String, FirstSeen>>,
}

pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let signs = Signs::default();
    subscribe(context, &keys, &signs);
    let events = Recorder::start(context.client.clone(), "node-controller");
    let controller = Controller {
        context: context.clone(),
        events,
        signs,
        brake: Mutex::default(),
        tainted: Mutex::default(),
    };
    let context = context.clone();
    context.drive("node-lifecycle", wakeups, WORKERS, async move |_, key| {
        controller.reconcile(key).await
    })
}

fn subscribe(context: &Context, keys: &Queue<Key>, signs: &Signs) {
    let (queue, seen) = (keys.clone(), signs.clone());
    context.caches.nodes.on_change(move |old, new| {
        let Some(node) = new else {
            if let Some(node) = old {
                let key = Key::of(&**node);
                lock(&seen).remove(&key.name);
                queue.add(key);
            }
            return;
        };
        let heartbeat = |node: &Node| {
            condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone())
        };
        if old.is_none_or(|old| heartbeat(old) != heartbeat(node)) {
            lock(&seen).insert(Key::of(&**node).name, Instant::now());
        }
        // A heartbeat alone changes nothing that has to be decided; the timer that runs finds it.
        let decides = |node: &Node| {
            let conditions = node
                .status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten());
            let states: Vec<(String, String)> = conditions
                .map(|condition| (condition.type_.clone(), condition.status.clone()))
                .collect();
            (states, node.spec.clone())
        };
        if old.is_none_or(|old| decides(old) != decides(node)) {
            queue.add(Key::of(&**node));
        }
    });
    let seen = signs.clone();
    context.caches.leases.on_change(move |old, new| {
        let Some(lease) = new else { return };
        if old.is_none_or(|old| old.spec != lease.spec) {
            lock(&seen).insert(Key::of(&**lease).name, Instant::now());
        }
    });
    let (queue, caches) = (keys.clone(), context.caches.clone());
    context.caches.pods.on_change(move |old, new| {
        // A pod that comes to a node that is tainted has a time to leave, too.
        let Some(node) = new.and_then(|pod| node_of(pod)) else {
            return;
        };
        let key = Key::new("", node);
        let decides = |pod: &Pod| {
            let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
            (node_of(pod).map(str::to_owned), tolerations)
        };
        if old.map(|pod| decides(pod)) != new.map(|pod| decides(pod))
            && caches
                .nodes
                .get(&key)
                .is_some_and(|node| readiness(&node) != Readiness::Ready || evicts(&node))
        {
            queue.add(key);
        }
    });
}

fn evicts(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints
        .into_iter()
        .flatten()
        .any(|taint| taint.effect == NO_EXECUTE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let Some(node) = self.context.caches.nodes.get(key) else {
            lock(&self.tainted).remove(&key.name);
            return Ok(None);
        };
        let grace = self.context.config.node_grace_period;
        // A controller that has just started has heard nobody yet, and gives everybody the whole period.
        let silent_for = lock(&self.signs)
            .entry(key.name.clone())
            .or_insert_with(Instant::now)
            .elapsed();
        let is_silent = silent_for >= grace;
        let now = Timestamp::now();
        let state = if is_silent {
            Readiness::Unknown
        } else {
            readiness(&node)
        };
        let api: Api<Node> = Api::all(self.context.client.clone());
        let mut version = node.metadata.resource_version.clone();
        if is_silent {
            let conditions = silenced(&node, now);
            if !conditions.is_empty() {
                let message = format!("Node {} status is now: NodeNotReady", key.name);
                self.events
                    .report(reference(&*node), Severity::Normal, "NodeNotReady", message);
                let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
                let written = api
                    .patch_status(
                        &key.name,
                        &PatchParams::default(),
                        &Patch::Strategic(&patch),
                    )
                    .await?;
                version = written.metadata.resource_version;
            }
        }
        let pods = self.context.caches.pods.by_index(&on_node(&key.name));
        if state == Readiness::Unknown {
            self.mark_unready(&pods, now).await?;
        }
        let current = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default();
        let turn = match state {
            Readiness::Ready => Err(None),
            Readiness::NotReady | Readiness::Unknown => self.turn(&key.name, &node),
        };
        let wanted = taints(&node, state, turn.is_ok(), now);
        if let Some(taints) = &wanted {
            let patch =
                json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
        }
        let taints = wanted.unwrap_or(current);
        let next_eviction = self.evict(&key.name, &pods, &taints, now).await?;
        let next_check = if is_silent { grace } else { grace - silent_for };
        let next_turn = turn.err().flatten();
        let next = [Some(next_check), next_eviction, next_turn];
        Ok(next.into_iter().flatten().min())
    }

    /// Whether the node, which fails, may be cleared; else how long to wait, where that is known.
    fn turn(&self, name: &str, node: &Node) -> std::result::Result<(), Option<Duration>> {
        let grace = self.context.config.node_grace_period;
        let zone = Zone::of(node);
        let nodes: Vec<(Zone, bool)> = {
            let (nodes, signs) = (self.context.caches.nodes.list(), lock(&self.signs));
            let is_heard = |node: &Node| {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                signs.get(name).is_none_or(|sign| sign.elapsed() < grace)
            };
            let is_well = |node: &Node| readiness(node) == Readiness::Ready && is_heard(node);
            nodes
                .iter()
                .map(|node| (Zone::of(node), is_well(node)))
                .collect()
        };
        let pace = pace(&zone, &nodes);
        if pace != Pace::CalledOff && is_cleared(node) {
            return Ok(());
        }
        lock(&self.brake).turn(name, &zone, pace, Instant::now())
    }

    async fn mark_unready(&self, pods: &[Arc<Pod>], now: Timestamp) -> Result<()> {
        for pod in pods.iter().filter(|pod| is_ready(pod)) {
            let ready = json!({
                "type": "Ready", "status": "False", "reason": "NodeUnreachable",
                "message": "The node gives no sign of life.", "lastTransitionTime": Time(now),
            });
            let patch =
                json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [ready]}});
            let key = Key::of(&**pod);
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
            ignore_gone(
                api.patch_status(
                    &key.name,
                    &PatchParams::default(),
                    &Patch::Strategic(&patch),
                )
                .await,
            )?;
            self.events.report(
                reference(&**pod),
                Severity::Warning,
                "NodeNotReady",
                "Node is not ready".into(),
            );
        }
        Ok(())
    }

    /// Deletes the pods whose time here is over; says when the next one's will be.
    async fn evict(
        &self,
        node: &str,
        pods: &[Arc<Pod>],
        taints: &[Taint],
        now: Timestamp,
    ) -> Result<Option<Duration>> {
        let mut next = None;
        let stays: Vec<(&Arc<Pod>, Stay)> = {
            let mut tainted = lock(&self.tainted);
            let seen = tainted.entry(node.to_owned()).or_default();
            seen.look(pods, taints, now);
            pods.iter()
                .filter(|pod| is_active(pod))
                .map(|pod| (pod, stay(pod, taints, seen, now)))
                .collect()
        };
        for (pod, stay) in stays {
            match stay {
                Stay::ForEver => {}
                Stay::For(left) => {
                    next = Some(next.map_or(left, |known: Duration| known.min(left)))
                }
                Stay::Over => {
                    let key = Key::of(&**pod);
                    let api: Api<Pod> =
                        Api::namespaced(self.context.client.clone(), &key.namespace);
                    let same = Preconditions {
                        uid: pod.metadata.uid.clone(),
                        resource_version: None,
                    };
                    let patch = Patch::Strategic(reason(pod, now));
                    ignore_gone(
                        api.patch_status(&key.name, &PatchParams::default(), &patch)
                            .await,
                    )?;
                    ignore_gone(
                        api.delete(&key.name, &DeleteParams::default().preconditions(same))
                            .await,
                    )?;
                    let message = format!("Marking for deletion Pod {key}");
                    self.events.report(
                        reference(&**pod),
                        Severity::Normal,
                        "TaintManagerEviction",
                        message,
                    );
                }
            }
        }
        Ok(next)
    }
}

/// What to write about a pod that has to leave its node.
pub(super) fn reason(pod: &Pod, now: Timestamp) -> Value {
    let why = "Taint manager: deleting due to NoExecute taint";
    let condition = disrupted(pod, "DeletionByTaintManager", why, now);
    json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}})
}

/// Somebody else was quicker: the aim is reached.
fn ignore_gone<T>(outcome: std::result::Result<T, kube::Error>) -> Result<()> {
    match outcome {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        outcome => {
            outcome?;
            Ok(())
        }
    }
}
