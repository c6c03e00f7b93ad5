//! Gives each node a range of pod addresses, one of each family that the cluster has, that no other node has. What is given is what the Node objects say, so a
//! restart loses nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::ranges::{PodRanges, overlap};
use crate::controllers::Context;
use crate::controllers::cache::Key;
use crate::controllers::driver::{Error, Result, queue};
use crate::controllers::events::{Recorder, Severity, reference};

/// Ranges by node.
type Given = BTreeMap<String, Vec<IpNet>>;

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
    let given: Arc<Mutex<Given>> = Arc::default();
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
    // One at a time: each has to know what the one before took.
    context.drive("node-ipam", wakeups, 1, async move |context, key| {
        reconcile(context, &given, &events, key).await
    })
}

fn lock(given: &Mutex<Given>) -> std::sync::MutexGuard<'_, Given> {
    given.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn reconcile(
    context: &Context,
    given: &Mutex<Given>,
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
    let mut taken: Vec<IpNet> = others.into_values().flatten().collect();
    let nodes = context.caches.nodes.list();
    taken.extend(nodes.iter().flat_map(|node| ranges_of(node)));
    let cluster = &context.config.pod_ranges;
    let ranges = match choose(cluster, &node, before, &taken) {
        Ok(ranges) => ranges,
        Err(message) => {
            events.report(
                reference(&*node),
                Severity::Warning,
                "CIDRNotAvailable",
                message.clone(),
            );
            return Err(Error::Object(message));
        }
    };
    lock(given).insert(key.name.clone(), ranges.clone());
    let api: Api<Node> = Api::all(context.client.clone());
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    // The version makes the server refuse if somebody else gave it one meanwhile.
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
    });
    api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(None)
}

/// Free ranges for a node, or why it gets none. Those that it was to get `before` if they are still free: perhaps it has
/// them, and the answer was lost.
fn choose(
    cluster: &PodRanges,
    node: &Node,
    before: Option<Vec<IpNet>>,
    taken: &[IpNet],
) -> std::result::Result<Vec<IpNet>, String> {
    let is_free = |range: &IpNet| !taken.iter().any(|other| overlap(range, other));
    if let Some(before) = before.filter(|before| before.iter().all(is_free)) {
        return Ok(before);
    }
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    for address in internal.filter_map(|address| address.address.parse().ok()) {
        cluster
            .without_machine(address)
            .map_err(|error| error.to_string())?;
    }
    cluster.first_free(taken).map_err(|cluster| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        format!("no free pod address range for node {name} is left in {cluster}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_another_node_has_got_meanwhile_is_not_insisted_on() {
        let cluster: PodRanges = "10.244.0.0/16".parse().unwrap();
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let before = || Some(nets(&["10.244.1.0/24"]));
        let chosen = |before, taken: &[&str]| {
            choose(&cluster, &Node::default(), before, &nets(taken)).unwrap()
        };
        assert_eq!(chosen(before(), &["10.244.7.0/24"]), before().unwrap());
        assert_eq!(
            chosen(before(), &["10.244.0.0/23"]),
            nets(&["10.244.2.0/24"])
        );
        assert_eq!(chosen(None, &[]), nets(&["10.244.0.0/24"]));
    }
}
