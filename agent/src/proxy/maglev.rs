//! Maglev tables: which backend a packet from outside goes to, the same on every node that it may come in by. Pure.
//!
//! Each backend has a permutation of the entries, made of nothing but where it listens. The backends take turns: each looks
//! at the next entry of its permutation, and takes it if it is free. One that has its fair share and a little more looks on
//! at nothing. (Eisenbud et al., "Maglev", NSDI 2016, let a backend look until it finds a free entry, which makes shares
//! equal but moves twice as many entries when a backend goes.)
//!
//! Of two backends that want an entry, it goes to the one that has it earlier in its permutation, so one that leaves gives
//! back its own entries and moves few others.

use std::ops::Range;

use agent_ebpf::abi::{
    BackendId, FLAG_MAGLEV, MAGLEV_CHUNK, MAGLEV_SIZE_SHIFT, MAGLEV_SIZES, MaglevChunk, MaglevKey,
    ServiceEntry,
};

use super::policy::Target;

/// A table has so many entries a backend at least, while there is one so large.
const ENTRIES_EACH: usize = 100;
/// No backend has more than its fair share and this part of it.
const SLACK: f64 = 1.0 / 64.0;

/// The `FLAG_*` bits of an entry whose table is drawn from `backends` backends.
pub(super) fn flags(backends: usize) -> u32 {
    let last = MAGLEV_SIZES.len() - 1;
    let enough = |size: &u32| *size as usize >= ENTRIES_EACH * backends;
    let index = MAGLEV_SIZES.iter().position(enough).unwrap_or(last);
    FLAG_MAGLEV | (index as u32) << MAGLEV_SIZE_SHIFT
}

/// How many entries the Maglev table of a service has; `None` where it has no table.
pub fn size(entry: &ServiceEntry) -> Option<u32> {
    let index = (entry.flags >> MAGLEV_SIZE_SHIFT) as usize % MAGLEV_SIZES.len();
    (entry.flags & FLAG_MAGLEV != 0).then_some(MAGLEV_SIZES[index])
}

/// How many rows of `MAGLEV` that are.
pub(super) fn chunks(entry: &ServiceEntry) -> u32 {
    size(entry).map_or(0, |size| size.div_ceil(MAGLEV_CHUNK as u32))
}

/// The slots that new connections are drawn from.
pub(super) fn pool(entry: &ServiceEntry) -> Range<usize> {
    match entry.ready {
        0 => 0..entry.terminating as usize,
        ready => 0..ready as usize,
    }
}

/// A table of `size` entries, a prime. There is at least one backend, and each target once; their order is of no account.
pub(super) fn table(size: u32, mut backends: Vec<(Target, BackendId)>) -> Vec<BackendId> {
    const FREE: u32 = u32::MAX;
    backends.sort_unstable_by_key(|(target, _)| *target);
    let fair = f64::from(size) / backends.len() as f64;
    let most = (fair * (1.0 + SLACK)).ceil() as u32;
    let mut taken = vec![FREE; size as usize];
    let mut left = size;
    let permutations = backends
        .iter()
        .map(|(target, _)| Permutation::of(target, size));
    let mut turns: Vec<(Permutation, u32)> = permutations.map(|it| (it, 0)).collect();
    let inverses = inverses(size);
    // Each permutation has every entry, and all may have more than there are, so none stays free.
    for inverse in inverses {
        for (index, (permutation, has)) in (0..).zip(&mut turns) {
            let entry = &mut taken[permutation.entry(inverse) as usize];
            if *entry == FREE && *has < most {
                *entry = index;
                *has += 1;
                left -= 1;
            }
        }
        if left == 0 {
            break;
        }
    }
    taken
        .into_iter()
        .map(|index| backends[index as usize].1)
        .collect()
}

/// The rows of a table.
pub(super) fn rows(
    service_id: u32,
    generation: u32,
    table: &[BackendId],
) -> impl Iterator<Item = (MaglevKey, MaglevChunk)> + '_ {
    (0..)
        .zip(table.chunks(MAGLEV_CHUNK))
        .map(move |(chunk, part)| {
            let mut row = MaglevChunk([BackendId(0); MAGLEV_CHUNK]);
            row.0[..part.len()].copy_from_slice(part);
            let key = MaglevKey {
                service_id,
                generation,
                chunk,
            };
            (key, row)
        })
}

/// `k` to `offset + factor / k`, modulo a prime; 0 to `offset`. A quotient, because two backends whose products run in step
/// would be at each other's heels all the way.
struct Permutation {
    offset: u64,
    factor: u64,
    size: u64,
}

impl Permutation {
    fn of(target: &Target, size: u32) -> Self {
        let size = u64::from(size);
        Self {
            offset: hash(target, 1) % size,
            factor: hash(target, 2) % (size - 1) + 1,
            size,
        }
    }

    fn entry(&self, inverse: u32) -> u64 {
        (self.offset + self.factor * u64::from(inverse)) % self.size
    }
}

/// What to multiply with to divide by 0, 1, … `prime - 1`; 0 for 0.
fn inverses(prime: u32) -> Vec<u32> {
    let mut all: Vec<u32> = vec![0, 1];
    for k in 2..prime {
        let smaller = u64::from(all[(prime % k) as usize]);
        let inverse = u64::from(prime - prime / k) * smaller % u64::from(prime);
        all.push(inverse as u32);
    }
    all
}

/// FNV-1a of where a backend listens, then the mixing steps of SplitMix64. Never to change: all nodes have to agree,
/// whichever version they run.
fn hash(target: &Target, seed: u64) -> u64 {
    let Target {
        address,
        port,
        protocol,
    } = target;
    let address = address.octets();
    let bytes = address.iter().chain(port).chain([protocol]);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
