//! Taking over what an earlier run left in the maps. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_ebpf::abi::{
    BackendEntry, BackendId, FLAG_LOCAL_ONLY, FLAG_SOURCE_RANGES, MaglevChunk, ServiceEntry,
    ServiceKey, SlotKey,
};

use super::backends::Ids;
use super::live::{Live, Table};
use super::maglev;
use super::policy::{AddressKind, Preference};
use super::state::LbState;
use crate::dataplane::PinnedState;

/// New ids after a restart start this far, at most, beyond the highest that was found. The ids just above it may have
/// been removed shortly before, and sockets may still name them.
const ID_JUMP: u32 = 1 << 24;

/// The rows of one generation of a service.
#[derive(Default)]
struct Rows {
    slots: BTreeMap<u32, BackendId>,
    maglev: BTreeMap<u32, MaglevChunk>,
}

impl Rows {
    fn table(&self, service_id: u32, generation: u32) -> Table {
        let last = self.maglev.last_key_value();
        Table {
            service_id,
            generation,
            rows: self.slots.iter().map(|(slot, id)| (*slot, *id)).collect(),
            chunks: last.map_or(0, |(chunk, _)| chunk.saturating_add(1)),
        }
    }
}

impl LbState {
    /// The state of maps that hold `pinned`. Every address is an orphan until a service claims it. `seed` is any random
    /// number.
    ///
    /// Whatever write an earlier run died at, what it left is one of: tables that an entry leads to (live), tables that
    /// none leads to (retired), backends that no table names (idle). All three are taken over as such, and go or stay
    /// by the usual rules.
    pub fn adopt(pinned: PinnedState, seed: u32) -> Self {
        let PinnedState {
            services,
            slots,
            backends,
            maglev,
            source_ranges,
        } = pinned;
        if services.is_empty()
            && slots.is_empty()
            && backends.is_empty()
            && maglev.is_empty()
            && source_ranges.is_empty()
        {
            return Self::new();
        }
        let highest_service = slots.keys().map(|key| key.service_id);
        let highest_service = highest_service
            .chain(services.values().map(|entry| entry.service_id))
            .chain(maglev.keys().map(|key| key.service_id))
            .chain(source_ranges.iter().map(|range| range.service_id()))
            .max();
        let highest_backend = backends.keys().map(|id| id.0).max();
        let jump = seed % ID_JUMP + 1;
        let mut state = Self::starting_at(0, highest_backend.unwrap_or(0).wrapping_add(jump));
        state.ids = Ids::starting_at(highest_service.unwrap_or(0).wrapping_add(jump));

        let mut tables: HashMap<(u32, u32), Rows> = HashMap::new();
        for (key, id) in slots {
            let SlotKey {
                service_id,
                generation,
                slot,
            } = key;
            let rows = tables.entry((service_id, generation)).or_default();
            rows.slots.insert(slot, id);
        }
        for (key, chunk) in maglev {
            let rows = tables.entry((key.service_id, key.generation)).or_default();
            rows.maglev.insert(key.chunk, chunk);
        }
        for (id, row) in &backends {
            state.backends.adopt(*id, *row);
        }
        let mut highest_generation: HashMap<u32, u32> = HashMap::new();
        for (service_id, generation) in tables.keys() {
            let highest = highest_generation.entry(*service_id).or_default();
            *highest = (*highest).max(*generation);
        }

        let mut guarded = HashSet::new();
        for (key, entry) in services {
            let rows = tables
                .remove(&(entry.service_id, entry.generation))
                .unwrap_or_default();
            let found = highest_generation
                .get(&entry.service_id)
                .copied()
                .unwrap_or(0);
            let live = state.live(&key, entry, rows, &backends, found);
            state.backends.hold(live.slots.iter());
            state.service_ids.insert(entry.service_id);
            if entry.flags & FLAG_SOURCE_RANGES != 0 {
                guarded.insert(entry.service_id);
            }
            state.frontends.insert(key, live);
            state.orphans.insert(key);
        }
        for range in source_ranges {
            let is_live = guarded.contains(&range.service_id());
            state.ranges.adopt(range, is_live);
        }
        for ((service_id, generation), rows) in tables {
            state.backends.hold(rows.slots.values());
            state.retired.push(rows.table(service_id, generation));
        }
        state
    }

    fn live(
        &self,
        key: &ServiceKey,
        entry: ServiceEntry,
        rows: Rows,
        backends: &BTreeMap<BackendId, BackendEntry>,
        highest_generation: u32,
    ) -> Live {
        let offered = entry.ready.saturating_add(entry.terminating) as usize;
        // Behind those that are offered stand the draining ones.
        let whole = rows.slots.len() >= offered
            && rows.slots.keys().copied().eq(0..rows.slots.len() as u32)
            && rows.slots.values().all(|id| backends.contains_key(id));
        let slots: Box<[BackendId]> = rows.slots.values().copied().collect();
        let whole = whole && self.has_maglev(entry, &slots, &rows.maglev);
        let broken = (!whole).then(|| Box::new(rows.table(entry.service_id, entry.generation)));
        Live {
            owner: None,
            created: 0,
            port_name: "".into(),
            kind: AddressKind::of_row(key, &entry),
            preference: if entry.flags & FLAG_LOCAL_ONLY != 0 {
                Preference::LocalOnly
            } else {
                Preference::Node
            },
            entry,
            slots,
            last_generation: entry.generation.max(highest_generation),
            broken,
        }
    }

    /// Whether the rows are the Maglev table that this version would make.
    fn has_maglev(
        &self,
        entry: ServiceEntry,
        slots: &[BackendId],
        found: &BTreeMap<u32, MaglevChunk>,
    ) -> bool {
        let table = self.maglev_table(&entry, slots);
        let rows = maglev::rows(entry.service_id, entry.generation, &table);
        rows.map(|(key, chunk)| (key.chunk, chunk))
            .eq(found.iter().map(|(chunk, row)| (*chunk, *row)))
    }
}
