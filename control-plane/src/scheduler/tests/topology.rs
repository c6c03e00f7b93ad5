//! Placement that depends on where other pods are.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::*;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn in_zone(name: &str, zone: &str) -> Node {
    let mut node = node(name, "8");
    let labels = node.metadata.labels.get_or_insert_default();
    labels.insert(ZONE.into(), zone.into());
    node
}

/// Two nodes in zone `x`, one in zone `y`.
fn zones() -> Snapshot {
    cluster([in_zone("a", "x"), in_zone("b", "x"), in_zone("c", "y")])
}

fn app(name: &str, app: &str) -> PodBuilder {
    pod(name).label("app", app)
}

fn affinity(affinity: Value) -> impl FnOnce(&mut Pod) {
    move |pod| pod.spec.as_mut().unwrap().affinity = Some(serde_json::from_value(affinity).unwrap())
}

fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

fn near(term: &Value) -> impl FnOnce(&mut Pod) {
    affinity(json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}))
}

fn apart(term: &Value) -> impl FnOnce(&mut Pod) {
    affinity(json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}))
}

fn spread(rules: Value) -> impl FnOnce(&mut Pod) {
    move |pod| {
        let spec = pod.spec.as_mut().unwrap();
        spec.topology_spread_constraints = Some(serde_json::from_value(rules).unwrap());
    }
}

fn rule(key: &str, skew: i64, when: &str) -> Value {
    json!({
        "labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": key, "maxSkew": skew,
        "whenUnsatisfiable": when,
    })
}

fn place(snapshot: &mut Snapshot, pod: PodBuilder, node: &str) {
    snapshot.place(PodInfo::of(&pod.build()), node);
}

fn nowhere(message: &str) -> Choice {
    Choice::None(message.into())
}

/// Where the pod may go, by any draw.
fn options(pod: PodBuilder, snapshot: &Snapshot) -> Vec<String> {
    let pod = PodInfo::of(&pod.build());
    let mut found: Vec<String> = (0..12)
        .filter_map(|draw| match choose(&pod, snapshot, draw) {
            Choice::Node(node) => Some(node),
            Choice::None(_) => None,
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn a_pod_goes_near_those_it_wants_and_nowhere_without_them() {
    let mut snapshot = zones();
    let wants_db = || app("web", "web").with(near(&term("db", ZONE)));
    assert_eq!(
        chosen(wants_db(), &snapshot),
        nowhere("0/3 nodes are available: 3 node(s) didn't match pod affinity rules.")
    );
    place(&mut snapshot, app("db", "db"), "b");
    assert_eq!(options(wants_db(), &snapshot), ["a", "b"]);
    let on_its_node = app("web", "web").with(near(&term("db", HOST)));
    assert_eq!(options(on_its_node, &snapshot), ["b"]);
    let unlabelled = app("web", "web").with(near(&term("db", "rack")));
    assert!(options(unlabelled, &snapshot).is_empty());
}

#[test]
fn the_first_of_a_group_that_wants_itself_may_start_anywhere() {
    let mut snapshot = zones();
    let web = |name: &str| app(name, "web").with(near(&term("web", ZONE)));
    assert_eq!(options(web("one"), &snapshot).len(), 3);
    place(&mut snapshot, web("one"), "c");
    assert_eq!(options(web("two"), &snapshot), ["c"]);
}

#[test]
fn pods_that_do_not_want_each_other_are_kept_apart_from_both_sides() {
    let mut snapshot = zones();
    let loner = |name: &str| app(name, "web").with(apart(&term("web", ZONE)));
    place(&mut snapshot, loner("one"), "a");
    assert_eq!(options(loner("two"), &snapshot), ["c"]);
    place(&mut snapshot, loner("two"), "c");
    assert_eq!(
        chosen(loner("three"), &snapshot),
        nowhere("0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.")
    );
    assert_eq!(
        chosen(app("plain", "web"), &snapshot),
        nowhere(
            "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
        )
    );
    assert_eq!(options(app("else", "else"), &snapshot).len(), 3);
    snapshot.remove_pod("uid-two");
    assert_eq!(options(app("plain", "web"), &snapshot), ["c"]);
}

#[test]
fn a_term_is_about_the_namespaces_that_it_names() {
    let mut snapshot = zones();
    let elsewhere = |pod: &mut Pod| pod.metadata.namespace = Some("team".into());
    place(&mut snapshot, app("db", "db").with(elsewhere), "c");
    let team: Namespace = serde_json::from_value(json!({
        "metadata": {"name": "team", "labels": {"tier": "data"}}
    }))
    .unwrap();
    snapshot.set_namespace(&team);
    let wants = |more: Value| {
        let mut term = term("db", ZONE);
        for (field, value) in more.as_object().unwrap() {
            term[field] = value.clone();
        }
        options(app("web", "web").with(near(&term)), &snapshot)
    };
    assert!(wants(json!({})).is_empty(), "its own only");
    assert_eq!(wants(json!({"namespaces": ["team"]})), ["c"]);
    assert_eq!(wants(json!({"namespaceSelector": {}})), ["c"]);
    let labelled = |tier: &str| json!({"namespaceSelector": {"matchLabels": {"tier": tier}}});
    assert_eq!(wants(labelled("data")), ["c"]);
    assert!(wants(labelled("web")).is_empty());
}

#[test]
fn a_term_may_take_over_the_pods_own_labels() {
    let mut snapshot = zones();
    let of = |name: &str, version: &str| app(name, "web").label("version", version);
    place(&mut snapshot, of("old", "1"), "a");
    let mut same = term("web", ZONE);
    same["matchLabelKeys"] = json!(["version"]);
    let mut others = term("web", ZONE);
    others["mismatchLabelKeys"] = json!(["version"]);
    assert_eq!(
        options(of("new", "2").with(apart(&same)), &snapshot).len(),
        3
    );
    assert_eq!(
        options(of("new", "2").with(apart(&others)), &snapshot),
        ["c"]
    );
    assert_eq!(options(of("new", "1").with(apart(&same)), &snapshot), ["c"]);
}

#[test]
fn preferences_decide_among_nodes_and_refuse_none() {
    let mut snapshot = zones();
    place(&mut snapshot, app("db", "db"), "c");
    let wish = |kind: &str| {
        let weighed = json!([{"weight": 100, "podAffinityTerm": term("db", HOST)}]);
        affinity(json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": weighed}}))
    };
    assert_eq!(
        options(app("web", "web").with(wish("podAffinity")), &snapshot),
        ["c"]
    );
    assert_eq!(
        options(app("web", "web").with(wish("podAntiAffinity")), &snapshot),
        ["a", "b"]
    );
    let mut of_another = zones();
    place(
        &mut of_another,
        app("db", "db").with(wish("podAffinity")),
        "a",
    );
    place(
        &mut of_another,
        app("one", "x").with(near(&term("web", HOST))),
        "b",
    );
    assert_eq!(
        options(app("web", "web"), &of_another),
        ["b"],
        "others wish too"
    );
}

#[test]
fn pods_are_spread_as_far_as_the_rule_asks() {
    let mut snapshot = zones();
    let strict = || rule(ZONE, 1, "DoNotSchedule");
    let web = |name: &str| app(name, "web").with(spread(json!([strict()])));
    place(&mut snapshot, web("one"), "a");
    assert_eq!(options(web("two"), &snapshot), ["c"]);
    let mut full = in_zone("c", "y");
    full.spec.as_mut().unwrap().unschedulable = Some(true);
    snapshot.set_node(&full);
    assert_eq!(
        chosen(web("two"), &snapshot),
        nowhere(
            "0/3 nodes are available: 1 node(s) were unschedulable, \
             2 node(s) didn't match pod topology spread constraints."
        )
    );
    let racks = app("two", "web").with(spread(json!([rule("rack", 1, "DoNotSchedule")])));
    assert_eq!(
        chosen(racks, &snapshot),
        nowhere(
            "0/3 nodes are available: 1 node(s) were unschedulable, \
             2 node(s) didn't match pod topology spread constraints (missing required label)."
        )
    );
}

#[test]
fn spreading_counts_what_the_rule_says() {
    let mut snapshot = zones();
    place(&mut snapshot, app("one", "web"), "a");
    place(&mut snapshot, app("going", "web").terminating(), "c");
    place(&mut snapshot, app("other", "db"), "c");
    let elsewhere = |pod: &mut Pod| pod.metadata.namespace = Some("team".into());
    place(&mut snapshot, app("theirs", "web").with(elsewhere), "c");
    let with = |more: Value| {
        let mut rule = rule(ZONE, 1, "DoNotSchedule");
        for (field, value) in more.as_object().unwrap() {
            rule[field] = value.clone();
        }
        app("two", "web").with(spread(json!([rule])))
    };
    assert_eq!(options(with(json!({})), &snapshot), ["c"]);
    place(&mut snapshot, app("three", "web"), "c");
    assert_eq!(options(with(json!({})), &snapshot), ["b"]);
    assert!(
        options(with(json!({"minDomains": 3})), &snapshot).is_empty(),
        "a third zone is missing and counts as empty"
    );
    snapshot.remove_pod("uid-three");
    let only_x = |pod: &mut Pod| {
        let zone = Some([(ZONE.to_owned(), "x".to_owned())].into());
        pod.spec.as_mut().unwrap().node_selector = zone;
    };
    assert_eq!(
        options(with(json!({})).with(only_x), &snapshot),
        ["b"],
        "zone y is out of reach, so it is not empty"
    );
    let ignoring = with(json!({"nodeAffinityPolicy": "Ignore"})).with(only_x);
    assert!(options(ignoring, &snapshot).is_empty());
}

#[test]
fn a_wish_to_be_spread_refuses_no_node() {
    let mut snapshot = zones();
    place(&mut snapshot, app("one", "web"), "a");
    let web = || app("two", "web").with(spread(json!([rule(ZONE, 1, "ScheduleAnyway")])));
    assert_eq!(options(web(), &snapshot), ["c"]);
    snapshot.remove_node("c");
    assert!(!options(web(), &snapshot).is_empty());
}

proptest! {
    /// Pods come in any order; no zone ever has more than the skew above the emptiest, no node two loners.
    #[test]
    fn the_rules_hold_after_every_placement(
        zones in prop::collection::vec(0u8..3, 1..6), skew in 1i64..3,
        steps in prop::collection::vec((0u8..3, any::<u64>()), 0..60)
    ) {
        let nodes = zones.iter().enumerate().map(|(n, zone)| in_zone(&format!("n{n}"), &zone.to_string()));
        let mut snapshot = cluster(nodes);
        for (n, (kind, draw)) in steps.into_iter().enumerate() {
            let name = format!("p{n}");
            let pod = match kind {
                0 => app(&name, "lone").with(apart(&term("lone", HOST))),
                _ => app(&name, "web").with(spread(json!([rule(ZONE, skew, "DoNotSchedule")]))),
            };
            let pod = PodInfo::of(&pod.build());
            if let Choice::Node(node) = choose(&pod, &snapshot, draw) {
                snapshot.place(pod, &node);
            }
            let mut of_zone: BTreeMap<&str, i64> = zones.iter().map(|zone| (["0", "1", "2"][usize::from(*zone)], 0)).collect();
            let mut loners: BTreeMap<&str, i64> = BTreeMap::new();
            for (node, pod) in snapshot.placed() {
                match pod.labels["app"].as_str() {
                    "web" => *of_zone.get_mut(node.labels[ZONE].as_str()).unwrap() += 1,
                    _ => *loners.entry(&node.name).or_default() += 1,
                }
            }
            prop_assert!(loners.values().all(|count| *count == 1));
            prop_assert!(of_zone.values().max().unwrap() - of_zone.values().min().unwrap() <= skew);
        }
    }
}
