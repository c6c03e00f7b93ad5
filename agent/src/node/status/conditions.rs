//! The conditions of the Node. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Health, Part};
use crate::housekeeping::eviction::Pressures;

/// Those that the agent keeps, as they should be now.
pub(super) fn of(health: &Health, present: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let ours = [
        ready(health),
        memory_pressure(health.pressures),
        disk_pressure(health.pressures),
        pid_pressure(health.pressures),
    ];
    // A new agent knows nothing of it at first, and leaves what the last one said.
    let routes = health.routes.as_ref().map(network_unavailable);
    ours.into_iter()
        .chain(routes)
        .map(|condition| condition.dated(present, now))
        .collect()
}

pub(super) fn condition_of<'a>(status: &'a NodeStatus, kind: &str) -> Option<&'a NodeCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

/// A condition without its times.
struct Condition {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn dated(self, present: &NodeStatus, now: Timestamp) -> NodeCondition {
        let status = if self.holds { "True" } else { "False" };
        let unchanged = condition_of(present, self.kind).filter(|there| there.status == status);
        let since = unchanged.and_then(|there| there.last_transition_time.clone());
        NodeCondition {
            type_: self.kind.into(),
            status: status.into(),
            reason: Some(self.reason.into()),
            message: Some(self.message),
            last_heartbeat_time: Some(whole_seconds(now)),
            last_transition_time: Some(since.unwrap_or_else(|| whole_seconds(now))),
        }
    }
}

/// The API keeps whole seconds.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn ready(health: &Health) -> Condition {
    let complaints = [
        health.runtime.complaint("container runtime"),
        health.network.complaint("pod network"),
        health
            .is_shutting_down
            .then(|| "node is shutting down".to_owned()),
    ];
    let complaints: Vec<_> = complaints.into_iter().flatten().collect();
    let (reason, message) = if complaints.is_empty() {
        ("KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        ("KubeletNotReady", complaints.join("; "))
    };
    Condition {
        kind: "Ready",
        holds: complaints.is_empty(),
        reason,
        message,
    }
}

/// In the words of upstream's route controller. While it holds, no pod is scheduled here.
fn network_unavailable(routes: &Part) -> Condition {
    let (holds, reason, message) = match routes {
        Part::Up => (
            false,
            "RouteCreated",
            "the other nodes' pods are routed".to_owned(),
        ),
        Part::Down(why) => (true, "NoRouteCreated", why.clone()),
    };
    Condition {
        kind: "NetworkUnavailable",
        holds,
        reason,
        message,
    }
}

fn memory_pressure(pressures: Pressures) -> Condition {
    pressure(
        "MemoryPressure",
        pressures.memory,
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
    )
}

fn disk_pressure(pressures: Pressures) -> Condition {
    pressure(
        "DiskPressure",
        pressures.disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    )
}

fn pid_pressure(pressures: Pressures) -> Condition {
    pressure(
        "PIDPressure",
        pressures.pid,
        (
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        ),
        (
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
    )
}

type Wording = (&'static str, &'static str);

fn pressure(kind: &'static str, holds: bool, yes: Wording, no: Wording) -> Condition {
    let (reason, message) = if holds { yes } else { no };
    Condition {
        kind,
        holds,
        reason,
        message: message.into(),
    }
}
