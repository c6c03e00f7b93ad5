//! One service address as the maps have it: its entry, its table, and who gets which share of its connections. Pure.

use agent_ebpf::abi::{BackendId, MaglevKey, SHARE_ONE, ServiceEntry, SlotKey};

use super::maglev;
use super::policy::{AddressKind, Class, Frontend, Preference};
use crate::cluster::{Name, ObjectKey};

/// One service address as the maps have it.
#[derive(Clone, Debug)]
pub struct Live {
    /// The service it belongs to; `None` for one that was found in the maps and nobody has claimed yet, or whose service
    /// has gone.
    pub owner: Option<ObjectKey>,
    /// When that service was made, in seconds since 1970.
    pub(super) created: i64,
    pub port_name: Name,
    pub kind: AddressKind,
    pub preference: Preference,
    pub entry: ServiceEntry,
    /// The backends of the live table, in the order of its slots.
    pub slots: Box<[BackendId]>,
    /// The highest generation that was ever begun.
    pub(super) last_generation: u32,
    /// The rows of a table that was found with some missing: it must be written anew.
    pub(super) broken: Option<Box<Table>>,
}

impl Live {
    /// Who has the address and keeps it, though `owner` asks for it too: who has it as its cluster IP, else whoever has
    /// it. Only while the view is partial, and the services come in any order, the older service takes it from the
    /// younger.
    pub(super) fn holder_before(
        &self,
        owner: &ObjectKey,
        asks: &Frontend,
        synced: bool,
    ) -> Option<&ObjectKey> {
        let holder = self.owner.as_ref().filter(|holder| *holder != owner)?;
        let is_own = |kind| kind == AddressKind::ClusterIp;
        let keeps = match (is_own(self.kind), is_own(asks.kind)) {
            (true, false) => true,
            (false, true) => false,
            _ => synced || self.created <= asks.created,
        };
        keeps.then_some(holder)
    }

    /// The class of the backend in `slot`.
    pub fn class(&self, slot: usize) -> Class {
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        let ServiceEntry {
            local,
            zone,
            ready,
            terminating,
            ..
        } = self.entry;
        match slot {
            _ if slot < local => Class::Local,
            _ if slot < local.saturating_add(zone) => Class::Zone,
            _ if slot < ready => Class::Rest,
            _ if slot < ready.saturating_add(terminating) => Class::Terminating,
            _ => Class::Draining,
        }
    }

    /// The share of new connections that the backend in `slot` gets, from 0 to 1, session affinity aside. The same rules
    /// as the kernel's `agent_ebpf::select::draw`.
    pub fn share(&self, slot: usize) -> f64 {
        let ServiceEntry {
            local,
            zone,
            ready,
            terminating,
            ..
        } = self.entry;
        let one_of = |count: u32| 1.0 / f64::from(count);
        let alone = local == ready || self.preference == Preference::LocalOnly;
        let stays = match local {
            0 => 0.0,
            _ if alone => 1.0,
            _ => f64::from(self.entry.local_share) / f64::from(SHARE_ONE),
        };
        match self.class(slot) {
            Class::Local => stays * one_of(local),
            Class::Zone => (1.0 - stays) * one_of(zone),
            Class::Rest if zone > 0 => 0.0,
            Class::Rest => (1.0 - stays) * one_of(ready - local),
            Class::Terminating if ready > 0 => 0.0,
            Class::Terminating => one_of(terminating),
            Class::Draining => 0.0,
        }
    }

    pub(super) fn table(&self) -> Table {
        if let Some(found) = &self.broken {
            return Table::clone(found);
        }
        let ServiceEntry {
            service_id,
            generation,
            ..
        } = self.entry;
        Table {
            service_id,
            generation,
            rows: (0..).zip(self.slots.iter().copied()).collect(),
            chunks: maglev::chunks(&self.entry),
        }
    }
}

/// The rows of one generation in `BACKEND_TABLE` and `MAGLEV`.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) service_id: u32,
    pub(super) generation: u32,
    pub(super) rows: Box<[(u32, BackendId)]>,
    /// How many rows of `MAGLEV` there may be. What they name is among `rows`.
    pub(super) chunks: u32,
}

impl Table {
    pub(super) fn rows(&self) -> impl Iterator<Item = (SlotKey, BackendId)> + '_ {
        let Table {
            service_id,
            generation,
            ..
        } = *self;
        self.rows.iter().map(move |(slot, id)| {
            (
                SlotKey {
                    service_id,
                    generation,
                    slot: *slot,
                },
                *id,
            )
        })
    }

    pub(super) fn maglev_keys(&self) -> impl Iterator<Item = MaglevKey> + '_ {
        (0..self.chunks).map(|chunk| MaglevKey {
            service_id: self.service_id,
            generation: self.generation,
            chunk,
        })
    }
}
