//! Address ranges, conditions, taints and evictions.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::eviction::{FirstSeen, Stay, stay};
use super::health::{
    NO_EXECUTE, NOT_READY, Readiness, UNREACHABLE, is_cleared, readiness, silenced, taints,
};
use super::lifecycle::reason;
use super::orphans::{Verdict, end, verdict};
use crate::controllers::testing::{at, pod};

fn node(ready: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some("n1".into());
    node.spec = Some(Default::default());
    node.status.get_or_insert_default().conditions = Some(vec![NodeCondition {
        type_: "Ready".into(),
        status: ready.into(),
        last_heartbeat_time: Some(Time(at(50))),
        ..NodeCondition::default()
    }]);
    node
}

fn keys(taints: &[Taint]) -> Vec<(&str, &str)> {
    taints
        .iter()
        .map(|taint| (taint.key.as_str(), taint.effect.as_str()))
        .collect()
}

#[test]
fn a_silent_node_is_unknown_and_tainted_and_a_returning_one_is_not() {
    let conditions = silenced(&node("True"), at(100));
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref()),
        ("Unknown", Some("NodeStatusUnknown"))
    );
    assert_eq!(
        ready.last_heartbeat_time,
        Some(Time(at(50))),
        "the last word of the node stays its own"
    );

    let tainted = taints(&node("True"), Readiness::Unknown, true, at(100)).unwrap();
    assert_eq!(
        keys(&tainted),
        [(UNREACHABLE, "NoSchedule"), (UNREACHABLE, NO_EXECUTE)]
    );

    let mut back = node("True");
    let mut own = tainted.clone();
    own.push(Taint {
        key: "theirs".into(),
        effect: NO_EXECUTE.into(),
        ..Taint::default()
    });
    back.spec.as_mut().unwrap().taints = Some(own);
    assert_eq!(
        keys(&taints(&back, readiness(&back), true, at(200)).unwrap()),
        [("theirs", NO_EXECUTE)]
    );
}

#[test]
fn taints_that_are_right_stay_with_the_time_they_were_added() {
    let mut silent = node("Unknown");
    silent.spec.as_mut().unwrap().taints = taints(&silent, Readiness::Unknown, true, at(100));
    assert_eq!(taints(&silent, readiness(&silent), true, at(200)), None);
    assert_eq!(
        silenced(&silent, at(200))
            .iter()
            .filter(|condition| condition.type_ == "Ready")
            .count(),
        0
    );
}

#[test]
fn a_node_that_may_not_be_cleared_yet_gets_no_new_pods_all_the_same() {
    let tainted = |node: &Node, may_clear| taints(node, Readiness::Unknown, may_clear, at(100));
    let mut silent = node("Unknown");
    let held = tainted(&silent, false).unwrap();
    assert_eq!(keys(&held), [(UNREACHABLE, "NoSchedule")]);
    silent.spec.as_mut().unwrap().taints = tainted(&silent, true);
    assert!(is_cleared(&silent));
    let called_off = tainted(&silent, false).unwrap();
    assert_eq!(keys(&called_off), [(UNREACHABLE, "NoSchedule")]);
}

#[test]
fn cordon_and_pressure_keep_new_pods_away() {
    let mut cordoned = node("True");
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    let pressure = NodeCondition {
        type_: "DiskPressure".into(),
        status: "True".into(),
        ..NodeCondition::default()
    };
    cordoned
        .status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap()
        .push(pressure);
    let taints = taints(&cordoned, readiness(&cordoned), true, at(0)).unwrap();
    let wanted = [
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ];
    assert_eq!(keys(&taints), wanted);
}

#[test]
fn a_pod_stays_as_long_as_it_tolerates() {
    let taints = [
        Taint {
            key: UNREACHABLE.into(),
            effect: NO_EXECUTE.into(),
            time_added: Some(Time(at(100))),
            value: None,
        },
        Taint {
            key: "soft".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        },
    ];
    let tolerating = |key: &str, seconds: Option<i64>| {
        pod("p")
            .with(|pod: &mut Pod| {
                pod.spec.as_mut().unwrap().tolerations = Some(vec![Toleration {
                    key: Some(key.into()),
                    operator: Some("Exists".into()),
                    toleration_seconds: seconds,
                    ..Toleration::default()
                }]);
            })
            .build()
    };
    let stay = |pod: &Pod, taints: &[Taint], now| stay(pod, taints, &FirstSeen::default(), now);
    assert_eq!(stay(&pod("p").build(), &taints, at(100)), Stay::Over);
    assert_eq!(
        stay(&tolerating(NOT_READY, Some(300)), &taints, at(109)),
        Stay::Over
    );
    assert_eq!(
        stay(&tolerating(UNREACHABLE, None), &taints, at(9999)),
        Stay::ForEver
    );
    assert_eq!(
        stay(&tolerating(UNREACHABLE, Some(300)), &taints, at(160)),
        Stay::For(Duration::from_secs(240))
    );
    assert_eq!(
        stay(&tolerating(UNREACHABLE, Some(300)), &taints, at(400)),
        Stay::Over
    );
    assert_eq!(
        stay(&pod("p").build(), &taints[1..], at(100)),
        Stay::ForEver
    );
}

#[test]
fn the_time_to_leave_runs_from_when_pod_and_taint_met() {
    let patient = |name: &str| {
        let toleration = Toleration {
            operator: Some("Exists".into()),
            toleration_seconds: Some(300),
            ..Toleration::default()
        };
        pod(name).with(|pod| pod.spec.as_mut().unwrap().tolerations = Some(vec![toleration]))
    };
    let taint = |time: Option<i64>| Taint {
        key: "theirs".into(),
        effect: NO_EXECUTE.into(),
        time_added: time.map(|time| Time(at(time))),
        value: None,
    };
    // A taint that does not tell its time counts from the first look.
    let old = [Arc::new(patient("old").build())];
    let mut seen = FirstSeen::default();
    for (now, left) in [(1000, 300), (1100, 200)] {
        seen.look(&old, &[taint(None)], at(now));
        let stay = stay(&old[0], &[taint(None)], &seen, at(now));
        assert_eq!(stay, Stay::For(Duration::from_secs(left)));
    }
    seen.look(&old, &[taint(None)], at(1300));
    assert_eq!(stay(&old[0], &[taint(None)], &seen, at(1300)), Stay::Over);
    seen.look(&old, &[], at(1301));
    seen.look(&old, &[taint(None)], at(1302));
    assert_eq!(
        stay(&old[0], &[taint(None)], &seen, at(1302)),
        Stay::For(Duration::from_secs(300)),
        "a taint that was away starts anew"
    );
    // A pod that comes to a node that was tainted long ago has its whole time.
    let late = patient("late").created_at(5000).build();
    assert_eq!(
        stay(&late, &[taint(Some(10))], &seen, at(5100)),
        Stay::For(Duration::from_secs(200))
    );
}

#[test]
fn pods_that_nobody_will_finish_are_found() {
    let bound = pod("p").on("n1").build();
    let mut out = node("Unknown");
    let taint = Taint {
        key: "node.kubernetes.io/out-of-service".into(),
        effect: NO_EXECUTE.into(),
        ..Taint::default()
    };
    out.spec.as_mut().unwrap().taints = Some(vec![taint]);
    assert_eq!(verdict(&bound, Some(&node("True"))), Verdict::Keep);
    assert_eq!(verdict(&bound, None), Verdict::Orphan);
    assert_eq!(verdict(&bound, Some(&out)), Verdict::Keep);
    assert_eq!(
        verdict(&pod("p").on("n1").terminating().build(), Some(&out)),
        Verdict::Remove
    );
    assert_eq!(
        verdict(
            &pod("p").on("n1").terminating().build(),
            Some(&node("Unknown"))
        ),
        Verdict::Keep
    );
    assert_eq!(verdict(&pod("p").build(), None), Verdict::Keep);
    assert_eq!(
        verdict(&pod("p").terminating().build(), None),
        Verdict::Remove
    );
}

#[test]
fn a_pod_that_nobody_will_finish_has_failed_before_it_is_removed() {
    let running = pod("a").on("n1").ready_at(0).build();
    let orphan = end(&running, Verdict::Orphan, at(5)).unwrap();
    assert_eq!(orphan["metadata"], json!({"uid": "uid-a"}));
    assert_eq!(orphan["status"]["phase"], "Failed");
    let said = &orphan["status"]["conditions"];
    let is = |field: &str| said[0][field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        ["type", "status", "reason", "message"].map(is),
        [
            "DisruptionTarget",
            "True",
            "DeletionByPodGC",
            "PodGC: node no longer exists"
        ]
    );
    let out = end(&running, Verdict::Remove, at(5)).unwrap();
    assert_eq!(out["status"], json!({"phase": "Failed"}));
    for phase in ["Failed", "Succeeded"] {
        let over = pod("a").on("n1").phase(phase).build();
        assert_eq!(end(&over, Verdict::Orphan, at(5)), None);
    }
}

#[test]
fn an_evicted_pod_is_told_why_since_the_first_time() {
    let mut pod = pod("a").on("n1").ready_at(0).build();
    let condition = |said: &Value| said["status"]["conditions"][0].clone();
    let first = condition(&reason(&pod, at(5)));
    assert_eq!(
        (&first["type"], &first["reason"], &first["message"]),
        (
            &json!("DisruptionTarget"),
            &json!("DeletionByTaintManager"),
            &json!("Taint manager: deleting due to NoExecute taint")
        )
    );
    let told = serde_json::from_value(first.clone()).unwrap();
    let status = pod.status.as_mut().unwrap();
    status.conditions.as_mut().unwrap().push(told);
    assert_eq!(condition(&reason(&pod, at(9))), first);
}
