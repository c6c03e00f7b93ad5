//! Topology spread constraints: how many pods like this one each part of the cluster has. No I/O.

use std::collections::HashMap;

use super::filter::{is_selected, is_tolerated};
use super::snapshot::{NodeInfo, PodInfo, Snapshot, Wishes};
use super::terms::SpreadRule;

/// One rule with the matching pods in each part of the cluster, by the nodes' value for its key.
#[derive(Debug)]
struct Counted<'a> {
    rule: &'a SpreadRule,
    parts: HashMap<&'a str, i64>,
}

#[derive(Debug, Default)]
pub(super) struct Spreading<'a> {
    required: Vec<Counted<'a>>,
    wished: Vec<Counted<'a>>,
}

impl<'a> Spreading<'a> {
    pub(super) fn of(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let Some(wishes) = pod.wishes.as_deref().filter(|it| !it.spread.is_empty()) else {
            return Self::default();
        };
        let count = |is_required| {
            let rules = wishes.spread.iter();
            let rules: Vec<_> = rules.filter(|it| it.is_required == is_required).collect();
            counted(pod, wishes, &rules, snapshot)
        };
        Self {
            required: count(true),
            wished: count(false),
        }
    }

    /// Why the pod cannot go to the node.
    pub(super) fn refusal(&self, pod: &PodInfo, node: &NodeInfo) -> Option<&'static str> {
        for Counted { rule, parts } in &self.required {
            let Some(value) = node.labels.get(&rule.topology_key) else {
                return Some(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let least = match parts.values().min() {
                Some(least) if parts.len() >= rule.min_domains => *least,
                _ => 0,
            };
            let here = parts.get(value.as_str()).copied().unwrap_or_default();
            let with_it = here + i64::from(rule.selects(&pod.labels));
            if with_it - least > rule.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// How crowded each node would be by the wished rules, from 0 for the most to 100 for the least; `None` without such.
    pub(super) fn room(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.wished.is_empty() {
            return None;
        }
        let crowds: Vec<Option<f64>> = nodes.iter().map(|node| self.crowd(node)).collect();
        let counted = || crowds.iter().flatten().copied();
        let most = counted().fold(0.0, f64::max);
        let least = counted().fold(f64::INFINITY, f64::min);
        let score = |crowd: Option<f64>| match crowd {
            // A node that is in no part at all is the last choice.
            None => 0,
            Some(_) if most == 0.0 => 100,
            Some(crowd) => (100.0 * (most + least - crowd) / most).round() as i64,
        };
        Some(crowds.into_iter().map(score).collect())
    }

    /// Parts of a topology that has many weigh more: there each pod is a larger share. A larger skew is minded less.
    fn crowd(&self, node: &NodeInfo) -> Option<f64> {
        let mut crowd = 0.0;
        for Counted { rule, parts } in &self.wished {
            let value = node.labels.get(&rule.topology_key)?;
            let here = parts.get(value.as_str()).copied().unwrap_or_default();
            let (here, skew, parts) = (here as f64, rule.max_skew as f64, parts.len() as f64);
            crowd += here * (parts + 2.0).ln() + (skew - 1.0);
        }
        Some(crowd)
    }
}

fn counted<'a>(
    pod: &PodInfo,
    wishes: &Wishes,
    rules: &[&'a SpreadRule],
    snapshot: &'a Snapshot,
) -> Vec<Counted<'a>> {
    let has_all = |node: &NodeInfo| {
        rules
            .iter()
            .all(|it| node.labels.contains_key(&it.topology_key))
    };
    let part_of = |rule: &SpreadRule, node: &'a NodeInfo| {
        let counts = has_all(node)
            && (!rule.honors_affinity || is_selected(wishes, node))
            && (!rule.honors_taints || is_tolerated(wishes, node));
        node.labels
            .get(&rule.topology_key)
            .filter(|_| counts)
            .map(String::as_str)
    };
    let mut all: Vec<Counted<'a>> = rules
        .iter()
        .map(|rule| Counted {
            rule,
            parts: snapshot
                .nodes()
                .filter_map(|node| Some((part_of(rule, node)?, 0)))
                .collect(),
        })
        .collect();
    for (node, other) in snapshot.placed() {
        if other.namespace != pod.namespace || other.is_terminating {
            continue;
        }
        for Counted { rule, parts } in &mut all {
            if rule.selects(&other.labels)
                && let Some(part) = part_of(rule, node)
            {
                *parts.entry(part).or_default() += 1;
            }
        }
    }
    all
}
