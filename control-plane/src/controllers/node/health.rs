//! What a node's conditions and taints shall be, given whether it still gives signs of life. No I/O.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
pub(super) const NO_EXECUTE: &str = "NoExecute";

/// Conditions that only the node itself can know.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Condition that is not as it should be when "True", and the taint that keeps new pods away.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    NotReady,
    /// It is silent, so nobody knows.
    Unknown,
}

pub(super) fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

pub(super) fn readiness(node: &Node) -> Readiness {
    match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => Readiness::Ready,
        Some("Unknown") => Readiness::Unknown,
        // A node that has not reported yet is on its way.
        _ => Readiness::NotReady,
    }
}

/// The conditions to write for a node that has been silent for too long; empty when they already say so.
pub(super) fn silenced(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = Vec::new();
    for type_ in REPORTED {
        let known = condition(node, type_);
        if known.is_some_and(|known| known.status == "Unknown") {
            continue;
        }
        let (reason, message) = match known {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => (
                "NodeStatusNeverUpdated",
                "Kubelet never posted node status.",
            ),
        };
        conditions.push(NodeCondition {
            type_: type_.into(),
            status: "Unknown".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: known.and_then(|known| known.last_heartbeat_time.clone()),
            last_transition_time: Some(Time(now)),
        });
    }
    conditions
}

/// Whether the node is being cleared because it fails.
pub(super) fn is_cleared(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| {
        taint.effect == NO_EXECUTE && [UNREACHABLE, NOT_READY].contains(&taint.key.as_str())
    })
}

/// The node's taints as they shall be; `None` when they are. A node that fails is cleared only if it `may_clear`.
pub(super) fn taints(
    node: &Node,
    readiness: Readiness,
    may_clear: bool,
    now: Timestamp,
) -> Option<Vec<Taint>> {
    let spec = node.spec.clone().unwrap_or_default();
    let current = spec.taints.unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let failing = match readiness {
        Readiness::Ready => None,
        Readiness::NotReady => Some(NOT_READY),
        Readiness::Unknown => Some(UNREACHABLE),
    };
    wanted.extend(failing.map(|key| (key, NO_SCHEDULE)));
    wanted.extend(failing.filter(|_| may_clear).map(|key| (key, NO_EXECUTE)));
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let pressed =
        |type_: &str| condition(node, type_).is_some_and(|condition| condition.status == "True");
    wanted.extend(
        PRESSURES
            .iter()
            .filter(|(type_, _)| pressed(type_))
            .map(|(_, key)| (*key, NO_SCHEDULE)),
    );

    let is_ours = |key: &str| {
        [UNREACHABLE, NOT_READY, UNSCHEDULABLE].contains(&key)
            || PRESSURES.iter().any(|(_, ours)| *ours == key)
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|taint| !is_ours(&taint.key) || is_wanted(taint))
        .cloned()
        .collect();
    for (key, effect) in &wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == *key && taint.effect == *effect)
        {
            taints.push(Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != current).then_some(taints)
}
