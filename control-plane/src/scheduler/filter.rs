//! Which nodes a pod may go to, and why not to the others, in upstream's words. No I/O.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use super::neighbours::Neighbours;
use super::snapshot::{NodeInfo, PodInfo, Wishes};
use super::spread::Spreading;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why the pod cannot go to the node; empty when it can. One plugin after the other, as the first that refuses tells most.
pub(super) fn refusals(
    pod: &PodInfo,
    node: &NodeInfo,
    spreading: &Spreading<'_>,
    neighbours: &Neighbours,
) -> Vec<String> {
    let none = Wishes::default();
    let wishes = pod.wishes.as_deref().unwrap_or(&none);
    let plugins: [&dyn Fn() -> Vec<String>; 8] = [
        &|| schedulable(wishes, node),
        &|| ready(wishes, node),
        &|| taints(wishes, node),
        &|| affinity(wishes, node),
        &|| host_ports(pod, node),
        &|| fit(pod, node),
        &|| one(spreading.refusal(pod, node)),
        &|| one(neighbours.refusal(pod, node)),
    ];
    plugins
        .iter()
        .map(|plugin| plugin())
        .find(|reasons| !reasons.is_empty())
        .unwrap_or_default()
}

/// Whether the pod cannot go to the node whoever else leaves it.
pub(super) fn is_out_of_question(pod: &PodInfo, node: &NodeInfo) -> bool {
    let none = Wishes::default();
    let wishes = pod.wishes.as_deref().unwrap_or(&none);
    [
        schedulable(wishes, node),
        ready(wishes, node),
        taints(wishes, node),
        affinity(wishes, node),
    ]
    .iter()
    .any(|reasons| !reasons.is_empty())
}

fn one(reason: Option<&str>) -> Vec<String> {
    reason.map(str::to_owned).into_iter().collect()
}

fn refuse_if(refused: bool, reason: &str) -> Vec<String> {
    if refused {
        vec![reason.to_owned()]
    } else {
        Vec::new()
    }
}

fn implied(key: &str) -> Taint {
    Taint {
        key: key.into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    }
}

fn schedulable(wishes: &Wishes, node: &NodeInfo) -> Vec<String> {
    let refused = node.unschedulable && !tolerates(&wishes.tolerations, &implied(UNSCHEDULABLE));
    refuse_if(refused, "node(s) were unschedulable")
}

fn ready(wishes: &Wishes, node: &NodeInfo) -> Vec<String> {
    // The taint comes from a controller and later; a pod that tolerates it may go here already.
    let tainted = node.taints.iter().any(|taint| taint.key == NOT_READY);
    refuse_if(
        !node.ready && !tainted && !tolerates(&wishes.tolerations, &implied(NOT_READY)),
        "node(s) were not ready",
    )
}

fn taints(wishes: &Wishes, node: &NodeInfo) -> Vec<String> {
    refuse_if(
        !is_tolerated(wishes, node),
        "node(s) had untolerated taint(s)",
    )
}

pub(super) fn is_tolerated(wishes: &Wishes, node: &NodeInfo) -> bool {
    let mut binding = node
        .taints
        .iter()
        .filter(|taint| taint.effect != "PreferNoSchedule");
    binding.all(|taint| tolerates(&wishes.tolerations, taint))
}

fn affinity(wishes: &Wishes, node: &NodeInfo) -> Vec<String> {
    refuse_if(
        !is_selected(wishes, node),
        "node(s) didn't match Pod's node affinity/selector",
    )
}

/// Whether the node is one that the pod selects.
pub(crate) fn suits(pod: &PodSpec, node: &Node) -> bool {
    is_selected(&Wishes::of(pod), &NodeInfo::of(node))
}

pub(super) fn is_selected(wishes: &Wishes, node: &NodeInfo) -> bool {
    let selected = wishes
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = wishes.node_affinity.as_ref();
    let required = required.and_then(|it| {
        it.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let matched = required.is_none_or(|it| {
        it.node_selector_terms
            .iter()
            .any(|term| matches(term, node))
    });
    selected && matched
}

fn host_ports(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let refused = pod
        .host_ports
        .iter()
        .any(|port| node.host_ports.iter().any(|taken| taken.clashes(port)));
    refuse_if(
        refused,
        "node(s) didn't have free ports for the requested pod ports",
    )
}

fn fit(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let mut reasons = refuse_if(
        node.pods + 1 > node.allocatable.get("pods"),
        "Too many pods",
    );
    let wanted = pod.requests.0.iter().filter(|(_, amount)| **amount > 0);
    let short =
        wanted.filter(|(name, amount)| node.used.get(name) + **amount > node.allocatable.get(name));
    reasons.extend(short.map(|(name, _)| format!("Insufficient {name}")));
    reasons
}

pub(crate) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && ((key.is_empty() && exists) || key == taint.key)
            && (exists || value == taint.value.as_deref().unwrap_or_default())
    })
}

/// A term without any requirement matches no node.
pub(super) fn matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    if expressions.clone().next().is_none() && fields.clone().next().is_none() {
        return false;
    }
    expressions
        .into_iter()
        .all(|it| requirement(it, node.labels.get(&it.key).map(String::as_str)))
        && fields
            .into_iter()
            .all(|it| it.key == "metadata.name" && requirement(it, Some(&node.name)))
}

fn requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let numbers = number(value).zip(number(values.first().map(String::as_str)));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers.is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers.is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}
