//! Placement, from small clusters to random ones.

mod preemption;
mod topology;

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, Node, NodeAffinity, NodeCondition, NodeSelectorRequirement,
    NodeSelectorTerm, Pod, PreferredSchedulingTerm, ResourceRequirements, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proptest::prelude::*;

use super::choose::{Choice, choose};
use super::snapshot::{PodInfo, Snapshot};
use crate::controllers::testing::{PodBuilder, pod};

fn node(name: &str, cpu: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    node.metadata.labels = Some([("kubernetes.io/hostname".to_owned(), name.to_owned())].into());
    node.spec = Some(Default::default());
    let status = node.status.get_or_insert_default();
    let has = [("cpu", cpu), ("memory", "4Gi"), ("pods", "110")];
    status.allocatable = Some(
        has.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .into(),
    );
    let ready = NodeCondition {
        type_: "Ready".into(),
        status: "True".into(),
        ..NodeCondition::default()
    };
    status.conditions = Some(vec![ready]);
    node
}

fn asking(name: &str, cpu: &str) -> PodBuilder {
    let cpu = cpu.to_owned();
    pod(name).with(move |pod| {
        let requests = Some([("cpu".to_owned(), Quantity(cpu))].into());
        let resources = Some(ResourceRequirements {
            requests,
            ..ResourceRequirements::default()
        });
        pod.spec.as_mut().unwrap().containers = vec![Container {
            resources,
            ..Container::default()
        }];
    })
}

fn cluster(nodes: impl IntoIterator<Item = Node>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    nodes.into_iter().for_each(|node| snapshot.set_node(&node));
    snapshot
}

fn chosen(pod: PodBuilder, snapshot: &Snapshot) -> Choice {
    choose(&PodInfo::of(&pod.build()), snapshot, 0)
}

fn on(node: &str) -> Choice {
    Choice::Node(node.into())
}

#[test]
fn a_pod_without_a_node_is_told_why() {
    assert_eq!(
        chosen(asking("p", "1"), &cluster([])),
        Choice::None("no nodes available to schedule pods".into())
    );
    let mut cordoned = node("c", "8");
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    let mut tainted = node("t", "8");
    let taint = Taint {
        key: "k".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    tainted.spec.as_mut().unwrap().taints = Some(vec![taint.clone()]);
    let mut tainted_too = node("u", "8");
    tainted_too.spec.as_mut().unwrap().taints = Some(vec![taint]);
    let mut silent = node("s", "8");
    silent.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
    let snapshot = cluster([
        node("small", "500m"),
        cordoned,
        tainted,
        tainted_too,
        silent,
    ]);
    let message = "0/5 nodes are available: 1 Insufficient cpu, 1 node(s) were not ready, \
                   1 node(s) were unschedulable, 2 node(s) had untolerated taint(s).";
    assert_eq!(
        chosen(asking("p", "1"), &snapshot),
        Choice::None(message.into())
    );
}

#[test]
fn a_pod_that_is_bound_elsewhere_than_assumed_takes_room_where_it_is_bound() {
    let mut snapshot = cluster([node("a", "1"), node("b", "1")]);
    let info = PodInfo::of(&asking("p", "1").build());
    assert!(snapshot.place(info.clone(), "a"));
    assert!(snapshot.place(info, "b"));
    assert_eq!(chosen(asking("q", "1"), &snapshot), on("a"));
}

#[test]
fn a_toleration_opens_the_tainted_node() {
    let mut tainted = node("t", "8");
    let taint = Taint {
        key: "k".into(),
        value: Some("v".into()),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    tainted.spec.as_mut().unwrap().taints = Some(vec![taint]);
    let snapshot = cluster([tainted]);
    let tolerating = |toleration: Toleration| {
        chosen(
            pod("p").with(|pod| pod.spec.as_mut().unwrap().tolerations = Some(vec![toleration])),
            &snapshot,
        )
    };
    let equal = Toleration {
        key: Some("k".into()),
        value: Some("v".into()),
        ..Toleration::default()
    };
    assert_eq!(tolerating(equal.clone()), on("t"));
    let all = Toleration {
        operator: Some("Exists".into()),
        ..Toleration::default()
    };
    assert_eq!(tolerating(all), on("t"));
    assert_ne!(
        tolerating(Toleration {
            value: Some("w".into()),
            ..equal.clone()
        }),
        on("t")
    );
    assert_ne!(
        tolerating(Toleration {
            effect: Some("NoExecute".into()),
            ..equal
        }),
        on("t")
    );
}

#[test]
fn selector_and_affinity_choose_the_node() {
    let snapshot = cluster(["a", "b", "c"].map(|name| node(name, "8")));
    let term = |operator: &str, values: &[&str]| NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: operator.into(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        }]),
        match_fields: None,
    };
    let selecting = pod("p").with(|pod| {
        pod.spec.as_mut().unwrap().node_selector =
            Some([("kubernetes.io/hostname".to_owned(), "b".to_owned())].into());
    });
    assert_eq!(chosen(selecting, &snapshot), on("b"));
    let with_affinity = |affinity: NodeAffinity| {
        pod("p").with(|pod| {
            pod.spec.as_mut().unwrap().affinity = Some(Affinity {
                node_affinity: Some(affinity),
                ..Affinity::default()
            });
        })
    };
    let mut required = NodeAffinity::default();
    required
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .node_selector_terms = vec![term("NotIn", &["a", "b"])];
    assert_eq!(chosen(with_affinity(required), &snapshot), on("c"));
    let preferred = NodeAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(vec![PreferredSchedulingTerm {
            weight: 10,
            preference: term("In", &["b"]),
        }]),
        ..NodeAffinity::default()
    };
    assert_eq!(chosen(with_affinity(preferred), &snapshot), on("b"));
}

#[test]
fn pods_of_one_owner_spread_and_others_go_where_there_is_room() {
    let mut snapshot = cluster([node("a", "4"), node("b", "4")]);
    let replica = |name: &str| {
        PodInfo::of(
            &asking(name, "100m")
                .owner("ReplicaSet", "web", "rs")
                .build(),
        )
    };
    snapshot.place(replica("one"), "a");
    assert_eq!(choose(&replica("two"), &snapshot, 0), on("b"));
    snapshot.place(PodInfo::of(&asking("big", "2").build()), "b");
    assert_eq!(chosen(asking("other", "100m"), &snapshot), on("a"));
}

#[test]
fn a_host_port_is_taken_once_on_a_node() {
    let mut snapshot = cluster([node("a", "4"), node("b", "4")]);
    let with_port = |name: &str| {
        pod(name).with(|pod| {
            let port = ContainerPort {
                container_port: 80,
                host_port: Some(8080),
                ..ContainerPort::default()
            };
            pod.spec.as_mut().unwrap().containers = vec![Container {
                ports: Some(vec![port]),
                ..Container::default()
            }];
        })
    };
    snapshot.place(PodInfo::of(&with_port("one").build()), "a");
    assert_eq!(chosen(with_port("two"), &snapshot), on("b"));
    snapshot.place(PodInfo::of(&with_port("two").build()), "b");
    let message =
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(
        chosen(with_port("three"), &snapshot),
        Choice::None(message.into())
    );
    assert!(snapshot.remove_pod("uid-one"));
    assert_eq!(chosen(with_port("three"), &snapshot), on("a"));
}

#[test]
fn an_init_container_counts_when_it_is_the_largest() {
    let with_init = |pod: &mut Pod| {
        let requests = Some([("cpu".to_owned(), Quantity("3".into()))].into());
        let resources = Some(ResourceRequirements {
            requests,
            ..ResourceRequirements::default()
        });
        pod.spec.as_mut().unwrap().init_containers = Some(vec![Container {
            resources,
            ..Container::default()
        }]);
    };
    let pod = PodInfo::of(&asking("p", "1").with(with_init).build());
    assert_eq!(pod.requests.get("cpu"), 3000);
}

#[test]
fn equals_take_turns_by_the_draw() {
    let snapshot = cluster([node("a", "4"), node("b", "4")]);
    let pod = PodInfo::of(&asking("p", "1").build());
    assert_eq!(choose(&pod, &snapshot, 0), on("a"));
    assert_eq!(choose(&pod, &snapshot, 1), on("b"));
    assert_eq!(choose(&pod, &snapshot, 0), on("a"));
}

#[test]
fn a_node_that_comes_back_still_carries_its_pods() {
    let mut snapshot = cluster([node("a", "1")]);
    snapshot.place(PodInfo::of(&asking("p", "800m").build()), "a");
    snapshot.remove_node("a");
    snapshot.set_node(&node("a", "1"));
    assert_ne!(chosen(asking("q", "800m"), &snapshot), on("a"));
}

proptest! {
    /// Whatever comes and goes, no node ever holds more than it has, and the books balance.
    #[test]
    fn no_node_is_ever_over_committed(
        sizes in prop::collection::vec(1i64..8, 1..5), steps in prop::collection::vec((0u8..4, 1i64..2500, any::<u64>()), 0..120)
    ) {
        let nodes = sizes.iter().enumerate().map(|(i, cpu)| node(&format!("n{i}"), &cpu.to_string()));
        let mut snapshot = cluster(nodes);
        let mut placed: Vec<String> = Vec::new();
        for (i, (kind, cpu, draw)) in steps.into_iter().enumerate() {
            if kind == 0 && !placed.is_empty() {
                let gone = placed.swap_remove(usize::try_from(draw % placed.len() as u64).unwrap());
                prop_assert!(snapshot.remove_pod(&gone));
                continue;
            }
            let pod = PodInfo::of(&asking(&format!("p{i}"), &format!("{cpu}m")).build());
            let choice = choose(&pod, &snapshot, draw);
            prop_assert_eq!(&choice, &choose(&pod, &snapshot, draw));
            match choice {
                Choice::Node(node) => {
                    placed.push(pod.uid.clone());
                    snapshot.place(pod, &node);
                }
                Choice::None(_) => {
                    let fits = snapshot.nodes().any(|node| node.used.get("cpu") + cpu <= node.allocatable.get("cpu"));
                    prop_assert!(!fits, "there was room");
                }
            }
            for node in snapshot.nodes() {
                prop_assert!(node.used.get("cpu") <= node.allocatable.get("cpu"));
            }
        }
        for uid in placed {
            snapshot.remove_pod(&uid);
        }
        prop_assert!(snapshot.nodes().all(|node| node.used.get("cpu") == 0 && node.pods == 0 && node.groups.is_empty()));
    }
}

#[test]
fn a_container_takes_what_it_has_until_its_resize_is_done() {
    let resized = |asked: &str, given: &str, pending: Option<&str>| {
        let status = serde_json::json!({
            "containerStatuses": [{
                "name": "", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": {"cpu": given}, "resources": {"requests": {"cpu": "1"}},
            }],
            "conditions": pending.map(|reason| serde_json::json!([
                {"type": "PodResizePending", "status": "True", "reason": reason},
            ])),
        });
        let status = serde_json::from_value(status).unwrap();
        let pod = asking("p", asked).with(|pod| pod.status = Some(status));
        PodInfo::of(&pod.build()).requests.get("cpu")
    };
    assert_eq!(resized("500m", "2", None), 2000, "it shrinks");
    assert_eq!(resized("500m", "500m", None), 1000, "not done yet");
    assert_eq!(resized("3", "2", Some("Deferred")), 3000, "it grows");
    assert_eq!(resized("3", "2", Some("Infeasible")), 2000, "it never will");
    let unknown = asking("p", "500m").build();
    assert_eq!(PodInfo::of(&unknown).requests.get("cpu"), 500);
}
