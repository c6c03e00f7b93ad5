//! The update protocol, by example.

use std::collections::{BTreeMap, BTreeSet};

use super::super::testing::*;
use super::properties::check_settled;
use super::*;
use crate::cluster::{Endpoint, Exposed, Locality, Service, View};

pub(super) fn collect_all(state: &mut LbState, mut write: impl FnMut(MapOp) -> bool) {
    for _ in 0..2 {
        for op in state.collect() {
            assert!(write(op));
        }
    }
    assert!(!state.has_garbage());
}

pub(super) fn synced() -> LbState {
    let mut state = LbState::new();
    state.set_synced();
    state
}

/// The writes that lead to a view.
fn writes(state: &mut LbState, maps: &mut Maps, view: &View) -> Vec<MapOp> {
    let mut ops = Vec::new();
    pass(state, view, &services_of(&[view]), |op| {
        maps.apply(op.clone());
        ops.push(op);
        true
    });
    ops
}

#[test]
fn only_who_comes_from_outside_and_has_a_choice_has_a_maglev_table() {
    let (mut state, mut maps) = (synced(), Maps::default());
    let near = vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z1")];
    writes(
        &mut state,
        &mut maps,
        &view(vec![("web", exposed_service("10.96.0.1"), near)]),
    );
    for (key, entry) in &maps.services {
        let wanted = (key.scope == Scope::EXTERNAL).then_some(251);
        assert_eq!(super::super::maglev::size(entry), wanted, "{key:?}");
    }
    assert_eq!(maps.maglev.len(), 3 * 4, "three addresses");

    let one = vec![endpoint(1, "a", "z1")];
    writes(
        &mut state,
        &mut maps,
        &view(vec![("web", exposed_service("10.96.0.1"), one)]),
    );
    collect_all(&mut state, |op| {
        maps.apply(op);
        true
    });
    assert!(maps.maglev.is_empty());
}

#[test]
fn a_backend_that_begins_to_leave_is_in_no_maglev_table() {
    let (mut state, mut maps) = (synced(), Maps::default());
    let three = |last: Endpoint| {
        let all = vec![endpoint(1, "b", "z1"), endpoint(2, "b", "z1"), last];
        view(vec![("web", exposed_service("10.96.0.1"), all)])
    };
    writes(&mut state, &mut maps, &three(endpoint(3, "b", "z1")));
    let ops = writes(
        &mut state,
        &mut maps,
        &three(terminating(endpoint(3, "b", "z1"))),
    );
    assert!(ops.iter().any(|op| matches!(op, MapOp::PutMaglev(..))));
    let outside = maps
        .services
        .iter()
        .filter(|(key, _)| key.scope == Scope::EXTERNAL);
    for (key, _) in outside {
        let sent = maps.outcomes(key);
        let sent = sent.iter().filter(|it| matches!(it, Outcome::Sent(_)));
        assert_eq!(sent.count(), 2);
    }
}

#[test]
fn source_ranges_come_before_the_flip_and_go_after_it() {
    let (mut state, mut maps) = (synced(), Maps::default());
    let with = |ranges: Option<&[&str]>| {
        let mut service = exposed_service("10.96.0.1");
        let ranges = ranges.map(|all| all.iter().map(|range| range.parse().unwrap()).collect());
        service.exposed.as_mut().unwrap().source_ranges = ranges;
        view(vec![("web", service, vec![endpoint(1, "a", "z1")])])
    };
    writes(&mut state, &mut maps, &with(None));
    let ops = writes(
        &mut state,
        &mut maps,
        &with(Some(&["10.0.0.0/8", "2001:db8::/32"])),
    );
    // For clients in the cluster, and for those outside.
    assert!(
        matches!(
            ops[..],
            [
                MapOp::PutSourceRange(_),
                MapOp::PutService(..),
                MapOp::PutSourceRange(_),
                MapOp::PutService(..)
            ]
        ),
        "the load balancer's address is of IPv4: {ops:?}"
    );
    let ops = writes(&mut state, &mut maps, &with(Some(&["192.0.2.0/24"])));
    assert!(
        matches!(
            ops[..],
            [MapOp::PutSourceRange(_), MapOp::PutSourceRange(_)]
        ),
        "{ops:?}"
    );
    assert_eq!(writes(&mut state, &mut maps, &with(None)).len(), 2);
    // One is back before it went.
    let _ = state.collect();
    writes(&mut state, &mut maps, &with(Some(&["10.0.0.0/8"])));
    let due = state.collect();
    assert_eq!(due.len(), 2);
    assert!(due.iter().all(|op| state.may_go(op)));
    for op in due {
        maps.apply(op);
    }
    let left: Vec<u32> = maps.source_ranges.iter().map(|range| range.bits).collect();
    assert_eq!(left, [32 + 96 + 8; 2]);

    // An earlier run's are taken over, and go with what asks for them.
    let mut state = LbState::adopt(maps.pinned(), 1);
    state.set_synced();
    assert!(writes(&mut state, &mut maps, &with(Some(&["10.0.0.0/8"]))).is_empty());
    collect_all(&mut state, |op| {
        maps.apply(op);
        true
    });
    assert_eq!(maps.source_ranges.len(), 2);
    let none = view(vec![]);
    pass(&mut state, &none, &services_of(&[&with(None)]), |op| {
        maps.apply(op);
        true
    });
    collect_all(&mut state, |op| {
        maps.apply(op);
        true
    });
    assert_eq!(maps.pinned(), crate::dataplane::PinnedState::default());
}

#[test]
fn a_cluster_ip_is_its_services_though_another_listed_it_before() {
    let (mut state, mut maps) = (synced(), Maps::default());
    let mut thief = service("10.96.0.9");
    thief.exposed = Some(Box::new(Exposed {
        external_ips: vec!["10.96.0.1".parse().unwrap()],
        ..Exposed::default()
    }));
    let thief = ("thief", thief, vec![endpoint(1, "a", "z1")]);
    let alone = view(vec![thief.clone()]);
    writes(&mut state, &mut maps, &alone);
    assert_eq!(maps.services.len(), 3);

    // The thief has not been looked at again yet.
    let both = view(vec![
        thief,
        ("web", service("10.96.0.1"), vec![endpoint(2, "a", "z1")]),
    ]);
    let (web, thief) = (ObjectKey::new("ns", "web"), ObjectKey::new("ns", "thief"));
    pass(&mut state, &both, &BTreeSet::from([web.clone()]), |op| {
        maps.apply(op);
        true
    });
    let owner = |state: &LbState| {
        let mut all = state.frontends();
        let of = |key: &ServiceKey| {
            key.address.to_string() == "10.96.0.1" && key.scope == Scope::CLUSTER
        };
        all.find(|(key, _)| of(key))
            .and_then(|(_, live)| live.owner.clone())
    };
    assert_eq!(owner(&state), Some(web.clone()));
    assert_eq!(state.conflicts_of(&thief).len(), 1);

    writes(&mut state, &mut maps, &both);
    assert!(state.kept_off.contains(&thief));
    assert_eq!(maps.services.len(), 2, "nor is it captured from outside");
    pass(
        &mut state,
        &alone,
        &BTreeSet::from([web, thief.clone()]),
        |op| {
            maps.apply(op);
            true
        },
    );
    assert_eq!(owner(&state), Some(thief));
    assert!(state.kept_off.is_empty());
}

#[test]
fn slots_stand_in_order_and_ids_stay() {
    let near = vec![
        endpoint(4, "b", "z2"),
        endpoint(3, "c", "z1"),
        endpoint(2, "a", "z1"),
        terminating(endpoint(1, "a", "z1")),
    ];
    let (mut state, mut maps) = (synced(), Maps::default());
    let first = view(vec![("web", service("10.96.0.1"), near.clone())]);
    let services = services_of(&[&first]);
    pass(&mut state, &first, &services, |op| {
        maps.apply(op);
        true
    });
    let (_, entry) = maps.services.first_key_value().unwrap();
    assert_eq!(
        (entry.local, entry.zone, entry.ready, entry.terminating),
        (1, 1, 3, 1)
    );
    let order: Vec<u8> = maps
        .slots
        .values()
        .map(|id| maps.backends[id].address.octets()[15])
        .collect();
    assert_eq!(order, [2, 3, 4, 1]);
    let ids: BTreeMap<u8, BackendId> = maps
        .backends
        .iter()
        .map(|(id, row)| (row.address.octets()[15], *id))
        .collect();

    // One goes, one comes: the others keep their ids, and only what changed is written.
    let mut other = near;
    other[0] = endpoint(5, "b", "z2");
    let second = view(vec![("web", service("10.96.0.1"), other)]);
    let mut ops = Vec::new();
    pass(&mut state, &second, &services, |op| {
        maps.apply(op.clone());
        ops.push(op);
        true
    });
    assert_eq!(
        ops.iter()
            .filter(|op| matches!(op, MapOp::PutBackend(..)))
            .count(),
        1
    );
    assert!(matches!(ops.last(), Some(MapOp::PutService(_, entry)) if entry.generation == 2));
    for (last, id) in ids {
        assert_eq!(maps.backends[&id].address.octets()[15], last);
    }
}

#[test]
fn a_new_policy_alone_is_one_write() {
    let mut state = synced();
    let old = view(vec![(
        "web",
        service("10.96.0.1"),
        vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z2")],
    )]);
    let services = services_of(&[&old]);
    pass(&mut state, &old, &services, |_| true);
    let mut sticky = service("10.96.0.1");
    sticky.affinity_timeout_s = Some(60);
    let new = view(vec![(
        "web",
        sticky,
        vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z2")],
    )]);
    let mut ops = Vec::new();
    pass(&mut state, &new, &services, |op| {
        ops.push(op);
        true
    });
    assert!(matches!(
        ops[..],
        [MapOp::PutService(
            _,
            ServiceEntry {
                affinity_timeout_s: 60,
                generation: 1,
                ..
            }
        )]
    ));
}

#[test]
fn an_address_is_handed_over_without_a_gap() {
    let (mut state, mut maps) = (synced(), Maps::default());
    let old = view(vec![(
        "old",
        service("10.96.0.1"),
        vec![endpoint(1, "a", "z1")],
    )]);
    let both = view(vec![
        ("new", service("10.96.0.1"), vec![endpoint(2, "a", "z1")]),
        ("old", service("10.96.0.1"), vec![endpoint(1, "a", "z1")]),
    ]);
    let new = view(vec![(
        "new",
        service("10.96.0.1"),
        vec![endpoint(2, "a", "z1")],
    )]);
    pass(&mut state, &old, &services_of(&[&old]), |op| {
        maps.apply(op);
        true
    });
    assert_eq!(
        pass(&mut state, &both, &services_of(&[&both]), |_| true),
        0,
        "who has an address keeps it"
    );
    let waits = ObjectKey::new("ns", "new");
    assert_eq!(
        state.conflicts_of(&waits)[0].1,
        Some(&ObjectKey::new("ns", "old"))
    );
    pass(
        &mut state,
        &new,
        &BTreeSet::from([ObjectKey::new("ns", "old")]),
        |op| {
            assert!(!matches!(op, MapOp::DeleteService(_)));
            maps.apply(op);
            true
        },
    );
    assert!(state.conflicts_of(&waits).is_empty());
    collect_all(&mut state, |op| {
        maps.apply(op);
        true
    });
    check_settled(&maps, &new);
}

#[test]
fn sockets_are_closed_when_their_backend_goes_and_kept_when_only_its_service_does() {
    let web = |endpoints| view(vec![("web", service("10.96.0.1"), endpoints)]);
    let both = web(vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z1")]);
    let one = web(vec![endpoint(1, "a", "z1")]);
    let mut moved = one.clone();
    let mut other_port = slice("web", vec![endpoint(1, "a", "z1")]);
    other_port.ports[0].port = 9090;
    moved.set_slice(ObjectKey::new("ns", "web-1"), Some(other_port));
    let none = view(vec![]);

    let mut state = synced();
    let services = services_of(&[&both]);
    let mut gone = |view: &View| {
        pass(&mut state, view, &services, |_| true);
        let ops = [state.collect(), state.collect()].concat();
        let sockets = ops.into_iter().filter_map(|op| match op {
            MapOp::DeleteBackend(_, sockets) => Some(sockets),
            _ => None,
        });
        sockets.collect::<Vec<_>>()
    };
    assert_eq!(gone(&both), []);
    assert_eq!(gone(&one), [Sockets::Close], "the endpoint is gone");
    assert_eq!(gone(&moved), [], "the pod listens at another port, too");
    assert_eq!(gone(&none), [Sockets::Keep, Sockets::Keep]);
}

#[test]
fn a_backend_that_one_service_saw_go_is_closed_though_another_is_only_deleted() {
    let pods = || vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z1")];
    let two = |web| {
        view(vec![
            ("web", service("10.96.0.1"), web),
            ("shop", service("10.96.0.2"), pods()),
        ])
    };
    let (both, one) = (two(pods()), two(vec![endpoint(1, "a", "z1")]));
    let none = view(vec![]);
    let mut state = synced();
    let services = services_of(&[&both]);
    for view in [&both, &one, &none] {
        pass(&mut state, view, &services, |_| true);
    }
    let ops = [state.collect(), state.collect()].concat();
    let closed = |op: &&MapOp| matches!(op, MapOp::DeleteBackend(_, Sockets::Close));
    assert_eq!(ops.iter().filter(closed).count(), 1, "{ops:?}");
}

#[test]
fn shares_are_what_the_kernel_draws() {
    let backends = vec![
        endpoint(1, "a", "z1"),
        endpoint(2, "b", "z1"),
        endpoint(3, "b", "z1"),
        endpoint(4, "c", "z2"),
        terminating(endpoint(5, "a", "z1")),
        not_ready(endpoint(6, "a", "z1")),
    ];
    let even = Service {
        locality: Some(Locality::Cluster),
        ..service("10.96.0.1")
    };
    let zone = Service {
        traffic_distribution: Some("PreferClose".into()),
        ..service("10.96.0.1")
    };
    let leaving = vec![
        terminating(endpoint(1, "a", "z1")),
        terminating(endpoint(2, "b", "z1")),
    ];
    for (service, backends) in [
        (service("10.96.0.1"), backends.clone()),
        (even, backends.clone()),
        (zone, backends),
        (service("10.96.0.1"), leaving),
    ] {
        let (mut state, view) = (synced(), view(vec![("web", service, backends)]));
        pass(&mut state, &view, &services_of(&[&view]), |_| true);
        let (_, live) = state.frontends().next().unwrap();
        let draws = 200_000u64;
        let mut counts = vec![0u32; live.slots.len()];
        for n in 0..draws {
            let bits = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            counts[agent_ebpf::select::draw(&live.entry, bits ^ (bits >> 31)).unwrap() as usize] +=
                1;
        }
        for (slot, count) in counts.into_iter().enumerate() {
            let drawn = f64::from(count) / draws as f64;
            assert!(
                (drawn - live.share(slot)).abs() < 0.01,
                "slot {slot}: drawn {drawn}, said {}",
                live.share(slot)
            );
        }
    }
}
