//! The columns of pods: how many containers are ready, and one word for how the pod does.

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

use crate::resources::{Column, age, print};

pub(super) const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "Containers that are ready, of all."),
    Column::text("Status", "How the pod does, in one word."),
    Column::text("Restarts", "How often containers were started again."),
    Column::AGE,
    Column::text("IP", "The pod's address.").wide(),
    Column::text("Node", "Where the pod runs.").wide(),
    Column::text(
        "Nominated Node",
        "Where the pod will run once others have made way.",
    )
    .wide(),
    Column::text(
        "Readiness Gates",
        "Conditions from outside that hold, of all.",
    )
    .wide(),
];

pub(super) fn row(pod: &Pod, now: i64) -> Vec<Value> {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let summary = summary(pod, &spec, &status);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts > 0 => {
            format!(
                "{} ({} ago)",
                summary.restarts,
                age::since_time(Some(&last), now)
            )
        }
        _ => summary.restarts.to_string(),
    };
    let first_ip = status
        .pod_ips
        .as_ref()
        .and_then(|ips| ips.first())
        .map(|ip| ip.ip.as_str());
    vec![
        json!(print::name(&pod.metadata)),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        json!(age::of(&pod.metadata, now)),
        json!(print::or_none(first_ip.or(status.pod_ip.as_deref()))),
        json!(print::or_none(spec.node_name.as_deref())),
        json!(print::or_none(status.nominated_node_name.as_deref())),
        json!(gates(&spec, &status)),
    ]
}

fn gates(spec: &PodSpec, status: &PodStatus) -> String {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    if gates.is_empty() {
        return print::NONE.to_owned();
    }
    let hold = gates
        .iter()
        .filter(|gate| is_true(status, &gate.condition_type))
        .count();
    format!("{hold}/{}", gates.len())
}

fn is_true(status: &PodStatus, kind: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == kind && condition.status == "True")
}

/// What the row says about the containers.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i32,
    last_restart: Option<Time>,
}

fn summary(pod: &Pod, spec: &PodSpec, status: &PodStatus) -> Summary {
    let mut summary = Summary {
        reason: initial_reason(status),
        ready: 0,
        total: spec.containers.len(),
        restarts: 0,
        last_restart: None,
    };
    summary.total += init_containers(spec)
        .iter()
        .filter(|container| is_sidecar(container))
        .count();
    let initializing = walk_init(&mut summary, spec, status);
    if !initializing || is_true(status, "Initialized") {
        walk_main(&mut summary, spec, status);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if status.reason.as_deref() == Some("NodeLost") {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

fn initial_reason(status: &PodStatus) -> String {
    let gated = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("SchedulingGated")
    });
    if gated {
        return "SchedulingGated".to_owned();
    }
    let known = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    known(&status.reason)
        .or_else(|| known(&status.phase))
        .unwrap_or_default()
}

fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// An init container that keeps running beside the others.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Goes over the init containers up to the first that is not done; says whether there is one.
fn walk_init(summary: &mut Summary, spec: &PodSpec, status: &PodStatus) -> bool {
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        count_restarts(summary, container);
        let sidecar = init_containers(spec)
            .iter()
            .any(|init| init.name == container.name && is_sidecar(init));
        let state = container.state.clone().unwrap_or_default();
        let exit_code = state
            .terminated
            .as_ref()
            .map(|terminated| terminated.exit_code);
        if exit_code == Some(0) {
            continue;
        }
        if sidecar && container.started == Some(true) {
            summary.ready += usize::from(container.ready);
            continue;
        }
        let waiting = state
            .waiting
            .and_then(|waiting| waiting.reason)
            .filter(|reason| !reason.is_empty());
        summary.reason = match (ended(container), waiting) {
            (Some(ended), _) => format!("Init:{ended}"),
            (None, Some(waiting)) if waiting != "PodInitializing" => format!("Init:{waiting}"),
            _ => format!("Init:{index}/{}", init_containers(spec).len()),
        };
        return true;
    }
    false
}

fn walk_main(summary: &mut Summary, spec: &PodSpec, status: &PodStatus) {
    // Once the pod is initialized, the restarts of init containers that are over count no more.
    (summary.restarts, summary.last_restart) = (0, None);
    for container in status.init_container_statuses.iter().flatten() {
        if init_containers(spec)
            .iter()
            .any(|init| init.name == container.name && is_sidecar(init))
        {
            count_restarts(summary, container);
        }
    }
    let mut any_running = false;
    for container in status.container_statuses.iter().flatten().rev() {
        count_restarts(summary, container);
        let state = container.state.clone().unwrap_or_default();
        let waiting = state
            .waiting
            .and_then(|waiting| waiting.reason)
            .filter(|reason| !reason.is_empty());
        if let Some(reason) = waiting.or_else(|| ended(container)) {
            summary.reason = reason;
        } else if container.ready && state.running.is_some() {
            any_running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && any_running {
        summary.reason = if is_true(status, "Ready") {
            "Running"
        } else {
            "NotReady"
        }
        .to_owned();
    }
}

fn count_restarts(summary: &mut Summary, container: &ContainerStatus) {
    summary.restarts += container.restart_count;
    let terminated = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let finished = terminated.and_then(|terminated| terminated.finished_at.clone());
    summary.last_restart = summary.last_restart.take().max(finished);
}

/// Why a container is over, if it is.
fn ended(container: &ContainerStatus) -> Option<String> {
    let terminated = container.state.as_ref()?.terminated.as_ref()?;
    Some(
        match (
            terminated.reason.as_deref().unwrap_or_default(),
            terminated.signal.unwrap_or_default(),
        ) {
            ("", 0) => format!("ExitCode:{}", terminated.exit_code),
            ("", signal) => format!("Signal:{signal}"),
            (reason, _) => reason.to_owned(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn cells(pod: Value) -> Vec<Value> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        row(&pod, NOW)
    }

    fn status_of(spec: Value, status: Value) -> String {
        let cells = cells(json!({ "spec": spec, "status": status }));
        format!(
            "{} {} {}",
            cells[1].as_str().unwrap(),
            cells[2].as_str().unwrap(),
            cells[3].as_str().unwrap()
        )
    }

    fn one() -> Value {
        json!({ "containers": [{ "name": "a" }] })
    }

    #[test]
    fn a_running_pod_in_full() {
        let cells = cells(json!({
            "metadata": { "name": "web", "creationTimestamp": "2025-12-31T23:59:00Z" },
            "spec": {
                "containers": [{ "name": "a" }], "nodeName": "node-1",
                "readinessGates": [{ "conditionType": "x" }, { "conditionType": "y" }],
            },
            "status": {
                "phase": "Running", "podIP": "10.244.1.2", "podIPs": [{ "ip": "10.244.1.2" }],
                "conditions": [{ "type": "x", "status": "True" }],
                "containerStatuses": [{
                    "name": "a", "ready": true, "restartCount": 1, "image": "", "imageID": "",
                    "state": { "running": {} },
                    "lastState": { "terminated": { "exitCode": 1, "finishedAt": "2025-12-31T23:59:55Z" } },
                }],
            },
        }));
        assert_eq!(
            cells,
            [
                "web",
                "1/1",
                "Running",
                "1 (5s ago)",
                "60s",
                "10.244.1.2",
                "node-1",
                "<none>",
                "1/2"
            ]
        );
    }

    #[test]
    fn the_status_is_the_most_telling_reason() {
        let container = |state: Value| json!({ "phase": "Running", "containerStatuses": [{ "name": "a", "state": state, "restartCount": 3 }] });
        assert_eq!(
            status_of(one(), json!({ "phase": "Pending" })),
            "0/1 Pending 0"
        );
        assert_eq!(
            status_of(
                one(),
                container(json!({ "waiting": { "reason": "CrashLoopBackOff" } }))
            ),
            "0/1 CrashLoopBackOff 3"
        );
        assert_eq!(
            status_of(one(), container(json!({ "terminated": { "exitCode": 2 } }))),
            "0/1 ExitCode:2 3"
        );
        assert_eq!(
            status_of(
                one(),
                container(json!({ "terminated": { "exitCode": 137, "signal": 9 } }))
            ),
            "0/1 Signal:9 3"
        );
        assert_eq!(
            status_of(
                one(),
                container(json!({ "terminated": { "exitCode": 1, "reason": "Error" } }))
            ),
            "0/1 Error 3"
        );
        assert_eq!(
            status_of(one(), json!({ "phase": "Failed", "reason": "Evicted" })),
            "0/1 Evicted 0"
        );
    }

    #[test]
    fn init_containers_are_counted_off() {
        let spec = json!({
            "containers": [{ "name": "a" }],
            "initContainers": [{ "name": "i" }, { "name": "s", "restartPolicy": "Always" }],
        });
        let init = |first: Value, second: Value| {
            json!({ "phase": "Pending", "initContainerStatuses": [
                { "name": "i", "state": first }, { "name": "s", "state": second, "started": true, "ready": true }
            ] })
        };
        let done = json!({ "terminated": { "exitCode": 0, "reason": "Completed" } });
        assert_eq!(
            status_of(spec.clone(), init(json!({ "running": {} }), json!({}))),
            "0/2 Init:0/2 0"
        );
        assert_eq!(
            status_of(
                spec.clone(),
                init(
                    json!({ "waiting": { "reason": "ErrImagePull" } }),
                    json!({})
                )
            ),
            "0/2 Init:ErrImagePull 0"
        );
        assert_eq!(
            status_of(
                spec.clone(),
                init(
                    json!({ "terminated": { "exitCode": 1, "reason": "Error" } }),
                    json!({})
                )
            ),
            "0/2 Init:Error 0"
        );
        assert_eq!(
            status_of(spec, init(done, json!({ "running": {} }))),
            "1/2 Pending 0"
        );
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_terminating() {
        let dying = |status: Value| {
            cells(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": one(), "status": status }))
                [2]
            .clone()
        };
        assert_eq!(dying(json!({ "phase": "Running" })), "Terminating");
        assert_eq!(dying(json!({ "phase": "Succeeded" })), "Succeeded");
        assert_eq!(
            dying(json!({ "phase": "Running", "reason": "NodeLost" })),
            "Unknown"
        );
    }

    #[test]
    fn one_finished_container_does_not_hide_a_running_one() {
        let status = |ready: &str| {
            json!({
                "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }],
                "containerStatuses": [
                    { "name": "a", "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } },
                    { "name": "b", "ready": true, "state": { "running": {} } },
                ],
            })
        };
        let spec = json!({ "containers": [{ "name": "a" }, { "name": "b" }] });
        assert_eq!(status_of(spec.clone(), status("False")), "1/2 NotReady 0");
        assert_eq!(status_of(spec, status("True")), "1/2 Running 0");
    }
}
