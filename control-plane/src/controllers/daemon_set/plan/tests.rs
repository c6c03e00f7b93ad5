//! What is done for a DaemonSet, given its pods and the nodes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::controllers::testing::{PodBuilder, at, pod};
use crate::resources::Strategy as _;

fn set(change: impl FnOnce(&mut Value)) -> DaemonSet {
    let mut value = json!({
        "metadata": {"name": "log", "namespace": "default", "uid": "ds"},
        "spec": {
            "selector": {"matchLabels": {"app": "log"}},
            "template": {
                "metadata": {"labels": {"app": "log"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}], "nodeSelector": {"disk": "big"}},
            },
        },
    });
    change(&mut value);
    let mut set: DaemonSet = serde_json::from_value(value).unwrap();
    set.set_defaults();
    set.prepare_create();
    set
}

fn node(name: &str, taints: Value) -> Arc<Node> {
    let node =
        json!({"metadata": {"name": name, "labels": {"disk": "big"}}, "spec": {"taints": taints}});
    Arc::new(serde_json::from_value(node).unwrap())
}

fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
    names.iter().map(|name| node(name, json!([]))).collect()
}

fn ours(name: &str, on: &str, revision: &str) -> PodBuilder {
    pod(name)
        .label("app", "log")
        .label(REVISION, revision)
        .owner("DaemonSet", "log", "ds")
        .on(on)
}

fn planned(set: &DaemonSet, nodes: &[Arc<Node>], pods: Vec<PodBuilder>) -> Plan {
    let pods: Vec<Arc<Pod>> = pods.into_iter().map(|pod| Arc::new(pod.build())).collect();
    plan(set, "new", &pods, nodes, true, at(1000))
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect()
}

fn targets(plan: &Plan) -> Vec<&str> {
    plan.create.iter().filter_map(|pod| node_for(pod)).collect()
}

#[test]
fn each_node_that_suits_gets_a_pod_of_its_own() {
    let mut all = nodes(&["a", "b"]);
    let small = json!({"metadata": {"name": "small"}});
    all.push(Arc::new(serde_json::from_value(small).unwrap()));
    all.push(node("mine", json!([{"key": "k", "effect": "NoSchedule"}])));
    all.push(node(
        "cordoned",
        json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
    ));
    let plan = planned(&set(|_| {}), &all, vec![ours("p", "a", "new").ready_at(0)]);
    assert_eq!(targets(&plan), ["b", "cordoned"]);
    let made = &plan.create[0].metadata;
    let labels = made.labels.as_ref().unwrap();
    assert_eq!(
        (
            labels[REVISION].as_str(),
            labels["pod-template-generation"].as_str()
        ),
        ("new", "1")
    );
    let status = plan.status;
    assert_eq!(
        (
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_ready
        ),
        (3, 1, 1)
    );
    assert_eq!(
        (status.number_available, status.number_unavailable),
        (Some(1), Some(2))
    );
}

#[test]
fn pods_leave_nodes_that_bar_them_and_stay_on_those_that_only_take_no_new_ones() {
    let all = vec![
        node("full", json!([{"key": "k", "effect": "NoSchedule"}])),
        node("gone", json!([{"key": "k", "effect": "NoExecute"}])),
    ];
    let pods = vec![
        ours("stays", "full", "new").ready_at(0),
        ours("goes", "gone", "new").ready_at(0),
    ];
    let plan = planned(&set(|_| {}), &all, pods);
    assert_eq!(names(&plan.delete), ["goes"]);
    assert_eq!(plan.status.number_misscheduled, 2);
}

#[test]
fn what_failed_or_is_one_too_many_goes() {
    let pods = vec![
        ours("failed", "a", "new").phase("Failed"),
        ours("first", "b", "new").ready_at(0),
        ours("second", "b", "new").created_at(5),
    ];
    let plan = planned(&set(|_| {}), &nodes(&["a", "b"]), pods);
    assert_eq!(names(&plan.delete), ["failed", "second"]);
    assert_eq!(plan.events[0].1, "FailedDaemonPod");
    assert!(plan.create.is_empty(), "when the failed one is gone");
    let young = ours("failed", "a", "new").phase("Failed").created_at(997);
    let plan = planned(&set(|_| {}), &nodes(&["a"]), vec![young]);
    assert!(plan.delete.is_empty());
    assert_eq!(plan.look_again, Some(Duration::from_secs(7)));
}

#[test]
fn an_update_takes_one_node_after_the_other() {
    let old = |name: &str, on: &str| ours(name, on, "old").ready_at(0);
    let all = nodes(&["a", "b", "c"]);
    let first = planned(
        &set(|_| {}),
        &all,
        vec![old("pa", "a"), old("pb", "b"), old("pc", "c")],
    );
    assert_eq!(names(&first.delete), ["pa"]);
    let waits = planned(
        &set(|_| {}),
        &all,
        vec![ours("na", "a", "new"), old("pb", "b"), old("pc", "c")],
    );
    assert!(waits.delete.is_empty(), "the new one is not available yet");
    let sick = planned(
        &set(|_| {}),
        &all,
        vec![
            ours("na", "a", "new"),
            ours("pb", "b", "old"),
            old("pc", "c"),
        ],
    );
    assert_eq!(names(&sick.delete), ["pb"], "it serves nobody");
    let by_hand = set(|set| set["spec"]["updateStrategy"] = json!({"type": "OnDelete"}));
    let still = planned(
        &by_hand,
        &all,
        vec![old("pa", "a"), old("pb", "b"), old("pc", "c")],
    );
    assert!(still.delete.is_empty());
}

#[test]
fn an_update_may_double_pods_instead() {
    let surging = set(|set| {
        set["spec"]["updateStrategy"] =
            json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    });
    let old = |name: &str, on: &str| ours(name, on, "old").ready_at(0);
    let all = nodes(&["a", "b"]);
    let first = planned(&surging, &all, vec![old("pa", "a"), old("pb", "b")]);
    assert_eq!((targets(&first), names(&first.delete)), (vec!["a"], vec![]));
    let both = |new: PodBuilder| planned(&surging, &all, vec![old("pa", "a"), new, old("pb", "b")]);
    let waits = both(ours("na", "a", "new"));
    assert!(waits.delete.is_empty() && waits.create.is_empty());
    let serves = both(ours("na", "a", "new").ready_at(900));
    assert_eq!(names(&serves.delete), ["pa"]);
}

fn any_pod(number: usize) -> impl Strategy<Value = PodBuilder> {
    let phases = prop_oneof![Just("Pending"), Just("Failed"), Just("Ready")];
    (phases, any::<bool>(), any::<bool>(), 0_usize..3).prop_map(
        move |(phase, is_new, terminating, on)| {
            let revision = if is_new { "new" } else { "old" };
            let pod = ours(&format!("p{number}"), ["a", "b", "c"][on], revision);
            let pod = match phase {
                "Ready" => pod.ready_at(0),
                phase => pod.phase(phase),
            };
            if terminating { pod.terminating() } else { pod }
        },
    )
}

proptest! {
    #[test]
    fn step_by_step_each_node_comes_to_have_one_new_pod(pods in (0_usize..6).prop_flat_map(|count| (0..count).map(any_pod).collect::<Vec<_>>()), surge: bool) {
        let set = set(|set| if surge {
            set["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        });
        let all = nodes(&["a", "b", "c"]);
        let mut pods: Vec<Arc<Pod>> = pods.into_iter().map(|pod| Arc::new(pod.build())).collect();
        for round in 0..20 {
            let plan = plan(&set, "new", &pods, &all, true, at(1000));
            let doomed = names(&plan.delete).into_iter().map(str::to_owned).collect::<Vec<_>>();
            // What is asked to go is gone, and what is made is ready.
            pods.retain(|pod| pod.metadata.deletion_timestamp.is_none() && !doomed.contains(pod.metadata.name.as_ref().unwrap()));
            for (number, made) in plan.create.iter().enumerate() {
                let node = node_for(made).unwrap();
                pods.push(Arc::new(ours(&format!("made-{round}-{number}"), node, "new").ready_at(0).build()));
            }
            for pod in &mut pods {
                if crate::controllers::pods::phase(pod) == "Pending" {
                    *pod = Arc::new(ours(pod.metadata.name.as_ref().unwrap(), node_for(pod).unwrap(), &pod.metadata.labels.as_ref().unwrap()[REVISION]).ready_at(0).build());
                }
            }
        }
        let mut on: Vec<_> = pods.iter().filter_map(|pod| node_for(pod)).collect();
        on.sort_unstable();
        prop_assert_eq!(on, ["a", "b", "c"]);
        prop_assert!(pods.iter().all(|pod| pod.metadata.labels.as_ref().unwrap()[REVISION] == "new"));
    }
}
