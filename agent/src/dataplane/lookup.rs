//! What one lookup of a service address finds in the tables, read from user space.

use std::collections::BTreeMap;

use agent_ebpf::abi::{
    AffinityEntry, AffinityKey, BackendEntry, BackendId, ServiceEntry, ServiceKey, ServiceRow,
    SlotKey, maps as names,
};
use agent_ebpf::select::Tables;

use super::inspect::{present, row};
use super::{MapError, MapRow, Maps, PinnedState};

/// The rows that decide what becomes of a connect to one address. [`agent_ebpf::select::choose`] can draw from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub service: ServiceRow,
    /// The slots from which new connections are drawn.
    pub slots: BTreeMap<SlotKey, BackendId>,
    pub backends: BTreeMap<BackendId, BackendEntry>,
    /// What is remembered of the client that was asked about.
    pub affinity: Option<(AffinityKey, AffinityEntry)>,
}

impl Maps {
    /// What a connect to `key` would find, by a client in the network namespace with this cookie if one is given. `None`
    /// when it is no service.
    pub fn lookup(
        &self,
        key: &ServiceKey,
        netns_cookie: Option<u64>,
    ) -> Result<Option<Lookup>, MapError> {
        let Some(service) = present(names::SERVICES, self.services.get(key, 0))? else {
            return Ok(None);
        };
        let ServiceEntry {
            service_id,
            generation,
            ready,
            terminating,
            ..
        } = service.entry;
        let (mut slots, mut backends) = (BTreeMap::new(), BTreeMap::new());
        for slot in 0..ready.saturating_add(terminating) {
            let slot = SlotKey {
                service_id,
                generation,
                slot,
            };
            // The table may flip while it is read; what is gone is left out.
            let Some(id) = present(names::BACKEND_TABLE, self.slots.get(&slot, 0))? else {
                continue;
            };
            slots.insert(slot, id);
            if let Some(backend) = present(names::BACKENDS, self.backends.get(&id, 0))? {
                backends.insert(id, backend);
            }
        }
        let affinity = match netns_cookie {
            Some(netns_cookie) => {
                let key = AffinityKey {
                    netns_cookie,
                    service_id,
                    pad: 0,
                };
                present(names::AFFINITY, self.affinity.get(&key, 0))?.map(|entry| (key, entry))
            }
            None => None,
        };
        Ok(Some(Lookup {
            service,
            slots,
            backends,
            affinity,
        }))
    }
}

impl Lookup {
    /// Its rows, in the order in which a connect meets them.
    pub fn rows(&self) -> Vec<MapRow> {
        let service = row(names::SERVICES, &self.service.key, &self.service);
        let affinity = self.affinity.iter();
        let affinity = affinity.map(|(key, entry)| row(names::AFFINITY, key, entry));
        let slots = self.slots.iter().flat_map(|(slot, id)| {
            let backend = self.backends.get(id);
            let backend = backend.map(|entry| row(names::BACKENDS, id, entry));
            std::iter::once(row(names::BACKEND_TABLE, slot, id)).chain(backend)
        });
        std::iter::once(service)
            .chain(affinity)
            .chain(slots)
            .collect()
    }

    /// The same rows as tables that hold nothing else.
    pub fn tables(&self) -> PinnedState {
        PinnedState {
            services: BTreeMap::from([(self.service.key, self.service.entry)]),
            slots: self.slots.clone(),
            backends: self.backends.clone(),
        }
    }
}

impl Tables for Lookup {
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        (*key == self.service.key).then_some(self.service)
    }

    fn slot(&self, key: &SlotKey) -> Option<BackendId> {
        self.slots.get(key).copied()
    }

    fn backend(&self, id: BackendId) -> Option<BackendEntry> {
        self.backends.get(&id).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        let (own, entry) = self.affinity.as_ref()?;
        (own == key).then_some(*entry)
    }

    /// Looking leaves no trace.
    fn remember(&self, _: &AffinityKey, _: &AffinityEntry) {}
}
