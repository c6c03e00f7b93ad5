use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::abi::{AffinityEntry, AffinityKey, SHARE_ONE, Scope, SlotKey, TCP};
use crate::packet::testing::address;

const BACKENDS: u32 = 5;

/// One service: of a Maglev table that gives entry n to backend n modulo their number, and of slots.
struct World {
    entry: ServiceEntry,
    served: Option<BTreeSet<Address>>,
    /// By how many backends the Maglev table's entries have moved.
    moved: u32,
    affinity: RefCell<BTreeMap<AffinityKey, AffinityEntry>>,
}

fn world(flags: u32, affinity_timeout_s: u32) -> World {
    World {
        entry: ServiceEntry {
            service_id: 7,
            generation: 3,
            local: 0,
            zone: 0,
            ready: BACKENDS,
            terminating: 0,
            flags,
            affinity_timeout_s,
            local_share: SHARE_ONE,
        },
        served: None,
        moved: 0,
        affinity: RefCell::default(),
    }
}

fn dialled() -> ServiceKey {
    ServiceKey {
        address: address("192.0.2.80"),
        port: [0, 80],
        protocol: TCP,
        scope: Scope::EXTERNAL,
    }
}

impl World {
    fn choose(&self, client: &str, port: u16, now_ns: u64) -> Choice {
        let client = Client {
            address: address(client),
            port: port.to_be_bytes(),
            now_ns,
        };
        choose(self, &client, &dialled())
    }

    fn backend_of(&self, client: &str, port: u16) -> u32 {
        match self.choose(client, port, 1) {
            Choice::Backend { id, .. } => id.0,
            other => panic!("{other:?}"),
        }
    }
}

impl Tables for World {
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        let entry = self.entry;
        (*key == dialled()).then_some(ServiceRow { key: *key, entry })
    }
    fn slot(&self, key: &SlotKey) -> Option<BackendId> {
        (key.generation == self.entry.generation).then_some(BackendId(key.slot + 1))
    }
    fn backend(&self, id: BackendId) -> Option<BackendEntry> {
        (1..=BACKENDS).contains(&id.0).then(|| BackendEntry {
            address: Address::v4([10, 0, 0, id.0 as u8]),
            port: [0, 80],
            protocol: TCP,
            pad: 0,
        })
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinity.borrow().get(key).copied()
    }
    fn remember(&self, key: &AffinityKey, entry: &AffinityEntry) {
        self.affinity.borrow_mut().insert(*key, *entry);
    }
}

impl OutsideTables for World {
    fn maglev(&self, key: &MaglevKey, entry: usize) -> Option<BackendId> {
        let entry = key.chunk as usize * MAGLEV_CHUNK + entry;
        assert!(entry < MAGLEV_SIZES[1] as usize, "behind the table's end");
        Some(BackendId((entry as u32 + self.moved) % BACKENDS + 1))
    }
    fn is_service(&self, key: &ServiceKey) -> bool {
        self.service(key).is_some()
    }
    fn serves(&self, client: &SourceRange) -> bool {
        assert_eq!(client.service_id, [0, 0, 0, 7]);
        self.served
            .as_ref()
            .is_none_or(|it| it.contains(&client.address))
    }
}

const MAGLEV: u32 = FLAG_MAGLEV | 1 << MAGLEV_SIZE_SHIFT;

#[test]
fn clients_are_spread_evenly_and_the_same_on_every_node() {
    for flags in [0, MAGLEV] {
        let (one, other) = (world(flags, 0), world(flags, 0));
        let mut counts = [0; BACKENDS as usize + 1];
        for host in 0..=255 {
            for port in 40_000..40_010 {
                let client = format!("198.51.100.{host}");
                let backend = one.backend_of(&client, port);
                assert_eq!(backend, other.backend_of(&client, port));
                counts[backend as usize] += 1;
            }
        }
        // 512 are to be expected; three and a half standard deviations are 71.
        assert!(
            counts[1..].iter().all(|count| (440..585).contains(count)),
            "{counts:?}"
        );
    }
}

#[test]
fn with_affinity_a_client_has_one_backend_whatever_its_port() {
    for flags in [0, MAGLEV] {
        let world = world(flags, 60);
        let mut seen = BTreeSet::new();
        for host in 0..40 {
            let client = format!("2001:db8::{host}");
            let backends = (1..50).map(|port| world.backend_of(&client, port));
            let backends: BTreeSet<u32> = backends.collect();
            assert_eq!(backends.len(), 1, "{client}");
            seen.extend(backends);
        }
        assert_eq!(seen.len(), BACKENDS as usize, "not all clients the same");
    }
}

#[test]
fn with_affinity_a_client_keeps_its_backend_when_others_come_until_its_time_is_over() {
    const SECOND: u64 = 1_000_000_000;
    let mut world = world(MAGLEV, 60);
    let of = |world: &World, host: u8, now_ns| {
        let chosen = world.choose(&format!("198.51.100.{host}"), 1, now_ns);
        match chosen {
            Choice::Backend { id, .. } => id,
            other => panic!("{other:?}"),
        }
    };
    let all = |world: &World, now_ns| -> Vec<BackendId> {
        (0..100).map(|host| of(world, host, now_ns)).collect()
    };
    let before = all(&world, SECOND);
    world.entry.generation += 1;
    world.moved = 1;
    assert_eq!(all(&world, 50 * SECOND), before);
    assert_eq!(all(&world, 100 * SECOND), before, "used meanwhile");
    let after = all(&world, 200 * SECOND);
    assert!(after != before, "long after");
}

#[test]
fn a_client_that_is_not_served_gets_none() {
    let mut world = world(FLAG_SOURCE_RANGES, 0);
    world.served = Some([address("198.51.100.2")].into());
    assert_eq!(world.choose("198.51.100.3", 1, 1), Choice::NotServed);
    assert!(matches!(
        world.choose("198.51.100.2", 1, 1),
        Choice::Backend { .. }
    ));
}

#[test]
fn without_a_backend_or_with_holes_there_is_none() {
    let mut world = world(0, 0);
    world.entry.ready = 0;
    let none = |is_hole| Choice::NoBackend {
        service_id: 7,
        is_hole,
    };
    assert_eq!(world.choose("198.51.100.2", 1, 1), none(false));
    world.entry.ready = BACKENDS + 3000;
    let holes = (0..500).filter(|port| world.choose("198.51.100.2", *port, 1) == none(true));
    assert!(holes.count() > 400);
}
