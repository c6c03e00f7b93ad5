//! The update protocol in the real kernel: clients connect without pause while endpoints change at random.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::abi::{Address, Scope, ServiceKey, TCP, maps as names};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::policy::desired;
use super::reconcile::COLLECT_AFTER;
use super::state::LbState;
use super::testing::{NODE, endpoint, not_ready, service, slice, terminating, view};
use crate::cluster::{Endpoint, ObjectKey, View};
use crate::dataplane::testing::{Dialler, on_scratch_node, tcp_backend_at};
use crate::dataplane::{Maps, ServiceMaps as _};

const CHANGES: usize = 10_000;
const BACKENDS: u8 = 6;

const fn key(last: u8) -> ServiceKey {
    ServiceKey {
        address: Address::v4([10, 96, 0, last]),
        port: [0, 80],
        protocol: TCP,
        scope: Scope::CLUSTER,
    }
}

/// Some of a service's backends, in any state; one at least can answer.
fn endpoints(first: u8) -> impl Strategy<Value = Vec<Endpoint>> {
    let one = (0..BACKENDS, 0..4_u8, any::<bool>(), any::<bool>());
    let some = proptest::collection::vec(one, 1..usize::from(BACKENDS));
    some.prop_map(move |picks| {
        let mut seen = BTreeSet::new();
        let picks = picks.into_iter().filter(|pick| seen.insert(pick.0));
        let each = picks.enumerate().map(|(n, (which, state, near, zone))| {
            let node = if near { NODE } else { "b" };
            let there = endpoint(first + which, node, if zone { "z1" } else { "z2" });
            match state {
                1 => terminating(there),
                2 if n > 0 => not_ready(there),
                _ => there,
            }
        });
        each.collect()
    })
}

/// Brings one service from the view into the maps.
fn sync(state: &mut LbState, maps: &mut Maps, view: &View, key: &ObjectKey) {
    let (frontends, ignored) = desired(view, NODE, crate::cluster::Locality::Node, key);
    for frontend in state.assign(key, frontends, ignored) {
        if let Some(flip) = state.plan(key, &frontend) {
            maps.apply_all(&flip.ops).unwrap();
            state.settle(flip, true);
        }
    }
}

#[test]
fn ten_thousand_random_endpoint_changes_refuse_nobody_and_lead_to_no_stranger() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let services = [("web", key(1), 1), ("shop", key(2), 1 + BACKENDS)];
        let mut current: View = view(vec![]);
        for (name, _, first) in services {
            for which in 0..BACKENDS {
                let address = format!("10.244.0.{}", first + which);
                let added = Command::new("ip")
                    .args(["address", "add", &address, "dev", "lo"])
                    .status();
                assert!(added.unwrap().success());
                tcp_backend_at(&format!("{address}:8080"), name);
            }
        }
        let mut runner = TestRunner::deterministic();
        let mut state = LbState::new();
        state.set_synced();
        let mut diallers = Vec::new();
        let mut collected = Instant::now();
        for change in 0..CHANGES {
            let (name, address, first) = services[change % 2];
            let owner = ObjectKey::new("ns", name);
            let endpoints = endpoints(first).new_tree(&mut runner).unwrap().current();
            let dialled = service(&address.address.to_string());
            current.services.insert(owner.clone(), Arc::new(dialled));
            current.set_slice(owner.clone(), Some(slice(name, endpoints)));
            sync(&mut state, &mut dataplane.maps, &current, &owner);
            if change < 2 {
                diallers.push(Dialler::start(address, name));
            }
            if collected.elapsed() > COLLECT_AFTER {
                assert!(dataplane.maps.remove_all(state.collect()).is_empty());
                collected = Instant::now();
            }
        }
        // While the endpoints changed, not after it.
        let dialled: Vec<u32> = diallers.iter().map(Dialler::count).collect();
        assert!(dialled.iter().all(|count| *count > 100), "{dialled:?}");
        for dialler in diallers {
            assert_eq!(dialler.stop(), Vec::<String>::new());
        }
        let totals = dataplane.maps.totals().unwrap();
        assert!(
            totals.services.values().all(|service| service.hole == 0),
            "{totals:?}"
        );

        // Nothing is left of all that but the two live tables.
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(1));
            assert!(dataplane.maps.remove_all(state.collect()).is_empty());
        }
        assert_eq!(dataplane.maps.rows(names::SERVICES).unwrap().len(), 2);
        let left = dataplane.maps.dump().unwrap();
        let named: BTreeSet<_> = left.slots.values().collect();
        assert_eq!(named, left.backends.keys().collect());
    });
}
