//! What is shown of network policies.

use std::net::SocketAddr;

use agent_ebpf::abi::policy::{PodRules, RuleTable};
use agent_ebpf::abi::{TCP, UDP};
use agent_ebpf::policy::Direction;

use super::present;
use crate::cluster::ObjectKey;
use crate::introspection as api;
use crate::policy::compile::owners;
use crate::policy::engine::Engine;
use crate::policy::explain::{Question, ask, entries, selecting, tell};

/// What policies say of a pod, whose link is called `link`.
pub(super) fn show(engine: &Engine, key: &ObjectKey, link: &str) -> api::ShowPolicyReply {
    let view = engine.known().view();
    let pod = view.pods.get(key);
    let rules = |direction| -> Vec<api::PolicyRule> {
        let selected = pod.into_iter();
        let selected = selected.flat_map(|pod| selecting(&view, key, pod, direction));
        let listed = selected.flat_map(|(policy, rules)| {
            let policy = policy.to_string();
            let nothing = rules.is_empty().then(|| api::PolicyRule {
                policy: policy.clone(),
                ..api::PolicyRule::default()
            });
            let rules = (1..).zip(rules).map(move |(number, rule)| api::PolicyRule {
                policy: policy.clone(),
                number,
                peers: rule.peers_text(),
                ports: rule.ports_text(),
            });
            nothing.into_iter().chain(rules)
        });
        listed.collect()
    };
    let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
    engine.look(|local, state| {
        let found = local.links.get(link);
        let row = found.and_then(|link| state.pinned().pods.get(&link.index));
        let now = row.map_or(PodRules::OPEN, |row| state.pinned().rules_of(row));
        let addresses = found.iter().flat_map(|link| &link.addresses);
        let mut notes: Vec<String> = engine_problem(engine).into_iter().collect();
        if found.is_none() {
            notes.push("the pod has no link of its own: policies are not about it".to_owned());
        }
        api::ShowPolicyReply {
            pod: key.to_string(),
            addresses: addresses.map(ToString::to_string).collect(),
            ingress: Some(direction(now.ingress, ingress)),
            egress: Some(direction(now.egress, egress)),
            entries: entries(local, state, link)
                .into_iter()
                .map(present::row)
                .collect(),
            notes,
        }
    })
}

fn engine_problem(engine: &Engine) -> Option<String> {
    let failing = engine.known().failing();
    let (kind, error) = failing.first_key_value()?;
    Some(format!("cannot watch {kind}: {error}"))
}

fn direction(table: RuleTable, rules: Vec<api::PolicyRule>) -> api::PolicyDirection {
    let state = match table {
        RuleTable::OPEN => "open",
        RuleTable::PENDING => "pending",
        _ => "isolated",
    };
    api::PolicyDirection {
        state: state.to_owned(),
        rules,
    }
}

/// Adds to a trace what policies say of each way that it may take: at the pod that dials, and at the backend's if that is
/// on this node, too.
pub(super) fn add_to(trace: &mut api::Trace, engine: &Engine, from: Option<&ObjectKey>) {
    let backends = trace
        .choices
        .iter()
        .filter_map(|choice| choice.backend.as_ref());
    let mut targets: Vec<SocketAddr> = backends.filter_map(|it| it.address.parse().ok()).collect();
    if targets.is_empty() && trace.outcome == "not-service" {
        targets.extend(trace.dialled.parse::<SocketAddr>().ok());
    }
    let protocol = match &*trace.protocol {
        "UDP" => UDP,
        _ => TCP,
    };
    let view = engine.known().view();
    engine.look(|local, _| {
        let owners = owners(&view, local);
        for target in targets {
            let question = |direction, peer| Question {
                direction,
                peer,
                protocol,
                port: target.port(),
            };
            if let Some((key, pod)) = from.and_then(|key| view.pods.get_key_value(key)) {
                let question = question(Direction::Egress, target.ip());
                let answer = ask(&view, local, key, pod, &question);
                trace.steps.push(tell(&view, key, &question, &answer));
            }
            let source = from.and_then(|key| {
                let pod = view.pods.get(key)?;
                let link = local.links.get(pod.link.as_deref()?)?;
                let mut own = link.addresses.iter();
                own.find(|it| it.is_ipv4() == target.is_ipv4()).copied()
            });
            if let (Some(source), Some((key, pod))) = (source, owners.get(&target.ip()))
                && pod.link.is_some()
            {
                let question = question(Direction::Ingress, source);
                let answer = ask(&view, local, key, pod, &question);
                trace.steps.push(tell(&view, key, &question, &answer));
            }
        }
    });
}
