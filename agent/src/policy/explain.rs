//! Which policies and rules say what of a pod, in words. Pure: it asks the policies themselves, rule by rule, where the kernel
//! asks what was compiled from them; a test has the two agree.

use std::net::IpAddr;

use agent_ebpf::policy::Direction;

use super::compile::{Local, owners};
use super::prefix::Prefix;
use super::state::PolicyState;
use super::types::{Peer, Pod, Policy, Rule, Which};
use super::view::View;
use crate::cluster::ObjectKey;
use crate::dataplane::{MapRow, identity_row, pod_row, rule_row};

/// What one connection asks for.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub direction: Direction,
    pub peer: IpAddr,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// The one that is connected to, in host order.
    pub port: u16,
}

/// The answer, and who gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// The peer is the pod's own node, or the pod itself.
    Always,
    /// This rule of this policy allows it; counted from 0.
    Allowed { policy: ObjectKey, rule: usize },
    /// These isolate the pod, and none allows it.
    Refused { policies: Vec<ObjectKey> },
}

impl Answer {
    pub fn is_yes(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

/// What the policies of a pod answer.
pub fn ask(view: &View, local: &Local, key: &ObjectKey, pod: &Pod, question: &Question) -> Answer {
    let owners = owners(view, local);
    let peer = owners.get(&question.peer).copied();
    if local.node.contains(&question.peer) || peer.is_some_and(|(peer, _)| peer == key) {
        return Answer::Always;
    }
    let connected_to = match question.direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => peer.map(|(_, pod)| pod),
    };
    let mut isolating = Vec::new();
    for (name, policy) in view.selecting(key, pod) {
        let Some(rules) = rules(policy, question.direction) else {
            continue;
        };
        let allows = |rule: &Rule| {
            is_peer(view, rule, peer, question.peer) && is_port(rule, connected_to, question)
        };
        if let Some(rule) = rules.iter().position(allows) {
            return Answer::Allowed {
                policy: name.clone(),
                rule,
            };
        }
        isolating.push(name.clone());
    }
    match isolating.is_empty() {
        true => Answer::NotIsolated,
        false => Answer::Refused {
            policies: isolating,
        },
    }
}

/// A policy's rules for one direction; `None` when it is not about that.
pub fn rules(policy: &Policy, direction: Direction) -> Option<&Vec<Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

fn is_peer(view: &View, rule: &Rule, owner: Option<(&ObjectKey, &Pod)>, address: IpAddr) -> bool {
    let Some(peers) = &rule.peers else {
        return true;
    };
    peers.iter().any(|peer| match (peer, owner) {
        (Peer::Block(block), _) => {
            let except = block.except.iter().any(|range| range.contains(&address));
            block.range.contains(&address) && !except
        }
        (Peer::Pods(_), None) => false,
        (Peer::Pods(peer), Some((key, pod))) => {
            let namespace = view.namespaces.get(&key.namespace);
            namespace.is_some_and(|it| peer.selects(&key.namespace, it, &pod.labels))
        }
    })
}

fn is_port(rule: &Rule, connected_to: Option<&Pod>, question: &Question) -> bool {
    let Some(ports) = &rule.ports else {
        return true;
    };
    let ports = ports.iter().filter(|it| it.protocol == question.protocol);
    let mut whiches = ports.map(|it| &it.which);
    whiches.any(|which| match which {
        Which::All => true,
        Which::Range(first, last) => (*first..=*last).contains(&question.port),
        Which::Named(name) => connected_to.is_some_and(|pod| {
            let mut named = pod.ports.iter().filter(|it| it.name == *name);
            named.any(|it| it.protocol == question.protocol && it.port == question.port)
        }),
    })
}

/// The answer in one line, for a pod that is `name` to people.
pub fn tell(view: &View, name: &ObjectKey, question: &Question, answer: &Answer) -> String {
    let (direction, peer) = match question.direction {
        Direction::Ingress => ("ingress", format!("from {}", question.peer)),
        Direction::Egress => ("egress", format!("to {}", question.peer)),
    };
    let what = format!("policy: {direction} of {name} {peer}");
    match answer {
        Answer::NotIsolated => format!("{what}: passes; no policy isolates the pod"),
        Answer::Always => format!("{what}: passes, as with its own node and itself always"),
        Answer::Allowed { policy, rule } => {
            let text = view.policies.get(policy);
            let text = text.and_then(|it| rules(it, question.direction)?.get(*rule));
            let text = text.map_or_else(String::new, |rule| format!(" ({rule})"));
            format!(
                "{what}: allowed by {policy}, {direction} rule {}{text}",
                rule + 1
            )
        }
        Answer::Refused { policies } => {
            let policies: Vec<String> = policies.iter().map(ObjectKey::to_string).collect();
            format!(
                "{what}: refused; isolated by {}, and no rule allows it",
                policies.join(", ")
            )
        }
    }
}

/// The rows of the maps that decide about a pod: its own, those of its tables, and those of whom they name.
pub fn entries(local: &Local, state: &PolicyState, link: &str) -> Vec<MapRow> {
    let pinned = state.pinned();
    let Some(link) = local.links.get(link) else {
        return Vec::new();
    };
    let Some(row) = pinned.pods.get(&link.index) else {
        return Vec::new();
    };
    let rules = pinned.rules_of(row);
    let tables = [rules.ingress, rules.egress].map(|table| table.0.to_be_bytes());
    let rows = pinned.rules.iter();
    let rows = rows.filter(|(key, _)| tables.contains(&key.table));
    let named: Vec<[u8; 4]> = rows.clone().map(|(key, _)| key.identity).collect();
    let identities = pinned.identities.iter();
    let identities = identities.filter(|(_, row)| {
        let identity = pinned.identity_of(row);
        identity.0 != 0 && named.contains(&identity.0.to_be_bytes())
    });
    std::iter::once(pod_row(row))
        .chain(rows.map(|(key, bits)| rule_row(*key, *bits)))
        .chain(identities.map(|(prefix, row): (&Prefix, _)| identity_row(prefix, row)))
        .collect()
}

/// The policies that select a pod and are about a direction, with their rules.
pub fn selecting<'a>(
    view: &'a View,
    key: &'a ObjectKey,
    pod: &'a Pod,
    direction: Direction,
) -> impl Iterator<Item = (&'a ObjectKey, &'a Vec<Rule>)> {
    let mut policies = view.selecting(key, pod);
    std::iter::from_fn(move || {
        policies.find_map(|(name, policy)| Some((name, rules(policy, direction)?)))
    })
}
