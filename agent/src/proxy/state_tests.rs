//! The promises of the update protocol, over random histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use agent_ebpf::abi::{FLAG_SOURCE_RANGES, ServiceKey, SlotKey};

use super::super::policy::desired;
use super::super::testing::*;
use super::*;
use crate::cluster::{
    Endpoint, Exposed, Locality, Protocol, Service, ServicePort, SlicePort, View,
};

type Allowed = BTreeMap<ServiceKey, BTreeSet<Outcome>>;

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let one = (1..8u8, 0..3usize, 0..2usize, 0..4u8).prop_map(|(last, node, zone, state)| {
        let mut endpoint = endpoint(last, ["a", "b", "c"][node], ["z1", "z2"][zone]);
        match state {
            0 => endpoint = terminating(endpoint),
            1 => endpoint = not_ready(endpoint),
            _ => {}
        }
        endpoint
    });
    proptest::collection::vec(one, 0..5)
}

/// One of everything that a service may have for clients outside, or no such thing.
fn exposed() -> impl Strategy<Value = Option<Box<Exposed>>> {
    let ranges = prop_oneof![
        3 => Just(None),
        3 => proptest::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"], 0..=3)
            .prop_map(Some),
    ];
    let ip = |text: &str| text.parse().unwrap();
    let some = (any::<bool>(), any::<bool>(), 0..4u8, 0..3u8, ranges).prop_map(
        move |(node_ports, local, external, balanced, ranges)| Exposed {
            node_ports,
            local,
            external_ips: match external {
                0 => vec![],
                1 => vec![ip("10.96.0.2")],
                _ => vec![ip("198.51.100.1")],
            },
            load_balancer_ips: (0..balanced)
                .map(|last| ip(&format!("203.0.113.{last}")))
                .collect(),
            source_ranges: ranges.map(|all| {
                all.into_iter()
                    .map(|range| range.parse().unwrap())
                    .collect()
            }),
            ..Exposed::default()
        },
    );
    proptest::option::of(some.prop_map(Box::new))
}

prop_compose! {
    fn any_service()(
        address in 1..4u8,
        two_ports in any::<bool>(),
        internal_local in proptest::bool::weighted(0.2),
        distribution in 0..5usize,
        affinity in any::<bool>(),
        exposed in exposed(),
    ) -> Service {
        let mut service = service(&format!("10.96.0.{address}"));
        service.ports[0].node_port = Some(30_000 + u16::from(address));
        service.exposed = exposed;
        if two_ports {
            let dns = ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: None };
            service.ports.push(dns);
        }
        service.internal_local = internal_local;
        service.traffic_distribution =
            [None, None, None, Some("PreferSameNode"), Some("PreferClose")][distribution].map(Into::into);
        service.locality = (distribution == 1).then_some(Locality::Cluster);
        service.affinity_timeout_s = affinity.then_some(60);
        service
    }
}

prop_compose! {
    /// Up to three services with up to two slices each, on few addresses, so that they often meet.
    fn views()(
        services in proptest::collection::vec(proptest::option::weighted(0.8, any_service()), 3),
        slices in proptest::collection::vec(proptest::option::weighted(0.8, endpoints()), 6),
    ) -> View {
        let mut view = view(vec![]);
        for (n, service) in services.into_iter().enumerate() {
            view.set_service(ObjectKey::new("ns", format!("s{n}")), service);
        }
        for (n, endpoints) in slices.into_iter().enumerate() {
            let with_dns = endpoints.map(|endpoints| {
                let mut slice = slice(&format!("s{}", n / 2), endpoints);
                slice.ports.push(SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 });
                slice
            });
            view.set_slice(ObjectKey::new("ns", format!("s{}-{n}", n / 2)), with_dns);
        }
        view
    }
}

fn union(a: &Allowed, b: &Allowed) -> Allowed {
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).copied().collect();
    let none = BTreeSet::from([Outcome::NotService]);
    keys.into_iter()
        .map(|key| {
            (
                key,
                a.get(&key)
                    .unwrap_or(&none)
                    .union(b.get(&key).unwrap_or(&none))
                    .copied()
                    .collect(),
            )
        })
        .collect()
}

/// Every dial, begun with any of the entries in `read` and finished with the rows of now, ends as `allowed` says.
fn check(maps: &Maps, read: &[BTreeMap<ServiceKey, ServiceEntry>], allowed: &Allowed) {
    for (key, allowed) in allowed {
        let entries: BTreeSet<_> = read.iter().map(|services| services.get(key)).collect();
        for entry in entries {
            let outcomes = maps.outcomes_of(key, entry);
            assert!(
                outcomes.is_subset(allowed),
                "{key:?}: {outcomes:?}, allowed are {allowed:?}"
            );
        }
    }
    let known: BTreeSet<_> = allowed.keys().collect();
    assert!(
        maps.services.keys().all(|key| known.contains(key)),
        "an address nobody asked for"
    );
}

/// What the maps should be once everything has settled: what `view` wants, and not a row more, but for backends that
/// are draining.
fn check_settled(maps: &Maps, view: &View) {
    let allowed = allowed(view);
    assert_eq!(
        maps.services.keys().collect::<Vec<_>>(),
        allowed.keys().collect::<Vec<_>>()
    );
    check(maps, std::slice::from_ref(&maps.services), &allowed);
    let draining: BTreeSet<Target> = services_of(&[view])
        .iter()
        .flat_map(|key| desired(view, NODE, Locality::Node, key).0)
        .flat_map(|frontend| frontend.backends)
        .filter(|backend| backend.class == Class::Draining)
        .map(|backend| backend.target)
        .collect();
    for (key, id) in &maps.slots {
        let entry = maps
            .services
            .values()
            .find(|entry| entry.service_id == key.service_id)
            .expect("slots without a service");
        assert_eq!(entry.generation, key.generation, "slots left behind");
        assert!(
            key.slot < entry.ready + entry.terminating || draining.contains(&maps.target(*id)),
            "a slot too many"
        );
    }
    let named: BTreeSet<_> = maps.slots.values().copied().collect();
    assert_eq!(
        maps.backends.keys().copied().collect::<BTreeSet<_>>(),
        named,
        "backends left behind"
    );
    let entry = |id: u32| {
        maps.services
            .values()
            .find(|it| it.service_id == id)
            .unwrap()
    };
    for key in maps.maglev.keys() {
        let entry = entry(key.service_id);
        assert_eq!(
            entry.generation, key.generation,
            "a Maglev table left behind"
        );
        assert!(key.chunk < super::super::maglev::chunks(entry));
    }
    let wanted = services_of(&[view])
        .into_iter()
        .flat_map(|key| desired(view, NODE, Locality::Node, &key).0);
    let wanted: BTreeSet<SourcePrefix> = wanted
        .filter_map(|it| Some((maps.services.get(&it.key)?.service_id, it)))
        .flat_map(|(id, it)| super::ranges(id, &it))
        .collect();
    assert!(
        maps.source_ranges.is_subset(&wanted),
        "source ranges left behind"
    );
    for range in &maps.source_ranges {
        assert_ne!(entry(range.service_id()).flags & FLAG_SOURCE_RANGES, 0);
    }
    let targets: BTreeSet<_> = maps
        .backends
        .values()
        .map(|row| (row.address, row.port, row.protocol))
        .collect();
    assert_eq!(targets.len(), maps.backends.len(), "one target, one id");
}

fn collect_all(state: &mut LbState, mut write: impl FnMut(MapOp) -> bool) {
    for _ in 0..2 {
        for op in state.collect() {
            assert!(write(op));
        }
    }
    assert!(!state.has_garbage());
}

fn synced() -> LbState {
    let mut state = LbState::new();
    state.set_synced();
    state
}

proptest! {
    #[test]
    fn no_write_opens_a_window(history in proptest::collection::vec(views(), 1..5)) {
        let (mut state, mut maps) = (synced(), Maps::default());
        let mut old = view(vec![]);
        for new in &history {
            let may = union(&allowed(&old), &allowed(new));
            let mut read = vec![maps.services.clone()];
            pass(&mut state, new, &services_of(&[&old, new]), |op| {
                maps.apply(op);
                read.push(maps.services.clone());
                check(&maps, &read, &may);
                true
            });
            // Nothing that this pass left behind goes at the first collection after it.
            let settled = maps.services.clone();
            for op in state.collect() {
                maps.apply(op);
                check(&maps, &read, &may);
            }
            // Who is let in no longer is so until the last of these.
            let mut backends = allowed(new);
            for outcomes in backends.values_mut() {
                outcomes.extend(CLIENTS.map(Outcome::LetIn));
            }
            for op in state.collect() {
                maps.apply(op);
                check(&maps, std::slice::from_ref(&settled), &backends);
            }
            check_settled(&maps, new);
            old = new.clone();
        }
    }

    #[test]
    fn a_backend_that_is_there_keeps_its_row_for_the_connections_that_it_has(
        (before, after) in (views(), views()),
    ) {
        let (mut state, mut maps) = (synced(), Maps::default());
        let services = services_of(&[&before, &after]);
        pass(&mut state, &before, &services, |op| { maps.apply(op); true });
        let had = maps.clone();
        pass(&mut state, &after, &services, |op| { maps.apply(op); true });
        collect_all(&mut state, |op| { maps.apply(op); true });
        for (key, live) in state.frontends() {
            let owner = live.owner.as_ref().unwrap();
            let named = desired(&after, NODE, Locality::Node, owner).0.into_iter().find(|frontend| frontend.key == *key).unwrap();
            for Backend { class, target } in named.backends {
                let closes = class == Class::Draining && target.protocol == UDP;
                let offered = had.outcomes(key).contains(&Outcome::Sent(target));
                let id = |maps: &Maps| maps.backends.keys().copied().find(|id| maps.target(*id) == target);
                prop_assert!(!offered || closes || id(&maps) == id(&had), "{:?} lost its row", target);
            }
        }
    }

    #[test]
    fn the_same_view_again_writes_nothing(view in views()) {
        let mut state = synced();
        let services = services_of(&[&view]);
        pass(&mut state, &view, &services, |_| true);
        prop_assert_eq!(pass(&mut state, &view, &services, |op| panic!("{op:?}")), 0);
        let _ = state.collect();
        prop_assert_eq!(pass(&mut state, &view, &services, |op| panic!("{op:?}")), 0);
    }

    #[test]
    fn failed_writes_open_no_window_and_are_made_up_for(
        history in proptest::collection::vec(views(), 1..4),
        failures in proptest::collection::vec(proptest::bool::weighted(0.15), 200),
    ) {
        let (mut state, mut maps) = (synced(), Maps::default());
        let mut may = allowed(&view(vec![]));
        let mut failures = failures.into_iter();
        let mut all = BTreeSet::new();
        let mut last = None;
        for new in &history {
            may = union(&may, &allowed(new));
            all.extend(services_of(&[new]));
            pass(&mut state, new, &all, |op| {
                let fails = failures.next().unwrap_or(false);
                if !fails {
                    maps.apply(op);
                }
                check(&maps, std::slice::from_ref(&maps.services), &may);
                !fails
            });
            for op in state.collect() {
                maps.apply(op);
                check(&maps, std::slice::from_ref(&maps.services), &may);
            }
            last = Some(new);
        }
        let last = last.unwrap();
        pass(&mut state, last, &all, |op| { maps.apply(op); true });
        collect_all(&mut state, |op| { maps.apply(op); true });
        check_settled(&maps, last);
    }

    #[test]
    fn a_crash_at_any_write_loses_nothing_and_leaks_nothing(
        (before, after) in (views(), views()),
        partial in views(),
        died_after in 0..60usize,
        seed: u32,
    ) {
        // An earlier life, which dies in the middle of a change or of a collection.
        let (mut state, mut maps, mut left) = (synced(), Maps::default(), died_after);
        let mut old = view(vec![]);
        let mut live_on = |maps: &mut Maps, op| {
            let lives = left > 0;
            if lives {
                left -= 1;
                maps.apply(op);
            }
            lives
        };
        for new in [&before, &after] {
            pass(&mut state, new, &services_of(&[&old, new]), |op| live_on(&mut maps, op));
            for op in [state.collect(), state.collect()].concat() {
                live_on(&mut maps, op);
            }
            old = new.clone();
        }
        drop(state);

        // The next life sees part of the cluster first: it may add, and takes nothing away.
        let found = maps.clone();
        let mut state = LbState::adopt(maps.pinned(), seed);
        pass(&mut state, &partial, &services_of(&[&partial]), |op| {
            maps.apply(op);
            for (key, was) in &found.services {
                let before = found.outcomes_of(key, Some(was));
                let now = maps.outcomes(key);
                assert!(!now.contains(&Outcome::Hole) && !now.contains(&Outcome::NotService));
                assert!(before.contains(&Outcome::Refused) || !now.contains(&Outcome::Refused));
                let offered = |maps: &Maps, entry: &ServiceEntry| {
                    let row = |slot: u32| {
                        let ServiceEntry { service_id, generation, .. } = *entry;
                        maps.backends[&maps.slots[&SlotKey { service_id, generation, slot }]]
                    };
                    (0..entry.ready + entry.terminating).map(|slot| (row(slot).address, row(slot).port)).collect::<BTreeSet<_>>()
                };
                assert!(offered(&found, was).is_subset(&offered(&maps, &maps.services[key])), "a backend went too early");
            }
            true
        });
        prop_assert!(state.collect().is_empty());

        // Then it sees everything.
        state.set_synced();
        let merged = maps.services.keys().map(|key| (*key, maps.outcomes(key))).collect();
        let may = union(&merged, &allowed(&after));
        pass(&mut state, &after, &services_of(&[&partial, &after]), |op| {
            maps.apply(op);
            check(&maps, std::slice::from_ref(&maps.services), &may);
            true
        });
        collect_all(&mut state, |op| { maps.apply(op); true });
        check_settled(&maps, &after);
        prop_assert_eq!(pass(&mut state, &after, &services_of(&[&after]), |op| panic!("{op:?}")), 0);
    }
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
