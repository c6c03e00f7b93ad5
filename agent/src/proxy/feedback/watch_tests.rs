use agent_ebpf::abi::BackendId;
use proptest::prelude::*;

use super::super::super::policy::{Class, desired};
use super::super::super::testing::*;
use super::super::signals::{Counters, Load};
use super::*;
use crate::cluster::{Endpoint, Locality, View};
use crate::dataplane::MapOp;

/// Backends as a test wants them.
#[derive(Default)]
struct Told {
    counters: HashMap<BackendId, Counters>,
    looks: usize,
}

impl Look for Told {
    fn counters(&mut self, backend: BackendId) -> Counters {
        self.looks += 1;
        self.counters.get(&backend).copied().unwrap_or_default()
    }

    fn load(&mut self, _: &Target) -> Load {
        Load::default()
    }
}

/// The proxy on one node, without its effects.
struct Node {
    view: View,
    state: LbState,
    maps: Maps,
    watch: Watch,
    told: Told,
    now: Duration,
}

impl Node {
    fn new(view: View) -> Self {
        let mut node = Self {
            view,
            state: LbState::new(),
            maps: Maps::default(),
            watch: Watch::default(),
            told: Told::default(),
            now: Duration::ZERO,
        };
        node.state.set_synced();
        for key in services_of(&[&node.view]) {
            node.sync(&key);
        }
        node
    }

    /// As the worker does it. Gives the writes.
    fn sync(&mut self, owner: &ObjectKey) -> Vec<MapOp> {
        let (mut frontends, ignored) = desired(&self.view, NODE, Locality::Node, owner);
        for frontend in &mut frontends {
            self.watch.apply(owner, frontend);
        }
        let mut written = Vec::new();
        for frontend in self.state.assign(owner, frontends, ignored) {
            if let Some(flip) = self.state.plan(owner, &frontend) {
                for op in &flip.ops {
                    self.maps.apply(op.clone());
                    written.push(op.clone());
                }
                self.state.settle(flip, true);
            }
        }
        written
    }

    fn tick(&mut self) -> Vec<MapOp> {
        self.now += EVERY;
        let due = self.watch.tick(&self.state, &mut self.told, self.now);
        due.iter().flat_map(|owner| self.sync(owner)).collect()
    }

    /// The backend of the endpoint with that last byte.
    fn counters(&mut self, last: u8) -> &mut Counters {
        let mut all = self.state.backends();
        let (id, _) = all
            .find(|(_, target)| target.address.to_ip() == ip(last))
            .unwrap();
        self.told.counters.entry(id).or_default()
    }

    fn class(&self, last: u8) -> Class {
        let live = self.live();
        let at = |id: &BackendId| self.state.backend(*id).unwrap().address.to_ip() == ip(last);
        live.class(live.slots.iter().position(at).unwrap())
    }

    fn live(&self) -> &Live {
        self.state.frontends_of(&web_key()).next().unwrap().1
    }
}

fn web_key() -> ObjectKey {
    ObjectKey::new("ns", "web")
}

/// One local backend, two others.
fn endpoints() -> Vec<Endpoint> {
    vec![
        endpoint(1, "a", "z1"),
        endpoint(2, "b", "z2"),
        endpoint(3, "c", "z2"),
    ]
}

fn web() -> Node {
    Node::new(view(vec![("web", service("10.96.0.1"), endpoints())]))
}

/// Connections that were answered in a millisecond and ended at once.
fn serve(counters: &mut Counters, connections: u64) {
    counters.opens += connections;
    counters.closes += connections;
    counters.handshakes += connections;
    counters.handshake_ns += connections * 1_000_000;
}

#[test]
fn services_without_traffic_cost_a_glance_now_and_then() {
    let names: Vec<String> = (0..2000).map(|number| format!("s{number}")).collect();
    let services = (0..).zip(&names).map(|(number, name)| {
        let address = format!("10.96.{}.{}", number / 250, number % 250 + 1);
        (name.as_str(), service(&address), endpoints())
    });
    let mut node = Node::new(view(services.collect()));
    for _ in 0..40 {
        node.told.looks = 0;
        assert!(node.tick().is_empty());
        assert!(node.told.looks <= GLANCES + OF_ONE, "{}", node.told.looks);
    }
    assert_eq!(node.watch.pause(), IDLE);
}

#[test]
fn a_slow_local_backend_loses_its_share_by_single_writes_and_gets_it_back() {
    let mut node = web();
    let full = node.live().entry.local_share;
    let mut writes = Vec::new();
    for _ in 0..100 {
        // Hundreds of connections stay open on the node; elsewhere they are over at once.
        serve(node.counters(1), 5);
        node.counters(1).opens += 5;
        serve(node.counters(2), 2);
        writes.extend(node.tick());
    }
    assert!(writes.iter().all(|op| matches!(op, MapOp::PutService(..))));
    assert!((3..60).contains(&writes.len()), "{}", writes.len());
    let low = node.live().entry.local_share;
    assert!(low < full / 4, "{low} of {full}");
    assert_eq!(node.watch.pause(), EVERY);

    let active = node.counters(1).active();
    node.counters(1).closes += active;
    for _ in 0..1200 {
        node.tick();
    }
    assert_eq!(node.live().entry.local_share, full);
    assert_eq!(node.watch.pause(), IDLE, "nothing is left to look at");
}

#[test]
fn a_backend_that_fails_is_out_for_a_while_and_keeps_its_row() {
    let mut node = web();
    for _ in 0..5 {
        serve(node.counters(2), 1);
        node.tick();
    }
    node.counters(3).failures += 3;
    assert!(!node.tick().is_empty());
    assert_eq!(node.class(3), Class::Draining);
    for _ in 0..9 {
        node.tick();
        assert_eq!(node.class(3), Class::Draining);
    }
    node.tick();
    assert_eq!(node.class(3), Class::Rest, "a second later");
}

#[test]
fn tables_for_the_outside_stay_as_they_are_whatever_this_node_sees() {
    let mut node = Node::new(view(vec![(
        "web",
        exposed_service("10.96.0.1"),
        endpoints(),
    )]));
    let outside = |node: &Node| {
        let all = node.state.frontends_of(&web_key());
        let all = all.filter(|(key, _)| key.scope == Scope::EXTERNAL);
        all.map(|(_, live)| live.entry).collect::<Vec<_>>()
    };
    let before = outside(&node);
    assert_eq!(before.len(), 3);
    for _ in 0..5 {
        serve(node.counters(2), 1);
        node.tick();
    }
    node.counters(3).failures += 3;
    let writes = node.tick();
    assert_eq!(node.class(3), Class::Draining, "at the cluster IP");
    assert!(!writes.iter().any(|op| matches!(op, MapOp::PutMaglev(..))));
    assert_eq!(outside(&node), before);
}

#[test]
fn an_earlier_runs_share_is_taken_over() {
    let mut node = web();
    let (key, live) = node.state.frontends().next().unwrap();
    let (key, mut entry) = (*key, live.entry);
    entry.local_share = SHARE_ONE / 4;
    node.maps.apply(MapOp::PutService(key, entry));
    node.state = LbState::adopt(node.maps.pinned(), 1);
    node.state.set_synced();
    node.watch.adopt(&node.state);
    node.sync(&web_key());
    assert_eq!(node.live().entry.local_share, SHARE_ONE / 4);
}

proptest! {
    /// The update protocol holds whatever the feedback says, and at least half of the backends stay.
    #[test]
    fn no_ejection_opens_a_window(failures in prop::collection::vec((0_u8..6, 0_u64..5), 1..60)) {
        let backends = (1..=5).map(|last| endpoint(last, if last < 3 { "a" } else { "b" }, "z1"));
        let mut node = Node::new(view(vec![("web", service("10.96.0.1"), backends.collect())]));
        let allowed = allowed(&node.view);
        for (last, failed) in failures {
            if last > 0 {
                let counters = node.counters(last);
                counters.opens += failed;
                counters.closes += failed;
                counters.failures += failed;
            }
            let mut maps = node.maps.clone();
            for op in node.tick() {
                maps.apply(op);
                for (key, allowed) in &allowed {
                    prop_assert!(maps.outcomes(key).is_subset(allowed));
                }
            }
            prop_assert!(node.live().entry.ready >= 3);
        }
    }
}
