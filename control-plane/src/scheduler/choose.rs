//! One pod, one snapshot, one answer. No I/O.

use std::collections::BTreeMap;

use super::filter::refusals;
use super::neighbours::Neighbours;
use super::score::scores;
use super::snapshot::{NodeInfo, PodInfo, Snapshot};
use super::spread::Spreading;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Node(String),
    /// The reason as a person reads it.
    None(String),
}

/// The best node for the pod; `draw` decides between equals.
pub(super) fn choose(pod: &PodInfo, snapshot: &Snapshot, draw: u64) -> Choice {
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut total = 0;
    let spreading = Spreading::of(pod, snapshot);
    let neighbours = Neighbours::of(pod, snapshot);
    for node in snapshot.nodes() {
        total += 1;
        let refused = refusals(pod, node, &spreading, &neighbours);
        if refused.is_empty() {
            feasible.push(node);
        }
        for reason in refused {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let scores = scores(pod, &feasible, &spreading, &neighbours);
    let Some(best) = scores.iter().max() else {
        return Choice::None(explain(total, &reasons));
    };
    let equals: Vec<&NodeInfo> = feasible
        .iter()
        .zip(&scores)
        .filter(|(_, score)| *score == best)
        .map(|(node, _)| *node)
        .collect();
    let drawn = draw % u64::try_from(equals.len()).unwrap_or(1);
    equals
        .get(usize::try_from(drawn).unwrap_or_default())
        .map_or_else(
            || Choice::None(explain(total, &reasons)),
            |node| Choice::Node(node.name.clone()),
        )
}

/// Why no node would do, as a person reads it.
pub(super) fn explain(total: usize, reasons: &BTreeMap<String, usize>) -> String {
    if total == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    // Sorted as text with the count in front, as upstream does.
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}
