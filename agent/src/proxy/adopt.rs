//! Taking over what an earlier run left in the maps. Pure.

use std::collections::{BTreeMap, HashMap};

use agent_ebpf::abi::{BackendEntry, BackendId, FLAG_LOCAL_ONLY, ServiceEntry, SlotKey};

use super::backends::Ids;
use super::live::{Live, Table};
use super::policy::Preference;
use super::state::LbState;
use crate::dataplane::PinnedState;

/// New ids after a restart start this far, at most, beyond the highest that was found. The ids just above it may have
/// been removed shortly before, and sockets may still name them.
const ID_JUMP: u32 = 1 << 24;

impl LbState {
    /// The state of maps that hold `pinned`. Every address is an orphan until a service claims it. `seed` is any random
    /// number.
    ///
    /// Whatever write an earlier run died at, what it left is one of: tables that an entry leads to (live), tables that
    /// none leads to (retired), backends that no table names (idle). All three are taken over as such, and go or stay
    /// by the usual rules.
    pub fn adopt(pinned: PinnedState, seed: u32) -> Self {
        if pinned.services.is_empty() && pinned.slots.is_empty() && pinned.backends.is_empty() {
            return Self::new();
        }
        let highest_service = pinned.slots.keys().map(|key| key.service_id);
        let highest_service = highest_service
            .chain(pinned.services.values().map(|entry| entry.service_id))
            .max();
        let highest_backend = pinned.backends.keys().map(|id| id.0).max();
        let jump = seed % ID_JUMP + 1;
        let mut state = Self::starting_at(0, highest_backend.unwrap_or(0).wrapping_add(jump));
        state.ids = Ids::starting_at(highest_service.unwrap_or(0).wrapping_add(jump));

        let mut tables: HashMap<(u32, u32), BTreeMap<u32, BackendId>> = HashMap::new();
        for (
            SlotKey {
                service_id,
                generation,
                slot,
            },
            id,
        ) in pinned.slots
        {
            tables
                .entry((service_id, generation))
                .or_default()
                .insert(slot, id);
        }
        let backends = pinned.backends;
        for (id, row) in &backends {
            state.backends.adopt(*id, *row);
        }
        let mut highest_generation: HashMap<u32, u32> = HashMap::new();
        for (service_id, generation) in tables.keys() {
            let highest = highest_generation.entry(*service_id).or_default();
            *highest = (*highest).max(*generation);
        }

        for (key, entry) in pinned.services {
            let rows = tables
                .remove(&(entry.service_id, entry.generation))
                .unwrap_or_default();
            let found = highest_generation
                .get(&entry.service_id)
                .copied()
                .unwrap_or(0);
            let live = live(entry, rows, &backends, found);
            state.backends.hold(live.slots.iter());
            state.service_ids.insert(entry.service_id);
            state.frontends.insert(key, live);
            state.orphans.insert(key);
        }
        for ((service_id, generation), rows) in tables {
            state.backends.hold(rows.values());
            state.retired.push(Table {
                service_id,
                generation,
                rows: rows.into_iter().collect(),
            });
        }
        state
    }
}

fn live(
    entry: ServiceEntry,
    rows: BTreeMap<u32, BackendId>,
    backends: &BTreeMap<BackendId, BackendEntry>,
    highest_generation: u32,
) -> Live {
    let offered = entry.ready.saturating_add(entry.terminating) as usize;
    // Behind those that are offered stand the draining ones.
    let whole = rows.len() >= offered
        && rows.keys().copied().eq(0..rows.len() as u32)
        && rows.values().all(|id| backends.contains_key(id));
    let broken = (!whole).then(|| {
        let rows = rows.iter().map(|(slot, id)| (*slot, *id)).collect();
        Box::new(Table {
            service_id: entry.service_id,
            generation: entry.generation,
            rows,
        })
    });
    Live {
        owner: None,
        created: 0,
        port_name: "".into(),
        preference: if entry.flags & FLAG_LOCAL_ONLY != 0 {
            Preference::LocalOnly
        } else {
            Preference::Node
        },
        entry,
        slots: rows.into_values().collect(),
        last_generation: entry.generation.max(highest_generation),
        broken,
    }
}
