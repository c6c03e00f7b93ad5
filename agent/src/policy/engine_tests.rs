use super::super::state::Pinned;
use super::super::testing::*;
use super::*;
use crate::cluster::watch::World as _;
use crate::policy::watch::Changed;
use agent_ebpf::abi::policy::{FlowKey, FlowRow, RuleTable};
use serde_json::json;

/// Maps in memory, of which the writes of one kind may fail.
#[derive(Clone, Default)]
struct FakeMaps(Arc<Mutex<(Pinned, bool)>>, Arc<Mutex<Vec<FlowKey>>>);

impl PolicyTables for FakeMaps {
    fn apply(&mut self, op: &PolicyOp) -> Result<(), PolicyMapError> {
        let (pinned, full) = &mut *self.0.lock().unwrap();
        if *full {
            return Err(PolicyMapError::Full {
                map: "POLICY_RULES",
                max_entries: 1,
                op: Box::new(*op),
            });
        }
        pinned.apply(op);
        Ok(())
    }
    fn remember(&mut self, flows: &[(FlowKey, FlowRow)]) {
        let keys = flows.iter().map(|(key, _)| *key);
        self.1.lock().unwrap().extend(keys);
    }
}

impl FakeMaps {
    fn rules(&self, link: LinkIndex) -> Option<PodRules> {
        let (pinned, _) = &*self.0.lock().unwrap();
        pinned.pods.get(&link).map(|row| pinned.rules_of(row))
    }
}

fn engine(maps: &FakeMaps) -> Engine {
    let state = PolicyState::adopt(maps.0.lock().unwrap().0.clone());
    let sockets = |_: &str| {
        vec![OpenConversation {
            protocol: agent_ebpf::abi::TCP,
            own_port: [0x9c, 0x40],
            peer: agent_ebpf::abi::Address::v4([192, 0, 2, 1]),
            peer_port: [0, 80],
            was_called: false,
        }]
    };
    let known = Known::new(NODE.into());
    Engine::new(known, state, Box::new(maps.clone()), Box::new(sockets))
}

/// One pod here, and a policy that closes all of its namespace.
fn world() -> World {
    World {
        namespaces: vec![serde_json::from_value(json!({ "metadata": { "name": "a" } })).unwrap()],
        pods: vec![
            serde_json::from_value(json!({
                "metadata": { "namespace": "a", "name": "p1", "uid": "1" },
                "spec": { "nodeName": NODE, "containers": [] },
                "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.1.1" }] },
            }))
            .unwrap(),
        ],
        policies: vec![policy(json!({
            "metadata": { "namespace": "a", "name": "closed" },
            "spec": { "podSelector": {}, "policyTypes": ["Ingress"] },
        }))],
    }
}

fn tell(engine: &Engine, world: &World, complete: bool) {
    engine.known().update(|view| {
        *view = world.view();
        vec![Changed]
    });
    for kind in ["networkpolicies", "pods", "namespaces"] {
        if complete {
            engine.known().listed(kind);
        }
    }
}

fn turn(engine: &Engine) {
    if engine.pass().unwrap() {
        engine.sweep().unwrap();
    }
}

const LINK: LinkIndex = LinkIndex(1);

fn connect(engine: &Engine) {
    let name = crate::network::addresses::veth_name("1");
    let address = "10.0.1.1".parse().unwrap();
    engine.connected(LINK, &name, &[address]).unwrap();
}

#[test]
fn a_new_pod_is_closed_before_its_link_is_up_and_as_its_policies_say_after_it() {
    let maps = FakeMaps::default();
    let engine = engine(&maps);
    engine.links_are_known(&[]);
    tell(&engine, &world(), false);
    connect(&engine);
    assert_eq!(maps.rules(LINK), Some(PodRules::PENDING));
    turn(&engine);
    assert_eq!(maps.rules(LINK), Some(PodRules::PENDING), "a partial view");
    tell(&engine, &world(), true);
    turn(&engine);
    let expected = PodRules {
        ingress: RuleTable::CLOSED,
        egress: RuleTable::OPEN,
    };
    assert_eq!(maps.rules(LINK), Some(expected));
    engine.disconnected(LINK);
    turn(&engine);
    assert_eq!(maps.rules(LINK), None);
}

#[test]
fn a_link_that_comes_between_a_pass_and_its_sweep_keeps_its_row() {
    let maps = FakeMaps::default();
    let engine = engine(&maps);
    engine.links_are_known(&[]);
    tell(&engine, &world(), true);
    assert!(!engine.pass().unwrap() || engine.sweep().is_ok());
    connect(&engine);
    engine.sweep().unwrap();
    assert_eq!(maps.rules(LINK), Some(PodRules::PENDING));
}

#[test]
fn what_is_pinned_holds_until_links_and_policies_are_known_again() {
    let maps = FakeMaps::default();
    let first = engine(&maps);
    first.links_are_known(&[]);
    tell(&first, &world(), true);
    connect(&first);
    turn(&first);
    let closed = maps.rules(LINK);
    let again = engine(&maps);
    let mut without = world();
    without.policies.clear();
    // The watches are quicker than the look at the links.
    tell(&again, &without, true);
    turn(&again);
    assert_eq!(maps.rules(LINK), closed);
    connect(&again);
    again.links_are_known(&[LINK]);
    turn(&again);
    assert_eq!(maps.rules(LINK), Some(PodRules::OPEN));
}

#[test]
fn pods_from_before_policies_were_looked_at_stay_open_until_they_are() {
    let maps = FakeMaps::default();
    let engine = engine(&maps);
    connect(&engine);
    engine.links_are_known(&[LINK]);
    turn(&engine);
    assert_eq!(maps.rules(LINK), None);
    tell(&engine, &world(), true);
    turn(&engine);
    assert_eq!(maps.rules(LINK).unwrap().ingress, RuleTable::CLOSED);
}

#[test]
fn what_is_open_when_a_pod_becomes_isolated_is_remembered() {
    let maps = FakeMaps::default();
    let engine = engine(&maps);
    engine.links_are_known(&[]);
    let mut without = world();
    without.policies.clear();
    tell(&engine, &without, true);
    connect(&engine);
    turn(&engine);
    assert_eq!(maps.rules(LINK), Some(PodRules::OPEN));
    assert!(maps.1.lock().unwrap().is_empty(), "nobody is isolated");
    tell(&engine, &world(), true);
    turn(&engine);
    let flows = maps.1.lock().unwrap().clone();
    assert_eq!(flows.len(), 2, "before the flip, and after it");
    assert_eq!((flows[0].pod, flows[0].peer_port), (LINK, [0, 80]));
    turn(&engine);
    assert_eq!(maps.1.lock().unwrap().len(), 2, "it is isolated already");
}

#[test]
fn a_full_map_refuses_a_pod_and_is_made_up_for() {
    let maps = FakeMaps::default();
    let engine = engine(&maps);
    engine.links_are_known(&[]);
    tell(&engine, &world(), true);
    maps.0.lock().unwrap().1 = true;
    let refused = engine.connected(LINK, "kn", &[]);
    assert!(refused.is_err(), "its link stays down");
    maps.0.lock().unwrap().1 = false;
    connect(&engine);
    maps.0.lock().unwrap().1 = true;
    assert!(engine.pass().is_err());
    assert!(engine.problem().unwrap().contains("POLICY_RULES is full"));
    maps.0.lock().unwrap().1 = false;
    turn(&engine);
    assert_eq!(engine.problem(), None);
    assert_eq!(maps.rules(LINK).unwrap().ingress, RuleTable::CLOSED);
}
