use agent_ebpf::abi::AffinityKey;

use super::super::MapReader as _;
use super::super::testing::{FakeReader, NODE, World, dialled};
use super::*;

const CLIENT: u64 = 3;
const NOW: u64 = 1_000_000_000_000;

fn caller() -> Caller {
    Caller {
        name: "shop/front-1".into(),
        netns_cookie: CLIENT,
        now_ns: NOW,
    }
}

fn traced(world: &World, reader: &FakeReader, key: &ServiceKey) -> api::Trace {
    let found = reader.lookup(key, Some(CLIENT)).unwrap();
    let view = world.cluster.view();
    let names = Names {
        view: &view,
        state: &world.state,
    };
    trace(key, found.as_ref(), &caller(), names, NODE)
}

#[test]
fn a_draw_shows_the_odds_and_the_entries_behind_them() {
    let world = World::new();
    let trace = traced(&world, &world.reader(), &dialled(1, 80));
    assert_eq!(
        (trace.outcome.as_str(), trace.service.as_str()),
        ("drawn", "shop/web")
    );
    let [near, far] = &trace.choices[..] else {
        panic!("two: {trace:?}")
    };
    assert!(near.share > 0.98 && far.share < 0.02);
    let near = near.backend.as_ref().unwrap();
    assert_eq!((near.pod.as_str(), near.local), ("shop/web-1", true));
    let maps: Vec<_> = trace.entries.iter().map(|row| row.map.as_str()).collect();
    assert_eq!(
        maps,
        [
            "SERVICES",
            "BACKEND_TABLE",
            "BACKENDS",
            "BACKEND_TABLE",
            "BACKENDS"
        ]
    );
    assert!(
        trace.steps[0].contains("service shop/web, port http"),
        "{:?}",
        trace.steps
    );
}

#[test]
fn a_node_port_is_traced_to_its_row_and_its_service() {
    let world = World::with(|service| {
        service.ports[0].node_port = Some(30_080);
        service.exposed = Some(Box::new(crate::cluster::Exposed {
            node_ports: true,
            ..Default::default()
        }));
    });
    let node = ServiceKey {
        address: std::net::Ipv4Addr::new(192, 0, 2, 7).into(),
        ..dialled(1, 30_080)
    };
    let trace = traced(&world, &world.reader(), &node);
    assert_eq!(
        (&*trace.outcome, &*trace.service, &*trace.dialled),
        ("drawn", "shop/web", "192.0.2.7:30080")
    );
    assert_eq!(trace.choices.len(), 2);
    assert!(
        trace.steps[0].ends_with("0.0.0.0:30080 is looked up"),
        "{:?}",
        trace.steps
    );
    let pod = &trace.choices[0].backend.as_ref().unwrap().pod;
    assert_eq!(pod, "shop/web-1");
}

#[test]
fn without_a_backend_it_is_refused() {
    let world = World::new();
    let trace = traced(&world, &world.reader(), &dialled(2, 80));
    assert_eq!(
        (trace.outcome.as_str(), trace.choices.len()),
        ("refused", 0)
    );
}

/// `shop/web` with session affinity, and a client that had `web-2` so many seconds ago.
fn remembered(seconds_ago: u64) -> api::Trace {
    let world = World::with(|service| service.affinity_timeout_s = Some(100));
    let (key, id) = (dialled(1, 80), world.backend(2));
    let entry = world.maps.state.services[&key];
    let slots = &world.maps.state.slots;
    let (slot, _) = slots.iter().find(|(_, backend)| **backend == id).unwrap();
    let mut reader = world.reader();
    reader.affinity.insert(
        AffinityKey {
            netns_cookie: CLIENT,
            service_id: entry.service_id,
            pad: 0,
        },
        AffinityEntry {
            last_use_ns: NOW - seconds_ago * 1_000_000_000,
            backend: id,
            generation: entry.generation,
            slot: slot.slot,
            pad: 0,
        },
    );
    traced(&world, &reader, &key)
}

#[test]
fn a_client_that_is_remembered_keeps_its_backend() {
    let trace = remembered(40);
    assert_eq!(trace.outcome, "backend");
    let [choice] = &trace.choices[..] else {
        panic!("one: {trace:?}")
    };
    assert_eq!(choice.backend.as_ref().unwrap().pod, "shop/web-2");
    assert!(
        trace.steps[1].contains("40 s ago and keeps it for 60 s more"),
        "{:?}",
        trace.steps
    );
    assert_eq!(trace.entries[1].map, "AFFINITY");
}

#[test]
fn what_is_remembered_ends_with_its_time() {
    let trace = remembered(100);
    assert_eq!((trace.outcome.as_str(), trace.choices.len()), ("drawn", 2));
}

#[test]
fn an_address_that_is_no_services_says_whose_it_is() {
    let world = World::new();
    let step = |key: &ServiceKey| traced(&world, &world.reader(), key).steps[0].clone();
    let port = dialled(1, 9);
    assert_eq!(
        step(&port),
        "10.96.0.1:9/TCP is not in SERVICES: service shop/web has the address, with http (80/TCP), sig (81/SCTP)"
    );
    let pod = ServiceKey {
        address: std::net::Ipv4Addr::new(10, 244, 0, 2).into(),
        ..port
    };
    assert!(step(&pod).contains("pod shop/web-2"));
    let other = ServiceKey {
        address: std::net::Ipv4Addr::new(192, 0, 2, 1).into(),
        ..port
    };
    assert!(step(&other).ends_with("connects to the address itself"));
}
