//! The maps say what upstream's documentation says, and no write on the way to them says anything else than before or after.

use std::collections::BTreeMap;

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::abi::policy::PodRules;
use agent_ebpf::policy::Direction;
use proptest::prelude::*;
use serde_json::json;

use super::compile::{Desired, compile};
use super::explain::{Question, ask};
use super::oracle;
use super::state::{Pinned, PolicyOp, PolicyState};
use super::testing::*;

type Answers = BTreeMap<(LinkIndex, Direction, Flow), bool>;

fn desired(world: &World) -> Desired {
    compile(&world.view(), &world.local())
}

/// What the maps answer.
fn answers(pinned: &Pinned, flows: &[(LinkIndex, Direction, Flow)]) -> Answers {
    let met = Met::new(pinned);
    let answers = flows.iter();
    answers
        .map(|it| (*it, met.passes(it.0, it.1, &it.2)))
        .collect()
}

/// Brings the maps to where `world` wants them, and removes what is left over.
fn settle(state: &mut PolicyState, world: &World) {
    let desired = desired(world);
    for op in state.plan(&desired) {
        state.done(&op);
    }
    for op in state.collect(|it| desired.pods.contains_key(it)) {
        state.done(&op);
    }
}

/// Not a row more than is needed.
fn check_no_more(state: &PolicyState, desired: &Desired) {
    let pinned = state.pinned();
    assert!(pinned.pods.keys().eq(desired.pods.keys()));
    assert!(pinned.identities.keys().eq(desired.addresses.keys()));
    let named: Vec<[u8; 4]> = pinned
        .pods
        .values()
        .flat_map(|row| [row.now.ingress, row.now.egress])
        .map(|table| table.0.to_be_bytes())
        .collect();
    assert!(
        pinned
            .rules
            .iter()
            .all(|(key, _)| named.contains(&key.table))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_maps_say_what_the_documentation_says(world in worlds()) {
        let mut state = PolicyState::adopt(Pinned::default());
        settle(&mut state, &world);
        let met = Met::new(state.pinned());
        for (link, direction, flow) in flows(&[&world]) {
            let pod = world.pods.iter().find(|it| link_of(it) == link).unwrap();
            prop_assert_eq!(
                met.passes(link, direction, &flow),
                oracle::allows(&world, pod, direction, &flow),
                "{:?} {:?} of {:?}", direction, flow, pod.metadata.name
            );
        }
        check_no_more(&state, &desired(&world));
    }

    #[test]
    fn people_are_told_what_the_documentation_says(world in worlds()) {
        let (view, local) = (world.view(), world.local());
        for (link, direction, flow) in flows(&[&world]) {
            let pod = world.pods.iter().find(|it| link_of(it) == link).unwrap();
            let meta = &pod.metadata;
            let name = key(meta.namespace.as_deref().unwrap(), meta.name.as_deref().unwrap());
            let question = Question {
                direction,
                peer: flow.peer,
                protocol: flow.protocol,
                port: flow.port,
            };
            let answer = ask(&view, &local, &name, &view.pods[&name], &question);
            let expected = oracle::allows(&world, pod, direction, &flow);
            prop_assert_eq!(answer.is_yes(), expected, "{:?}: {:?}", question, answer);
        }
    }

    #[test]
    fn no_write_opens_a_window_or_closes_one(one in worlds(), two in worlds()) {
        let flows = flows(&[&one, &two]);
        let mut state = PolicyState::adopt(Pinned::default());
        settle(&mut state, &one);
        let before = answers(state.pinned(), &flows);
        let wanted = desired(&two);
        let ops = state.plan(&wanted);
        let mut after = state.pinned().clone();
        ops.iter().for_each(|op| after.apply(op));
        let after = answers(&after, &flows);
        let mut flipped = false;
        for op in ops {
            state.done(&op);
            flipped |= matches!(op, PolicyOp::Flip(_));
            let expected = if flipped { &after } else { &before };
            prop_assert_eq!(&answers(state.pinned(), &flows), expected, "{:?}", op);
        }
        for op in state.collect(|it| wanted.pods.contains_key(it)) {
            state.done(&op);
            // A link that is gone has no packets.
            let there: Answers = answers(state.pinned(), &flows)
                .into_iter()
                .filter(|((link, ..), _)| wanted.pods.contains_key(link))
                .collect();
            let expected: Answers = after
                .iter()
                .filter(|((link, ..), _)| wanted.pods.contains_key(link))
                .map(|(key, answer)| (*key, *answer))
                .collect();
            prop_assert_eq!(there, expected, "{:?}", op);
        }
        check_no_more(&state, &wanted);
        prop_assert_eq!(state.plan(&wanted), vec![]);
    }

    #[test]
    fn a_crash_at_any_write_changes_nothing_and_leaks_nothing(
        one in worlds(), two in worlds(), three in worlds(), at in any::<prop::sample::Index>(),
    ) {
        let flows = flows(&[&one, &two, &three]);
        let mut state = PolicyState::adopt(Pinned::default());
        settle(&mut state, &one);
        let mut ops = state.plan(&desired(&two));
        ops.extend(state.collect(|it| desired(&one).pods.contains_key(it)));
        ops.truncate(at.index(ops.len() + 1));
        for op in ops {
            state.done(&op);
        }
        let before = answers(state.pinned(), &flows);
        // Another process, which knows nothing but the maps, and a world that has gone on.
        let mut state = PolicyState::adopt(state.pinned().clone());
        let wanted = desired(&three);
        for op in state.plan(&wanted) {
            if matches!(op, PolicyOp::Flip(_)) {
                prop_assert_eq!(&answers(state.pinned(), &flows), &before);
            }
            state.done(&op);
        }
        for op in state.collect(|it| wanted.pods.contains_key(it)) {
            state.done(&op);
        }
        let met = Met::new(state.pinned());
        for (link, direction, flow) in &flows {
            if let Some(pod) = three.pods.iter().find(|it| is_here(it) && link_of(it) == *link)
                && addresses_of(pod).contains(&flow.pod)
            {
                let expected = oracle::allows(&three, pod, *direction, flow);
                prop_assert_eq!(met.passes(*link, *direction, flow), expected);
            }
        }
        check_no_more(&state, &wanted);
    }

    #[test]
    fn after_a_restart_nothing_is_written_when_nothing_has_changed(world in worlds()) {
        let mut state = PolicyState::adopt(Pinned::default());
        settle(&mut state, &world);
        let mut state = PolicyState::adopt(state.pinned().clone());
        prop_assert_eq!(state.plan(&desired(&world)), vec![]);
        prop_assert_eq!(state.collect(|it| desired(&world).pods.contains_key(it)), vec![]);
    }
}

/// Two pods of one deployment, another elsewhere, and a policy that lets `friend` in.
fn small() -> World {
    let pod = |n: usize, node: &str, app: &str| {
        serde_json::from_value(json!({
            "metadata": { "namespace": "a", "name": format!("p{n}"), "uid": n.to_string(), "labels": { "app": app } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.0.1.{n}") }] },
        }))
        .unwrap()
    };
    World {
        namespaces: vec![serde_json::from_value(json!({ "metadata": { "name": "a" } })).unwrap()],
        pods: vec![
            pod(1, NODE, "web"),
            pod(2, NODE, "web"),
            pod(3, "n2", "friend"),
        ],
        policies: vec![policy(json!({
            "metadata": { "namespace": "a", "name": "web" },
            "spec": {
                "podSelector": { "matchLabels": { "app": "web" } },
                "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "friend" } } }], "ports": [{ "port": 80 }] }],
                "policyTypes": ["Ingress"],
            },
        }))],
    }
}

#[test]
fn pods_with_the_same_rules_share_them_and_peers_with_the_same_features_their_number() {
    let mut world = small();
    for n in 4..40 {
        let mut more = world.pods[2].clone();
        more.metadata.uid = Some(n.to_string());
        more.metadata.name = Some(format!("p{n}"));
        more.status.as_mut().unwrap().pod_ips.as_mut().unwrap()[0].ip = format!("10.0.2.{n}");
        world.pods.push(more);
    }
    let mut state = PolicyState::adopt(Pinned::default());
    settle(&mut state, &world);
    assert_eq!(state.pinned().rules.len(), 1, "{:?}", state.pinned().rules);
    let numbers = state.pinned().identities.values().map(|row| row.now);
    let numbers: std::collections::BTreeSet<_> = numbers.collect();
    assert_eq!(numbers.len(), 2, "the friends, and the node");
}

#[test]
fn a_new_pod_is_closed_until_its_policies_are_known() {
    let mut world = small();
    let mut state = PolicyState::adopt(Pinned::default());
    settle(&mut state, &world);
    let (new, local) = (LinkIndex(9), world.local());
    let op = state.admit(new).unwrap();
    state.done(&op);
    assert_eq!(state.admit(new), None);
    assert_eq!(state.admit(LinkIndex(1)), None, "it has its rules");
    // The link is there before the API's watch tells of the pod.
    let mut more = world.pods[0].clone();
    more.metadata.uid = Some("9".into());
    more.metadata.name = Some("p9".into());
    more.status.as_mut().unwrap().pod_ips.as_mut().unwrap()[0].ip = "10.0.1.9".into();
    world.pods.push(more);
    let mut early = world.view();
    early.pods.remove(&key("a", "p9"));
    let wanted = compile(&early, &world.local());
    for op in state.plan(&wanted) {
        state.done(&op);
    }
    assert_eq!(state.pinned().pods[&new].now, PodRules::PENDING);
    settle(&mut state, &world);
    let pods = &state.pinned().pods;
    assert_eq!(pods[&new].now, pods[&LinkIndex(1)].now);
    // An object that goes while its pod still runs opens nothing.
    let mut late = world.view();
    late.pods.remove(&key("a", "p9"));
    assert_eq!(state.plan(&compile(&late, &world.local())), []);
    // And when the link is gone, its row is.
    let wanted = compile(&late, &local);
    assert_eq!(state.plan(&wanted), []);
    assert!(
        state
            .collect(|it| wanted.pods.contains_key(it))
            .contains(&PolicyOp::DeletePod(new))
    );
}

#[test]
fn without_policies_every_pod_is_open() {
    let mut world = small();
    world.policies.clear();
    let mut view = world.view();
    // Nobody watches pods then.
    view.pods.clear();
    view.namespaces.clear();
    let mut state = PolicyState::adopt(Pinned::default());
    for op in state.plan(&compile(&view, &world.local())) {
        state.done(&op);
    }
    let pods = &state.pinned().pods;
    assert_eq!(pods.len(), 2);
    assert!(pods.values().all(|row| row.now == PodRules::OPEN));
}

#[test]
fn ten_thousand_ranges_are_as_many_identities() {
    const RANGES: u32 = 10_000;
    let range = |number: u32| {
        let address = std::net::Ipv4Addr::from(0x6440_0000 + number);
        json!({"ipBlock": {"cidr": format!("{address}/32")}})
    };
    let mut world = small();
    let peers: Vec<_> = (0..RANGES).map(range).collect();
    world.policies = vec![policy(json!({
        "metadata": {"namespace": "a", "name": "many"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]},
    }))];
    let mut state = PolicyState::default();
    settle(&mut state, &world);
    // One more for the node itself.
    assert_eq!(state.pinned().identities.len(), RANGES as usize + 1);
    assert_eq!(state.pinned().rules.len(), RANGES as usize);
}
