//! The promises of the update protocol, over random histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use agent_ebpf::abi::{FLAG_SOURCE_RANGES, ServiceKey, SlotKey};

use super::super::policy::desired;
use super::super::testing::*;
use super::tests::{collect_all, synced};
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
pub(super) fn check_settled(maps: &Maps, view: &View) {
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
