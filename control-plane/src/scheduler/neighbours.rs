//! Pod affinity and anti-affinity: where the pods are that a pod wants near or not near, and those that do not want it. No
//! I/O.

use std::collections::HashMap;

use super::snapshot::{NodeInfo, PodInfo, Snapshot};
use super::terms::{Namespaces, Terms};

/// A sum for each part of the cluster: by topology key and the nodes' value for it.
#[derive(Debug, Default)]
struct Parts(HashMap<String, HashMap<String, i64>>);

impl Parts {
    fn add(&mut self, topology_key: &str, node: &NodeInfo, amount: i64) {
        if let Some(value) = node.labels.get(topology_key) {
            let parts = self.0.entry(topology_key.to_owned()).or_default();
            *parts.entry(value.clone()).or_default() += amount;
        }
    }

    fn get(&self, topology_key: &str, node: &NodeInfo) -> i64 {
        let value = node.labels.get(topology_key);
        let parts = self.0.get(topology_key);
        value
            .zip(parts)
            .and_then(|(value, parts)| parts.get(value).copied())
            .unwrap_or_default()
    }

    /// Over all topologies that the node is part of.
    fn sum(&self, node: &NodeInfo) -> i64 {
        self.0.keys().map(|key| self.get(key, node)).sum()
    }

    fn holds(&self, node: &NodeInfo) -> bool {
        self.0.keys().any(|key| self.get(key, node) > 0)
    }
}

/// What one pod has to know of all others before it looks at nodes.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Pods that match every term of the required affinity.
    wanted: Parts,
    /// Pods that match a term of the required anti-affinity.
    unwanted: Parts,
    /// Pods whose required anti-affinity matches this pod.
    unwelcoming: Parts,
    /// Weights of preferences, this pod's and the others'.
    liked: Parts,
    /// The pod matches its own required affinity, so it may be the first of its kind.
    may_be_first: bool,
}

impl Neighbours {
    pub(super) fn of(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let mut neighbours = Self::default();
        let namespaces = snapshot.namespaces();
        match pod.terms.as_deref() {
            Some(terms) => {
                for (node, other) in snapshot.placed() {
                    neighbours.ask(terms, other, node, namespaces);
                }
                neighbours.may_be_first =
                    terms.near.iter().all(|term| term.matches(pod, namespaces));
            }
            None => neighbours.may_be_first = true,
        }
        for (node, other) in snapshot.placed_with_terms() {
            neighbours.hear(pod, other, node, namespaces);
        }
        neighbours
    }

    /// What the pod says about `other`.
    fn ask(&mut self, terms: &Terms, other: &PodInfo, node: &NodeInfo, namespaces: &Namespaces) {
        if terms.near.iter().all(|it| it.matches(other, namespaces)) {
            for term in &terms.near {
                self.wanted.add(&term.topology_key, node, 1);
            }
        }
        for term in terms
            .apart
            .iter()
            .filter(|it| it.matches(other, namespaces))
        {
            self.unwanted.add(&term.topology_key, node, 1);
        }
        for (weight, term) in &terms.liked {
            if term.matches(other, namespaces) {
                self.liked.add(&term.topology_key, node, *weight);
            }
        }
    }

    /// What `other` says about the pod. Its required affinity counts a little: it would like the pod near.
    fn hear(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, namespaces: &Namespaces) {
        let Some(terms) = other.terms.as_deref() else {
            return;
        };
        for term in terms.apart.iter().filter(|it| it.matches(pod, namespaces)) {
            self.unwelcoming.add(&term.topology_key, node, 1);
        }
        let near = terms.near.iter().map(|term| (1, term));
        for (weight, term) in near.chain(terms.liked.iter().map(|(weight, term)| (*weight, term))) {
            if term.matches(pod, namespaces) {
                self.liked.add(&term.topology_key, node, weight);
            }
        }
    }

    /// Why the pod cannot go to the node.
    pub(super) fn refusal(&self, pod: &PodInfo, node: &NodeInfo) -> Option<&'static str> {
        let none = Terms::default();
        let terms = pod.terms.as_deref().unwrap_or(&none);
        let has_keys = || {
            terms
                .near
                .iter()
                .all(|it| node.labels.contains_key(&it.topology_key))
        };
        let all_near = || {
            terms
                .near
                .iter()
                .all(|it| self.wanted.get(&it.topology_key, node) > 0)
        };
        let is_first = || self.wanted.0.is_empty() && self.may_be_first;
        if !has_keys() || !(all_near() || is_first()) {
            return Some("node(s) didn't match pod affinity rules");
        }
        if self.unwanted.holds(node) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        self.unwelcoming
            .holds(node)
            .then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    /// How much the pod and its neighbours there would like it.
    pub(super) fn liking(&self, node: &NodeInfo) -> i64 {
        self.liked.sum(node)
    }
}
