//! The update protocol in the real kernel: clients connect without pause while endpoints change at random.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::abi::{Address, SHARE_ONE, Scope, ServiceKey, TCP, maps as names};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::policy::desired;
use super::reconcile::COLLECT_AFTER;
use super::state::LbState;
use super::testing::{NODE, endpoint, not_ready, service, slice, terminating, view};
use crate::cluster::{Endpoint, Locality, ObjectKey, View};
use crate::dataplane::testing::{Dialler, dial, on_scratch_node, tcp_backend_at};
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

/// What a service may say of where connections go, and what the feedback may make of it.
fn says() -> impl Strategy<Value = (Option<Locality>, Option<&'static str>, Option<u32>, u32)> {
    let locality = select(vec![
        None,
        Some(Locality::Node),
        Some(Locality::Zone),
        Some(Locality::Cluster),
    ]);
    let distribution = select(vec![
        None,
        None,
        Some("PreferSameNode"),
        Some("PreferSameZone"),
    ]);
    let affinity = select(vec![None, None, Some(60), Some(10_800)]);
    (locality, distribution, affinity, 0..=SHARE_ONE)
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

/// Brings one service from the view into the maps, with this share for the node. Returns whether that took a write.
fn sync(state: &mut LbState, maps: &mut Maps, view: &View, key: &ObjectKey, share: u32) -> bool {
    let (mut frontends, ignored) = desired(view, NODE, Locality::Node, key);
    for frontend in &mut frontends {
        frontend.node_share = share;
    }
    let mut wrote = false;
    for frontend in state.assign(key, frontends, ignored) {
        if let Some(flip) = state.plan(key, &frontend) {
            maps.apply_all(&flip.ops).unwrap();
            wrote |= !flip.ops.is_empty();
            state.settle(flip, true);
        }
    }
    wrote
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
        let (mut tries, mut changes) = (0, 0);
        while changes < CHANGES {
            let (name, address, first) = services[tries % 2];
            let owner = ObjectKey::new("ns", name);
            let endpoints = endpoints(first).new_tree(&mut runner).unwrap().current();
            let mut dialled = service(&address.address.to_string());
            let (locality, distribution, affinity, share) =
                says().new_tree(&mut runner).unwrap().current();
            dialled.locality = locality;
            dialled.traffic_distribution = distribution.map(Into::into);
            dialled.affinity_timeout_s = affinity;
            current.services.insert(owner.clone(), Arc::new(dialled));
            current.set_slice(owner.clone(), Some(slice(name, endpoints)));
            let wrote = sync(&mut state, &mut dataplane.maps, &current, &owner, share);
            changes += usize::from(wrote);
            if tries < 2 {
                diallers.push(Dialler::start(address, name));
            }
            tries += 1;
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

#[test]
fn five_thousand_endpoints_are_served() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        // Every address of theirs is here.
        let here = ["route", "add", "local", "10.245.0.0/16", "dev", "lo"];
        let added = Command::new("ip").args(here).status();
        assert!(added.unwrap().success());
        tcp_backend_at("0.0.0.0:8080", "web");
        let owner = ObjectKey::new("ns", "web");
        let mut current = view(vec![]);
        let served = service(&key(1).address.to_string());
        current.services.insert(owner.clone(), Arc::new(served));
        for n in 0..5 {
            let address = |it: u8, last: u8| [10, 245, n * 4 + it, last].into();
            let all = (0..4).flat_map(|it| (0..250).map(move |last| address(it, last)));
            let endpoints = all.map(|address| Endpoint {
                addresses: vec![std::net::IpAddr::V4(address)],
                ..endpoint(1, NODE, "z1")
            });
            let slice = slice("web", endpoints.collect());
            current.set_slice(ObjectKey::new("ns", format!("web-{n}")), Some(slice));
        }
        let mut state = LbState::new();
        state.set_synced();
        let maps = &mut dataplane.maps;
        assert!(sync(&mut state, maps, &current, &owner, SHARE_ONE));
        for _ in 0..100 {
            assert_eq!(dial(key(1)).unwrap(), "web");
        }
        let totals = maps.totals().unwrap();
        let used = totals.backends.values().filter(|it| it.opens > 0).count();
        assert!(
            used > 50,
            "{used} of 100 connections met a backend of their own"
        );
        assert_eq!(maps.rows(names::BACKENDS).unwrap().len(), 5000);
    });
}
