//! Whom a pod drives away that fits nowhere.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::controllers::testing::at;
use crate::scheduler::preempt::{Budget, Preemption, preempt};

fn ranked(name: &str, cpu: &str, priority: i32) -> PodBuilder {
    asking(name, cpu).with(|pod| pod.spec.as_mut().unwrap().priority = Some(priority))
}

fn since(pod: PodBuilder, second: i64) -> PodBuilder {
    pod.with(|pod| pod.status.as_mut().unwrap().start_time = Some(Time(at(second))))
}

/// Nodes of four processors with these pods on them.
fn crowded(nodes: &[(&str, Vec<PodBuilder>)]) -> Snapshot {
    let mut snapshot = cluster(nodes.iter().map(|(name, _)| node(name, "4")));
    for (name, pods) in nodes {
        for pod in pods {
            let pod = pod.clone().on(name).build();
            snapshot.place(PodInfo::of(&pod), name);
        }
    }
    snapshot
}

fn budget(app: &str, allowed: i32) -> Budget {
    let value = json!({
        "metadata": {"name": app, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
    });
    let budget: PodDisruptionBudget = serde_json::from_value(value).unwrap();
    Budget::of(&budget).unwrap()
}

/// The node, and who goes from it.
fn driven(pod: PodBuilder, snapshot: &mut Snapshot, budgets: &[Budget]) -> (String, Vec<String>) {
    match preempt(&PodInfo::of(&pod.build()), None, snapshot, budgets) {
        Preemption::On { node, victims } => {
            let mut names: Vec<String> = victims.into_iter().map(|pod| pod.name).collect();
            names.sort();
            (node, names)
        }
        Preemption::Awaited(why) | Preemption::None(why) => (why, Vec::new()),
    }
}

fn told(node: &str, victims: &[&str]) -> (String, Vec<String>) {
    let victims = victims.iter().map(|name| (*name).to_owned());
    (node.to_owned(), victims.collect())
}

#[test]
fn only_as_many_go_as_have_to_and_the_least_important() {
    let mut snapshot = crowded(&[(
        "a",
        vec![
            ranked("one", "1", 5),
            ranked("two", "1", 1),
            ranked("three", "2", 3),
        ],
    )]);
    let before = snapshot.node("a").unwrap().used.clone();
    assert_eq!(
        driven(ranked("p", "1", 10), &mut snapshot, &[]),
        told("a", &["two"])
    );
    assert_eq!(
        driven(ranked("p", "3", 10), &mut snapshot, &[]),
        told("a", &["three", "two"])
    );
    assert_eq!(
        driven(ranked("p", "3", 2), &mut snapshot, &[]).1,
        told("", &[]).1
    );
    assert_eq!(
        snapshot.node("a").unwrap().used,
        before,
        "it was only thought"
    );
}

#[test]
fn the_node_is_taken_where_the_least_is_lost() {
    let drives = |nodes: &[(&str, Vec<PodBuilder>)], budgets: &[Budget]| {
        driven(ranked("p", "4", 10), &mut crowded(nodes), budgets).0
    };
    let one = |name: &str, priority: i32| vec![ranked(name, "4", priority)];
    assert_eq!(drives(&[("a", one("x", 5)), ("b", one("y", 4))], &[]), "b");
    let halves = vec![ranked("y", "2", 5), ranked("z", "2", 5)];
    assert_eq!(drives(&[("a", halves), ("b", one("x", 5))], &[]), "b");
    let old = |name, second| vec![since(ranked(name, "4", 5), second)];
    assert_eq!(
        drives(&[("a", old("x", 10)), ("b", old("y", 20))], &[]),
        "b"
    );
    let kept = vec![ranked("y", "4", 1).label("app", "web")];
    let nodes = [("a", kept), ("b", one("x", 9))];
    assert_eq!(drives(&nodes, &[budget("web", 0)]), "b");
    assert_eq!(drives(&nodes, &[budget("web", 1)]), "a");
}

#[test]
fn whom_a_budget_keeps_goes_last() {
    let pods = vec![
        ranked("kept", "2", 1).label("app", "web"),
        ranked("other", "2", 5),
    ];
    let mut snapshot = crowded(&[("a", pods)]);
    let budgets = [budget("web", 0)];
    assert_eq!(
        driven(ranked("p", "2", 10), &mut snapshot, &budgets),
        told("a", &["other"])
    );
    assert_eq!(
        driven(ranked("p", "2", 10), &mut snapshot, &[]),
        told("a", &["kept"])
    );
}

#[test]
fn nobody_goes_where_it_would_not_help() {
    let mut snapshot = crowded(&[("a", vec![ranked("x", "2", 0)])]);
    let mut tainted = node("b", "8");
    tainted.spec.as_mut().unwrap().unschedulable = Some(true);
    snapshot.set_node(&tainted);
    let why = "0/2 nodes are available: 1 No preemption victims found for incoming pod, \
               1 Preemption is not helpful for scheduling.";
    assert_eq!(driven(ranked("p", "5", 10), &mut snapshot, &[]).0, why);
    let meek = ranked("p", "4", 10).with(|pod| {
        pod.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    });
    let why = "not eligible due to preemptionPolicy=Never.";
    assert_eq!(driven(meek, &mut snapshot, &[]).0, why);
}

#[test]
fn who_has_driven_others_away_waits_for_them() {
    let going = ranked("x", "4", 0).terminating();
    let mut snapshot = crowded(&[("a", vec![going]), ("b", vec![ranked("y", "4", 0)])]);
    let pod = PodInfo::of(&ranked("p", "4", 10).build());
    let waits = preempt(&pod, Some("a"), &mut snapshot, &[]);
    let why = "not eligible due to a terminating pod on the nominated node.";
    assert_eq!(waits, Preemption::Awaited(why.into()));
    assert!(matches!(
        preempt(&pod, Some("b"), &mut snapshot, &[]),
        Preemption::On { .. }
    ));
}

proptest! {
    /// Whoever goes has less priority; without them the pod fits; and none of them could stay.
    #[test]
    fn victims_are_few_and_enough(
        pods in prop::collection::vec((0..3_usize, 1..4_u32, 0..6_i32), 0..9),
        cpu in 1..5_u32,
        priority in 0..6_i32,
    ) {
        let names = ["a", "b", "c"];
        let mut snapshot = cluster(names.map(|name| node(name, "4")));
        for (number, (on, cpu, priority)) in pods.into_iter().enumerate() {
            let pod = ranked(&format!("pod-{number}"), &cpu.to_string(), priority).on(names[on]);
            snapshot.place(PodInfo::of(&pod.build()), names[on]);
        }
        let pod = PodInfo::of(&ranked("p", &cpu.to_string(), priority).build());
        prop_assume!(matches!(choose(&pod, &snapshot, 0), Choice::None(_)));
        if let Preemption::On { node, victims } = preempt(&pod, None, &mut snapshot, &[]) {
            for victim in &victims {
                prop_assert!(victim.priority < priority);
                snapshot.remove_pod(&victim.uid);
            }
            prop_assert_eq!(choose(&pod, &snapshot, 0), on(&node));
            for victim in &victims {
                snapshot.place(victim.clone(), &node);
                prop_assert!(matches!(choose(&pod, &snapshot, 0), Choice::None(_)));
                snapshot.remove_pod(&victim.uid);
            }
        }
    }
}
