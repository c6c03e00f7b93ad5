//! Carries translated connections. Where our table has not room for all of them, those that were silent for longest stay
//! behind: the kernel, which would make room as rows come, knows of no row how old it is.

use std::os::fd::AsFd as _;
use std::path::Path;

use agent_ebpf::abi::{Connection, FlowKey, maps as names};
use aya::maps::{IterableMap as _, MapError as AyaError};
use tracing::warn;

use super::{Table, lru, other, put};
use crate::dataplane::maps::{MapError, read};
use crate::dataplane::sys::each_pair;

const MAP: &str = names::CONNECTIONS;

/// When a row has to have been seen at the earliest, for no more than `room` to be carried, as the times of all say.
fn earliest(mut seen_ns: Vec<u64>, room: usize) -> u64 {
    match seen_ns.len().checked_sub(room) {
        None | Some(0) => 0,
        Some(excess) if excess == seen_ns.len() => u64::MAX,
        // Of those that are as old as the last one that has room, none is carried.
        Some(excess) => *seen_ns.select_nth_unstable(excess - 1).1 + 1,
    }
}

pub(super) fn carry(from: &Path, ours: &mut Table<FlowKey, Connection>) -> Result<(), MapError> {
    let Some(old) = other::<FlowKey, Connection>(from, MAP, lru)? else {
        return Ok(());
    };
    let failed = |source| read(MAP, source);
    let most = ours.map().info().map_err(failed)?.max_entries() as usize;
    // The kernel makes room already when CPUs have set aside the last rows that are free.
    let room = most - most / 8;
    let old = old.map().fd().as_fd();
    let mut seen_ns = Vec::new();
    let looked = each_pair(old, |_: FlowKey, row: Connection| {
        seen_ns.push(row.last_seen_ns);
    });
    looked.map_err(|error| failed(AyaError::IoError(error)))?;
    let earliest = earliest(seen_ns, room);
    let (mut behind, mut outcome) = (0_u32, Ok(()));
    let copied = each_pair(old, |key: FlowKey, row: Connection| {
        if row.last_seen_ns < earliest {
            behind += 1;
        } else if outcome.is_ok() {
            outcome = put(MAP, ours, &key, &row).map(drop);
        }
    });
    copied.map_err(|error| failed(AyaError::IoError(error)))?;
    if behind > 0 {
        warn!(
            rows = behind,
            "translated connections of another version find no room, those that were silent for longest; see --max-connections"
        );
    }
    outcome
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_latest_are_carried() {
        assert_eq!(earliest(vec![5, 3, 9], 3), 0);
        assert_eq!(earliest(vec![5, 3, 9], 2), 4);
        assert_eq!(earliest(vec![5, 3, 9], 1), 6);
        assert_eq!(earliest(vec![5, 3, 9], 0), u64::MAX);
        assert_eq!(earliest(vec![], 0), 0);
    }

    proptest! {
        #[test]
        fn as_many_are_carried_as_there_is_room_for(
            seen_ns in prop::collection::btree_set(0..1000_u64, 0..40),
            room in 0..50_usize,
        ) {
            let since = earliest(seen_ns.iter().copied().collect(), room);
            let carried = seen_ns.iter().filter(|seen| **seen >= since).count();
            prop_assert_eq!(carried, room.min(seen_ns.len()));
        }
    }
}
