//! Removes pods that no node will ever finish: those of a Node that is deleted or declared out of service, and those that
//! end before they got to a node.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use crate::controllers::Context;
use crate::controllers::cache::Key;
use crate::controllers::driver::{Result, queue};
use crate::controllers::pods::{disrupted, has_ended, node_of, on_node};

const WORKERS: usize = 8;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Its Node is not there. It may have been re-created, so ask again after a while.
    Orphan,
    Remove,
}

/// `node` is the pod's Node, if it is there.
pub(super) fn verdict(pod: &Pod, node: Option<&Node>) -> Verdict {
    let ends = pod.metadata.deletion_timestamp.is_some();
    match (node_of(pod), node) {
        (None, _) if ends => Verdict::Remove,
        (None, _) => Verdict::Keep,
        (Some(_), None) => Verdict::Orphan,
        (Some(_), Some(node)) => {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            let out = taints
                .into_iter()
                .flatten()
                .any(|taint| taint.key == OUT_OF_SERVICE);
            if out && ends && !has_ended(pod) {
                Verdict::Remove
            } else {
                Verdict::Keep
            }
        }
    }
}

/// What to write about a pod before it is removed; `None` when it has told its own end. Nobody else will say how it ended,
/// and whoever waits for that would wait for ever.
pub(super) fn end(pod: &Pod, verdict: Verdict, now: Timestamp) -> Option<Value> {
    if has_ended(pod) || verdict == Verdict::Keep {
        return None;
    }
    let mut status = json!({"phase": "Failed"});
    if verdict == Verdict::Orphan {
        let why = "PodGC: node no longer exists";
        status["conditions"] = json!([disrupted(pod, "DeletionByPodGC", why, now)]);
    }
    Some(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}))
}

pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let (queue, caches, quarantine) = (
        keys.clone(),
        context.caches.clone(),
        context.config.orphan_quarantine,
    );
    context.caches.pods.on_change(move |_, new| {
        let Some(pod) = new else { return };
        let node = node_of(pod).and_then(|name| caches.nodes.get(&Key::new("", name)));
        match verdict(pod, node.as_deref()) {
            Verdict::Keep => {}
            Verdict::Orphan => queue.add_after(Key::of(&**pod), quarantine),
            Verdict::Remove => queue.add(Key::of(&**pod)),
        }
    });
    let (queue, caches) = (keys, context.caches.clone());
    context.caches.nodes.on_change(move |old, new| {
        let Some(node) = new.or(old) else { return };
        let delay = if new.is_some() {
            Duration::ZERO
        } else {
            quarantine
        };
        for pod in caches.pods.by_index(&on_node(&Key::of(&**node).name)) {
            if verdict(&pod, new.map(|node| &**node)) != Verdict::Keep {
                queue.add_after(Key::of(&*pod), delay);
            }
        }
    });
    context
        .clone()
        .drive("pod-orphans", wakeups, WORKERS, reconcile)
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let Some(pod) = context.caches.pods.get(key) else {
        return Ok(None);
    };
    let node = node_of(&pod).and_then(|name| context.caches.nodes.get(&Key::new("", name)));
    let verdict = verdict(&pod, node.as_deref());
    match verdict {
        Verdict::Keep => return Ok(None),
        Verdict::Remove => {}
        Verdict::Orphan => {
            // Our cache may be behind, and this cannot be undone: ask the server itself.
            let nodes: Api<Node> = Api::all(context.client.clone());
            if nodes
                .get_opt(node_of(&pod).unwrap_or_default())
                .await?
                .is_some()
            {
                return Ok(None);
            }
        }
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    if let Some(end) = end(&pod, verdict, Timestamp::now()) {
        let patch = Patch::Strategic(end);
        api.patch_status(&key.name, &PatchParams::default(), &patch)
            .await?;
    }
    let same = Preconditions {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    };
    api.delete(
        &key.name,
        &DeleteParams::default().grace_period(0).preconditions(same),
    )
    .await?;
    Ok(None)
}
