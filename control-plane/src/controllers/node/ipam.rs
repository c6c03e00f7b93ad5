//! Gives each node a range of pod addresses that no other node has. What is given is what the Node objects say, so a
//! restart loses nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::controllers::Context;
use crate::controllers::cache::Key;
use crate::controllers::driver::{Error, Result, drive, queue};
use crate::controllers::events::{Recorder, Severity, reference};

/// A /24 of IPv4, a /64 of IPv6.
fn node_prefix(cluster: &IpNet) -> u8 {
    let wanted = if cluster.addr().is_ipv4() { 24 } else { 64 };
    wanted.max(cluster.prefix_len())
}

/// The first range of `cluster` that overlaps none of `taken`.
pub(super) fn first_free(cluster: IpNet, taken: &[IpNet]) -> Option<IpNet> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let exact: HashSet<&IpNet> = taken.iter().collect();
    // Ranges of another size are rare: somebody gave them by hand.
    let odd: Vec<&IpNet> = taken
        .iter()
        .filter(|range| range.prefix_len() != node_prefix(&cluster))
        .collect();
    let mut ranges = cluster.subnets(node_prefix(&cluster)).ok()?;
    ranges.find(|range| !exact.contains(range) && !odd.iter().any(|other| overlaps(range, other)))
}

pub(super) fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|text| text.parse().ok()).collect()
}

pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    // Given, but perhaps not yet seen in the cache.
    let given: Arc<Mutex<BTreeMap<String, IpNet>>> = Arc::default();
    let ledger = given.clone();
    context.caches.nodes.on_change(move |old, new| {
        let Some(node) = new.or(old) else { return };
        if new.is_none() || !ranges_of(node).is_empty() {
            lock(&ledger).remove(&Key::of(&**node).name);
        }
        if new.is_some_and(|node| ranges_of(node).is_empty()) {
            keys.add(Key::of(&**node));
        }
    });
    let context = context.clone();
    let events = Recorder::start(context.client.clone(), "node-ipam-controller");
    async move {
        context.caches.wait_synced().await;
        // One at a time: each has to know what the one before took.
        drive("node-ipam", wakeups, 1, context.shutdown.clone(), |key| {
            let (context, given, events) = (&context, &given, &events);
            async move { reconcile(context, given, events, &key).await }
        })
        .await;
    }
}

fn lock(
    given: &Mutex<BTreeMap<String, IpNet>>,
) -> std::sync::MutexGuard<'_, BTreeMap<String, IpNet>> {
    given.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn reconcile(
    context: &Context,
    given: &Mutex<BTreeMap<String, IpNet>>,
    events: &Recorder,
    key: &Key,
) -> Result<Option<Duration>> {
    let Some(node) = context.caches.nodes.get(key) else {
        return Ok(None);
    };
    if !ranges_of(&node).is_empty() {
        return Ok(None);
    }
    // Before the nodes: a range leaves here when it is seen there, so it is in one of the two at least.
    let mut others = lock(given).clone();
    let before = others.remove(&key.name);
    let mut taken: Vec<IpNet> = others.into_values().collect();
    let nodes = context.caches.nodes.list();
    taken.extend(nodes.iter().flat_map(|node| ranges_of(node)));
    let cluster = context.config.pod_cidr;
    let Some(range) = before.or_else(|| first_free(cluster, &taken)) else {
        let message = format!(
            "no free pod address range for node {} is left in {cluster}",
            key.name
        );
        events.report(
            reference(&*node),
            Severity::Warning,
            "CIDRNotAvailable",
            message.clone(),
        );
        return Err(Error::Object(message));
    };
    lock(given).insert(key.name.clone(), range);
    let api: Api<Node> = Api::all(context.client.clone());
    let text = range.to_string();
    // The version makes the server refuse if somebody else gave it one meanwhile.
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": text, "podCIDRs": [text]},
    });
    api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(None)
}
