//! Choices on plain tables.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::abi::{Address, Scope, TCP};

const DIALLED: ServiceKey = ServiceKey {
    address: Address::v4([10, 96, 0, 1]),
    port: [0, 80],
    protocol: TCP,
    scope: Scope::CLUSTER,
};

#[derive(Default)]
struct Fake {
    /// Successive answers to a service lookup; the last one stays.
    services: RefCell<Vec<ServiceEntry>>,
    /// How many of the next service lookups return another service's row.
    torn: Cell<u32>,
    slots: BTreeMap<SlotKey, BackendId>,
    backends: BTreeMap<BackendId, BackendEntry>,
    affinity: RefCell<BTreeMap<AffinityKey, AffinityEntry>>,
    service_reads: Cell<u32>,
}

impl Fake {
    /// A service whose table has backend `slot + 1` in each slot.
    fn with(entry: ServiceEntry) -> Self {
        let mut fake = Self {
            services: RefCell::new(vec![entry]),
            ..Self::default()
        };
        for slot in 0..entry.ready + entry.terminating {
            fake.put(&entry, slot, slot + 1);
        }
        fake
    }

    fn put(&mut self, entry: &ServiceEntry, slot: u32, id: u32) {
        self.slots.insert(slot_key(entry, slot), BackendId(id));
        self.backends.insert(BackendId(id), backend(id));
    }
}

impl Tables for Fake {
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        self.service_reads.set(self.service_reads.get() + 1);
        if self.torn.get() > 0 {
            self.torn.set(self.torn.get() - 1);
            let key = ServiceKey {
                address: Address::v4([10, 96, 0, 2]),
                ..DIALLED
            };
            return Some(ServiceRow {
                key,
                entry: ServiceEntry {
                    service_id: 8,
                    ..service(0, 0, 0, 0)
                },
            });
        }
        let mut services = self.services.borrow_mut();
        let first = services.first().copied().filter(|_| *key == DIALLED);
        if services.len() > 1 {
            services.remove(0);
        }
        first.map(|entry| ServiceRow {
            key: DIALLED,
            entry,
        })
    }
    fn slot(&self, key: &SlotKey) -> Option<BackendId> {
        self.slots.get(key).copied()
    }
    fn backend(&self, id: BackendId) -> Option<BackendEntry> {
        self.backends.get(&id).copied()
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinity.borrow().get(key).copied()
    }
    fn remember(&self, key: &AffinityKey, entry: &AffinityEntry) {
        self.affinity.borrow_mut().insert(*key, *entry);
    }
}

struct Client {
    spread: u32,
    netns: u64,
    now_s: u64,
    last: Option<Picked>,
    served: Served,
}

impl Caller for Client {
    fn spread(&self) -> u32 {
        self.spread
    }
    fn netns_cookie(&self) -> u64 {
        self.netns
    }
    fn now_ns(&self) -> u64 {
        self.now_s * 1_000_000_000
    }
    fn last(&self) -> Option<Picked> {
        self.last
    }
    fn served(&self, service_id: u32) -> Served {
        assert_eq!(service_id, 7);
        self.served
    }
}

fn client(spread: u32) -> Client {
    Client {
        spread,
        netns: 1,
        now_s: 1000,
        last: None,
        served: Served::No,
    }
}

fn backend(id: u32) -> BackendEntry {
    BackendEntry {
        address: Address::v4(id.to_be_bytes()),
        port: [0x1f, 0x90],
        protocol: TCP,
        pad: 0,
    }
}

fn service(local: u32, zone: u32, ready: u32, terminating: u32) -> ServiceEntry {
    ServiceEntry {
        service_id: 7,
        generation: 1,
        local,
        zone,
        ready,
        terminating,
        flags: 0,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    }
}

fn chosen(tables: &Fake, client: &Client) -> u32 {
    match choose(tables, client, &DIALLED) {
        Verdict::Backend {
            service_id: 7,
            picked,
            entry,
        } => {
            assert_eq!(entry, backend(picked.backend.0));
            picked.backend.0
        }
        other => panic!("no backend: {other:?}"),
    }
}

#[test]
fn an_address_that_is_no_service_is_left_alone_after_one_lookup() {
    let tables = Fake::with(service(1, 0, 1, 0));
    let other = ServiceKey {
        port: [0, 81],
        ..DIALLED
    };
    assert_eq!(choose(&tables, &client(0), &other), Verdict::NotService);
    assert_eq!(tables.service_reads.get(), 1);
}

#[test]
fn a_service_without_backends_refuses() {
    let tables = Fake::with(service(0, 0, 0, 0));
    assert_eq!(
        choose(&tables, &client(0), &DIALLED),
        Verdict::NoBackend { service_id: 7 }
    );
}

#[test]
fn terminating_backends_serve_only_when_none_is_ready() {
    let tables = Fake::with(service(0, 0, 0, 2));
    assert!((0..100).all(|s| chosen(&tables, &client(s)) <= 2));
    let tables = Fake::with(service(0, 0, 1, 2));
    assert!((0..100).all(|s| chosen(&tables, &client(s)) == 1));
}

#[test]
fn a_removed_generation_makes_the_choice_start_again_on_the_new_one() {
    let old = service(1, 0, 1, 0);
    let new = ServiceEntry {
        generation: 2,
        ..old
    };
    let mut tables = Fake {
        services: RefCell::new(vec![old, new]),
        ..Fake::default()
    };
    tables.put(&new, 0, 9);
    assert_eq!(chosen(&tables, &client(0)), 9);
    assert_eq!(tables.service_reads.get(), 2);
}

#[test]
fn a_row_handed_to_another_service_while_it_was_read_is_read_again() {
    let tables = Fake {
        torn: Cell::new(2),
        ..Fake::with(service(1, 0, 1, 0))
    };
    assert_eq!(chosen(&tables, &client(0)), 1);
}

#[test]
fn a_table_that_stays_empty_is_a_hole_after_three_reads() {
    let tables = Fake {
        services: RefCell::new(vec![service(1, 0, 1, 0)]),
        ..Fake::default()
    };
    assert_eq!(
        choose(&tables, &client(0), &DIALLED),
        Verdict::Hole { service_id: 7 }
    );
    assert_eq!(tables.service_reads.get(), ATTEMPTS);
}

#[test]
fn a_service_deleted_between_two_reads_is_no_service() {
    struct Vanishing(Cell<bool>);
    impl Tables for Vanishing {
        fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
            (!self.0.replace(true)).then(|| ServiceRow {
                key: *key,
                entry: service(1, 0, 1, 0),
            })
        }
        fn slot(&self, _: &SlotKey) -> Option<BackendId> {
            None
        }
        fn backend(&self, _: BackendId) -> Option<BackendEntry> {
            None
        }
        fn affinity(&self, _: &AffinityKey) -> Option<AffinityEntry> {
            None
        }
        fn remember(&self, _: &AffinityKey, _: &AffinityEntry) {}
    }
    assert_eq!(
        choose(&Vanishing(Cell::new(false)), &client(0), &DIALLED),
        Verdict::NotService
    );
}

#[test]
fn the_local_share_is_what_stays_on_the_node() {
    for percent in [0, 1, 25, 50, 90, 99, 100] {
        let entry = ServiceEntry {
            local_share: SHARE_ONE / 100 * percent,
            ..service(2, 0, 6, 0)
        };
        let tables = Fake::with(entry);
        let stayed = (0..20_000)
            .filter(|s| chosen(&tables, &client(*s)) <= 2)
            .count();
        let expected = 200 * percent as usize;
        assert!(
            stayed.abs_diff(expected) < 300,
            "{percent} %: {stayed} of 20000"
        );
    }
}

#[test]
fn what_leaves_the_node_goes_to_the_zone_while_it_has_a_backend() {
    let entry = ServiceEntry {
        local_share: 0,
        ..service(1, 2, 6, 0)
    };
    let tables = Fake::with(entry);
    assert!((0..1000).all(|s| matches!(chosen(&tables, &client(s)), 2 | 3)));
}

#[test]
fn a_local_only_service_never_spills() {
    let entry = ServiceEntry {
        local_share: 0,
        flags: FLAG_LOCAL_ONLY,
        ..service(2, 0, 5, 0)
    };
    let tables = Fake::with(entry);
    assert!((0..1000).all(|s| chosen(&tables, &client(s)) <= 2));
}

#[test]
fn slots_are_drawn_evenly() {
    let tables = Fake::with(service(0, 0, 5, 0));
    let mut counts = [0_u32; 5];
    for s in 0..50_000 {
        counts[chosen(&tables, &client(s)) as usize - 1] += 1;
    }
    assert!(
        counts.iter().all(|c| c.abs_diff(10_000) < 500),
        "{counts:?}"
    );
}

fn sticky(ready: u32) -> ServiceEntry {
    ServiceEntry {
        affinity_timeout_s: 60,
        ..service(0, 0, ready, 0)
    }
}

#[test]
fn affinity_keeps_the_backend_until_it_times_out() {
    let tables = Fake::with(sticky(50));
    let first = chosen(&tables, &client(0));
    assert!((0..100).all(|s| chosen(&tables, &client(s)) == first));
    let later = |spread| Client {
        now_s: 1061,
        ..client(spread)
    };
    let moved = (0..20).any(|s| {
        tables
            .affinity
            .borrow_mut()
            .values_mut()
            .for_each(|e| e.last_use_ns = 1000 * 1_000_000_000);
        chosen(&tables, &later(s)) != first
    });
    assert!(moved, "after the timeout a new draw decides");
}

#[test]
fn each_use_counts_against_the_timeout_unless_the_last_was_a_moment_ago() {
    let tables = Fake::with(sticky(50));
    let first = chosen(&tables, &client(0));
    let last_use = || {
        let rows = tables.affinity.borrow();
        rows.values().next().expect("remembered").last_use_ns
    };
    let began = 1000 * 1_000_000_000;
    let moment_ago = began - AFFINITY_REFRESH_NS / 2;
    tables
        .affinity
        .borrow_mut()
        .values_mut()
        .for_each(|e| e.last_use_ns = moment_ago);
    assert_eq!(chosen(&tables, &client(1)), first);
    assert_eq!(last_use(), moment_ago);
    let later = Client {
        now_s: 1050,
        ..client(2)
    };
    assert_eq!(chosen(&tables, &later), first);
    assert_eq!(last_use(), 1050 * 1_000_000_000);
}

#[test]
fn affinity_is_one_clients_own() {
    let tables = Fake::with(sticky(50));
    let of = |netns| {
        chosen(
            &tables,
            &Client {
                spread: netns as u32,
                netns,
                now_s: 1000,
                last: None,
                served: Served::No,
            },
        )
    };
    let first: Vec<u32> = (0..20).map(of).collect();
    assert!(first.iter().any(|id| *id != first[0]));
    assert_eq!((0..20).map(of).collect::<Vec<u32>>(), first);
}

#[test]
fn affinity_follows_its_backend_into_the_next_table_and_ends_with_it() {
    let old = sticky(3);
    let mut tables = Fake::with(old);
    let mine = chosen(&tables, &client(0));
    let moved = ServiceEntry {
        generation: 2,
        ..old
    };
    for slot in 0..3 {
        tables.put(&moved, slot, 3 - slot);
    }
    *tables.services.borrow_mut() = vec![moved];
    assert!((0..100).all(|s| chosen(&tables, &client(s)) == mine));
    let without = ServiceEntry {
        generation: 3,
        ready: 2,
        ..old
    };
    for (slot, id) in (1..=3).filter(|id| *id != mine).enumerate() {
        tables.put(&without, slot as u32, id);
    }
    *tables.services.borrow_mut() = vec![without];
    assert!((0..100).all(|s| chosen(&tables, &client(s)) != mine));
}

#[test]
fn a_udp_socket_keeps_its_backend_while_that_is_offered() {
    let entry = service(0, 0, 3, 1);
    let mut tables = Fake::with(entry);
    let socket = |last: Picked, spread| Client {
        last: Some(last),
        ..client(spread)
    };
    let last = at(&tables, &entry, 1).unwrap();
    assert!((0..100).all(|s| chosen(&tables, &socket(last, s)) == 2));

    // The next table has it elsewhere.
    let next = ServiceEntry {
        generation: 2,
        ready: 2,
        ..entry
    };
    tables.put(&next, 0, 2);
    tables.put(&next, 1, 9);
    *tables.services.borrow_mut() = vec![next];
    assert!((0..100).all(|s| chosen(&tables, &socket(last, s)) == 2));

    // Of what is not offered any more, or was never this service's, nothing is kept.
    let stranger = Picked {
        backend: BackendId(3),
        ..last
    };
    let drawn = |last| (0..100).map(move |s| (last, s));
    let offered = [2, 9];
    assert!(drawn(stranger).all(|(last, s)| offered.contains(&chosen(&tables, &socket(last, s)))));
    let misplaced = Picked {
        backend: BackendId(3),
        place: Place {
            generation: 2,
            slot: 0,
        },
    };
    assert!(drawn(misplaced).all(|(last, s)| offered.contains(&chosen(&tables, &socket(last, s)))));
}

proptest! {
    #[test]
    fn a_choice_is_always_a_slot_that_the_service_offers(
        spread: u32, local in 0_u32..4, zone in 0_u32..4, rest in 0_u32..4, terminating in 0_u32..3,
        local_share in 0..=SHARE_ONE, sticky: bool, local_only: bool,
    ) {
        let (zone, rest) = if local_only { (0, 0) } else { (zone, rest) };
        let ready = local + zone + rest;
        let entry = ServiceEntry {
            local_share,
            flags: if local_only { FLAG_LOCAL_ONLY } else { 0 },
            affinity_timeout_s: if sticky { 60 } else { 0 },
            ..service(local, zone, ready, terminating)
        };
        let tables = Fake::with(entry);
        match choose(&tables, &client(spread), &DIALLED) {
            Verdict::Backend { picked, .. } => {
                let slot = picked.backend.0 - 1;
                prop_assert_eq!(picked.place.slot, slot);
                let offered = if ready > 0 { ready } else { terminating };
                prop_assert!(slot < offered);
            }
            Verdict::NoBackend { .. } => prop_assert_eq!(ready + terminating, 0),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// At every single map write between an old and a new table, a choice is valid in one of the two.
    #[test]
    fn no_write_of_a_flip_opens_a_window(
        spread: u32, old in prop::collection::btree_set(1_u32..20, 1..6), new in prop::collection::btree_set(1_u32..20, 1..6),
    ) {
        let before = service(0, 0, old.len() as u32, 0);
        let after = ServiceEntry { generation: 2, ready: new.len() as u32, ..before };
        let mut tables = Fake { services: RefCell::new(vec![before]), ..Fake::default() };
        for (slot, id) in old.iter().enumerate() {
            tables.put(&before, slot as u32, *id);
        }
        let valid = |tables: &Fake| {
            let id = chosen(tables, &client(spread));
            old.contains(&id) || new.contains(&id)
        };
        for (slot, id) in new.iter().enumerate() {
            tables.put(&after, slot as u32, *id);
            prop_assert!(valid(&tables));
        }
        *tables.services.borrow_mut() = vec![after];
        prop_assert!(valid(&tables));
        for (slot, id) in old.iter().enumerate() {
            tables.slots.remove(&slot_key(&before, slot as u32));
            prop_assert!(valid(&tables));
            if !new.contains(id) {
                tables.backends.remove(&BackendId(*id));
            }
            prop_assert!(valid(&tables));
        }
    }
}

#[test]
fn a_service_with_source_ranges_is_for_whom_they_name() {
    let open = Fake::with(service(0, 0, 1, 0));
    let closed = Fake::with(ServiceEntry {
        flags: FLAG_SOURCE_RANGES,
        ..service(0, 0, 1, 0)
    });
    let dial = |tables: &Fake, served| {
        let client = Client {
            served,
            ..client(0)
        };
        choose(tables, &client, &DIALLED)
    };
    let given = |verdict| matches!(verdict, Verdict::Backend { .. });
    assert!(given(dial(&open, Served::No)), "it has none");
    assert!(given(dial(&closed, Served::Yes)));
    let refused = Verdict::NotServed { service_id: 7 };
    assert_eq!(dial(&closed, Served::No), refused);
    assert_eq!(dial(&closed, Served::ByPacket), Verdict::ByPacket);
}
