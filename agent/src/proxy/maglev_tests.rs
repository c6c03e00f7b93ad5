//! What a Maglev table promises, over random backends.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{Address, TCP};
use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;

fn target((address, port): (u32, u16)) -> Target {
    Target {
        address: Address::v4(address.to_be_bytes()),
        port: port.to_be_bytes(),
        protocol: TCP,
    }
}

/// Of one port in a range of pods mostly, as a service's are.
fn targets(
    count: impl Into<proptest::collection::SizeRange>,
) -> impl Strategy<Value = Vec<Target>> {
    let address = prop_oneof![0x0af4_0000..0x0af5_0000u32, any::<u32>()];
    let port = prop_oneof![Just(8080u16), any::<u16>()];
    btree_set((address, port), count).prop_map(|all| all.into_iter().map(target).collect())
}

/// With ids that say nothing.
fn numbered(targets: &[Target], first: u32) -> Vec<(Target, BackendId)> {
    let ids = (first..).map(BackendId);
    targets.iter().copied().zip(ids).collect()
}

fn size_for(backends: usize) -> u32 {
    let index = flags(backends) >> MAGLEV_SIZE_SHIFT;
    MAGLEV_SIZES[index as usize]
}

/// The table, by what the ids stand for.
fn made(size: u32, backends: &[(Target, BackendId)]) -> Vec<Target> {
    let known: BTreeMap<BackendId, Target> = backends.iter().map(|(t, id)| (*id, *t)).collect();
    let table = table(size, backends.to_vec());
    table.iter().map(|id| known[id]).collect()
}

#[test]
fn inverses_are_inverse() {
    for (k, inverse) in (0u64..).zip(inverses(251)) {
        assert_eq!(k * u64::from(inverse) % 251, u64::from(k != 0));
    }
}

#[test]
fn a_table_grows_with_its_backends() {
    let sizes = [2, 3, 10, 11, 40, 41, 163, 1_000].map(size_for);
    assert_eq!(
        sizes,
        [251, 1_021, 1_021, 4_093, 4_093, 16_381, 16_381, 16_381]
    );
}

#[test]
fn rows_hold_the_table_in_order() {
    let entries: Vec<BackendId> = (1..=251).map(BackendId).collect();
    let rows: Vec<(MaglevKey, MaglevChunk)> = rows(7, 3, &entries).collect();
    assert_eq!(rows.len(), 4);
    for (chunk, (key, row)) in rows.iter().enumerate() {
        assert_eq!((key.service_id, key.generation), (7, 3));
        assert_eq!(key.chunk as usize, chunk);
        let part = &entries[chunk * MAGLEV_CHUNK..];
        let length = part.len().min(MAGLEV_CHUNK);
        assert_eq!(row.0[..length], part[..length]);
    }
}

#[test]
fn the_hash_is_what_it_was() {
    let all = [1, 2, 3].map(|last| target((0x0af4_0000 + last, 8080)));
    let table = made(251, &numbered(&all, 1));
    let first: Vec<u8> = table[..24]
        .iter()
        .map(|it| it.address.octets()[15])
        .collect();
    assert_eq!(first, GOLDEN);
}

/// Nodes of other versions have this table.
const GOLDEN: [u8; 24] = [
    3, 1, 3, 3, 1, 3, 3, 1, 2, 3, 2, 1, 3, 2, 2, 1, 2, 1, 3, 1, 3, 2, 3, 3,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_node_makes_the_same_table(
        (targets, shuffled) in targets(2..64)
            .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let size = size_for(targets.len());
        let one = made(size, &numbered(&targets, 1));
        prop_assert_eq!(one, made(size, &numbered(&shuffled, 900)));
    }

    #[test]
    fn shares_are_fair(targets in targets(2..164usize)) {
        let size = size_for(targets.len());
        let table = made(size, &numbered(&targets, 1));
        let fair = f64::from(size) / targets.len() as f64;
        let mut has: BTreeMap<Target, u32> = BTreeMap::new();
        for target in table {
            *has.entry(target).or_default() += 1;
        }
        for target in targets {
            let share = f64::from(has[&target]);
            prop_assert!(share <= (fair * 65.0 / 64.0).ceil(), "{share} of {fair}");
            prop_assert!(share >= fair * 0.7, "{share} of {fair}");
        }
    }

    #[test]
    fn one_of_a_hundred_that_goes_moves_few_of_the_others(
        targets in targets(100),
        dead in 0..100usize,
    ) {
        let mut left = targets.clone();
        let dead = left.remove(dead);
        let size = size_for(100);
        let before = made(size, &numbered(&targets, 1));
        let after = made(size, &numbered(&left, 1));
        let moved = before.iter().zip(&after).filter(|(old, new)| **old != dead && old != new);
        prop_assert!(moved.count() as u32 <= size / 100);
    }

    #[test]
    fn more_backends_than_entries_leave_none_free(targets in targets(251..400usize)) {
        let table = made(251, &numbered(&targets, 1));
        let named: BTreeSet<&Target> = table.iter().collect();
        prop_assert_eq!(table.len(), 251);
        prop_assert!(named.len() > 125, "two entries each at most");
    }
}
