//! What is done for a ReplicaSet, given its pods.

use k8s_openapi::api::apps::v1::ReplicaSetSpec;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use proptest::prelude::*;

use super::*;
use crate::controllers::pods::controller_of;
use crate::controllers::testing::{PodBuilder, at, pod};

fn set(replicas: i32) -> ReplicaSet {
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some("rs".into()),
            generation: Some(3),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    ..ObjectMeta::default()
                }),
                spec: Some(Default::default()),
            }),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

fn ours(name: &str) -> PodBuilder {
    pod(name)
        .label("app", "web")
        .owner("ReplicaSet", "web", "rs")
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect()
}

fn planned(set: &ReplicaSet, pods: Vec<PodBuilder>) -> Plan {
    let pods: Vec<Arc<Pod>> = pods.into_iter().map(|pod| Arc::new(pod.build())).collect();
    plan(set, &pods, &pods, at(1000))
}

#[test]
fn missing_pods_are_created_and_ended_ones_do_not_count() {
    let plan = planned(
        &set(3),
        vec![
            ours("a").ready_at(1),
            ours("b").phase("Failed"),
            ours("c").terminating(),
        ],
    );
    assert_eq!(plan.create, 2);
    assert_eq!(
        (plan.status.replicas, plan.status.ready_replicas),
        (1, Some(1))
    );
    assert_eq!(plan.status.observed_generation, Some(3));
}

#[test]
fn a_stray_that_matches_is_adopted_and_a_child_that_no_longer_does_is_released() {
    let released = pod("r")
        .label("app", "other")
        .owner("ReplicaSet", "web", "rs");
    let foreign = pod("f")
        .label("app", "web")
        .owner("ReplicaSet", "else", "rs2");
    let plan = planned(
        &set(1),
        vec![pod("s").label("app", "web"), released, foreign],
    );
    assert_eq!(names(&plan.claims.adopt), ["s"]);
    assert_eq!(names(&plan.claims.release), ["r"]);
    assert_eq!((plan.create, plan.delete.len()), (0, 0));
}

#[test]
fn the_least_missed_go_first() {
    let pods = || {
        vec![
            ours("old").on("n1").ready_at(1),
            ours("young").on("n1").ready_at(990).created_at(980),
            ours("unready").on("n2").phase("Running"),
            ours("pending").on("n2"),
            ours("unbound"),
        ]
    };
    let order = ["unbound", "pending", "unready", "young", "old"];
    for keep in 0..=5 {
        assert_eq!(
            names(&planned(&set(keep), pods()).delete),
            order[..5 - keep as usize]
        );
    }
}

#[test]
fn a_crowded_node_gives_first_and_cost_beats_it() {
    let pods = vec![
        ours("a").on("n1").ready_at(1),
        ours("b").on("n2").ready_at(1),
        ours("c").on("n2").ready_at(1),
    ];
    assert_eq!(names(&planned(&set(2), pods).delete), ["b"]);
    let costly = |pod: &mut Pod| {
        let cost = (
            "controller.kubernetes.io/pod-deletion-cost".to_owned(),
            "-1".to_owned(),
        );
        pod.metadata.annotations = Some([cost].into());
    };
    let pods = vec![
        ours("a").on("n1").ready_at(1).with(costly),
        ours("b").on("n2").ready_at(1),
        ours("c").on("n2").ready_at(1),
    ];
    assert_eq!(names(&planned(&set(2), pods).delete), ["a"]);
}

#[test]
fn min_ready_seconds_hold_back_available_and_ask_for_another_look() {
    let mut set = set(1);
    set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    let plan = planned(&set, vec![ours("a").ready_at(990)]);
    assert_eq!(
        (plan.status.ready_replicas, plan.status.available_replicas),
        (Some(1), None)
    );
    assert_eq!(plan.look_again, Some(Duration::from_secs(20)));
}

#[test]
fn a_set_that_is_being_deleted_does_nothing_to_its_pods() {
    let mut set = set(3);
    set.metadata.deletion_timestamp = Some(Time(at(0)));
    let plan = planned(&set, vec![ours("a"), pod("s").label("app", "web")]);
    assert_eq!(
        (plan.create, plan.claims.adopt.len(), plan.delete.len()),
        (0, 0, 0)
    );
}

#[test]
fn a_failure_is_told_once_for_each_reason_and_generation() {
    let mut stored = ReplicaSetStatus {
        observed_generation: Some(1),
        ..ReplicaSetStatus::default()
    };
    let mut told = |generation, failure: Option<(&str, &str)>| {
        let mut status = ReplicaSetStatus {
            observed_generation: Some(generation),
            ..stored.clone()
        };
        let failure = failure.map(|(reason, message)| (reason, message.to_owned()));
        with_failure(&mut status, Some(&stored), failure, at(generation));
        stored = status.clone();
        let condition = status.conditions?.pop()?;
        Some((condition.reason?, condition.message?))
    };
    let text = |reason: &str, message: &str| Some((reason.to_owned(), message.to_owned()));
    let create = |message| Some(("FailedCreate", message));
    assert_eq!(told(1, create("no a")), text("FailedCreate", "no a"));
    assert_eq!(told(1, create("no b")), text("FailedCreate", "no a"));
    assert_eq!(told(2, create("no c")), text("FailedCreate", "no c"));
    assert_eq!(
        told(2, Some(("FailedDelete", "no d"))),
        text("FailedDelete", "no d")
    );
    assert_eq!(told(2, None), None);
}

#[test]
fn a_pod_carries_the_template_and_its_owner() {
    let pod = {
        let set = set(1);
        pod_of(&set, crate::controllers::pods::controlled_by(&set))
    };
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
    assert_eq!(
        controller_of(&pod.metadata).map(|owner| owner.uid.as_str()),
        Some("rs")
    );
    assert_eq!(pod.metadata.labels.unwrap()["app"], "web");
}

proptest! {
    #[test]
    fn after_the_plan_the_count_is_right(wanted in 0i32..12, states in prop::collection::vec(0u8..5, 0..12)) {
        let pods: Vec<PodBuilder> = states.iter().enumerate().map(|(i, state)| {
            let pod = ours(&format!("p{i}"));
            match state {
                0 => pod,
                1 => pod.on("n1"),
                2 => pod.on("n2").ready_at(5),
                3 => pod.phase("Succeeded"),
                _ => pod.terminating(),
            }
        }).collect();
        let active = states.iter().filter(|state| **state < 3).count();
        let plan = planned(&set(wanted), pods);
        prop_assert_eq!(active + plan.create - plan.delete.len(), wanted as usize);
        prop_assert!(plan.create == 0 || plan.delete.is_empty());
    }
}
