//! How much a node suits a pod that may go there: each plugin from 0 to 100, then weighed. No I/O.

use super::filter::{matches, tolerates};
use super::neighbours::Neighbours;
use super::snapshot::{NodeInfo, PodInfo, Wishes};
use super::spread::Spreading;

const FULL: i64 = 100;
/// What a container without a request is taken to need, so that such pods spread as well.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

const WEIGHT_FREE: i64 = 1;
const WEIGHT_SPREAD: i64 = 2;
const WEIGHT_AFFINITY: i64 = 2;
const WEIGHT_NEIGHBOURS: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;

/// The score of each of `nodes`, in their order.
pub(super) fn scores(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    spreading: &Spreading<'_>,
    neighbours: &Neighbours,
) -> Vec<i64> {
    let none = Wishes::default();
    let wishes = pod.wishes.as_deref().unwrap_or(&none);
    let crowd: Vec<i64> = nodes
        .iter()
        .map(|node| node.groups.get(&pod.group).copied().unwrap_or_default())
        .collect();
    let liked: Vec<i64> = nodes.iter().map(|node| preferred(wishes, node)).collect();
    let disliked: Vec<i64> = nodes.iter().map(|node| soft_taints(wishes, node)).collect();
    let spread = spreading.room(nodes).unwrap_or_else(|| inverted(&crowd));
    let liking: Vec<i64> = nodes.iter().map(|node| neighbours.liking(node)).collect();
    let neighbours = stretched(&liking);
    let affinity = normalized(&liked);
    let taints = inverted(&disliked);
    (0..nodes.len())
        .map(|i| {
            WEIGHT_FREE * least_allocated(pod, nodes[i])
                + WEIGHT_SPREAD * spread[i]
                + WEIGHT_AFFINITY * affinity[i]
                + WEIGHT_NEIGHBOURS * neighbours[i]
                + WEIGHT_TAINTS * taints[i]
        })
        .collect()
}

/// How much of the node would be left, of processor and memory alike.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |name: &str, default: i64| {
        let capacity = node.allocatable.get(name);
        let wanted = Some(pod.requests.get(name))
            .filter(|amount| *amount > 0)
            .unwrap_or(default);
        let left = (capacity - node.used.get(name) - wanted).max(0);
        if capacity > 0 {
            left * FULL / capacity
        } else {
            0
        }
    };
    i64::midpoint(free("cpu", DEFAULT_CPU), free("memory", DEFAULT_MEMORY))
}

fn preferred(wishes: &Wishes, node: &NodeInfo) -> i64 {
    let affinity = wishes.node_affinity.as_ref();
    let terms = affinity.and_then(|it| {
        it.preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let met = terms
        .into_iter()
        .flatten()
        .filter(|term| matches(&term.preference, node));
    met.map(|term| i64::from(term.weight)).sum()
}

fn soft_taints(wishes: &Wishes, node: &NodeInfo) -> i64 {
    let soft = node
        .taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerates(&wishes.tolerations, taint))
        .map(|_| 1)
        .sum()
}

/// The largest becomes 100.
fn normalized(values: &[i64]) -> Vec<i64> {
    let most = values.iter().copied().max().unwrap_or_default();
    values
        .iter()
        .map(|value| if most > 0 { value * FULL / most } else { 0 })
        .collect()
}

/// The smallest becomes 0, the largest 100. They may be negative.
fn stretched(values: &[i64]) -> Vec<i64> {
    let least = values.iter().copied().min().unwrap_or_default();
    let above: Vec<i64> = values.iter().map(|value| value - least).collect();
    normalized(&above)
}

/// The largest becomes 0, nothing becomes 100.
fn inverted(values: &[i64]) -> Vec<i64> {
    normalized(values)
        .into_iter()
        .map(|value| FULL - value)
        .collect()
}
