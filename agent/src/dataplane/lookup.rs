//! What one lookup of a service address finds in the tables, read from user space.

use std::collections::BTreeMap;
use std::path::Path;

use agent_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, BackendEntry, BackendId, LinkIndex, PodEntry, Port,
    ServiceEntry, ServiceKey, ServiceRow, SlotKey, SourceRange, maps as names,
};
use agent_ebpf::node_port::{self, Node};
use agent_ebpf::select::{Served, Tables};

use aya::maps::lpm_trie::Key;

use super::diag::netns_cookie as netns_cookie_of;
use super::inspect::{present, row};
use super::{MapError, MapRow, Maps, PinnedState};

/// The rows that decide what becomes of a connect to one address. [`agent_ebpf::select::choose`] can draw from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub service: ServiceRow,
    /// The slots from which new connections are drawn.
    pub slots: BTreeMap<SlotKey, BackendId>,
    pub backends: BTreeMap<BackendId, BackendEntry>,
    /// Whether a service with source ranges is for the client.
    pub served: Served,
    /// What is remembered of the client that was asked about.
    pub affinity: Option<(AffinityKey, AffinityEntry)>,
}

impl Maps {
    /// What a connect to `key` would find, by a client in the network namespace with this cookie if one is given, else in
    /// this process's. `None` when it is no service.
    pub fn lookup(
        &self,
        key: &ServiceKey,
        netns_cookie: Option<u64>,
    ) -> Result<Option<Lookup>, MapError> {
        let found = present(names::SERVICES, self.services.get(key, 0))?;
        let own = || netns_cookie_of(Path::new("/proc/thread-self/ns/net")).ok();
        let node = Here {
            maps: self,
            in_node: netns_cookie.is_none_or(|cookie| Some(cookie) == own()),
        };
        let found = match found {
            _ if node_port::is_elsewhere(&node, &key.address) => None,
            None if node_port::is_dialled(&node, key) => {
                let row = ServiceKey {
                    address: node_port::any(&key.address),
                    ..*key
                };
                present(names::SERVICES, self.services.get(&row, 0))?
            }
            found => found,
        };
        let Some(service) = found else {
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
        let served = match node.in_node {
            true => self.serves_node(service_id, &key.address),
            false => Served::ByPacket,
        };
        Ok(Some(Lookup {
            service,
            slots,
            backends,
            served,
            affinity,
        }))
    }

    /// Whether a service with source ranges is for the node's own sockets.
    fn serves_node(&self, service_id: u32, dialled: &Address) -> Served {
        let own = self.pods.get(&LinkIndex::NONE, 0);
        let address = own.map(|own| match dialled.as_v4() {
            Some(_) => own.ipv4,
            None => own.ipv6,
        });
        let client = SourceRange {
            service_id: service_id.to_be_bytes(),
            address: address.unwrap_or(PodEntry::NONE),
        };
        match self.source_ranges.get(&Key::new(160, client), 0) {
            Ok(_) => Served::Yes,
            Err(_) => Served::No,
        }
    }
}

/// The node, as a socket's program would see it.
struct Here<'a> {
    maps: &'a Maps,
    in_node: bool,
}

/// What cannot be read is as if it were not there.
impl Node for Here<'_> {
    fn ports(&self) -> [u16; 2] {
        let config = self.maps.config.get(&0, 0);
        config.map_or([0; 2], |config| config.node_ports)
    }

    fn is_host_port(&self, port: Port) -> bool {
        self.maps.is_host_port(port)
    }

    fn has(&self, address: &Address) -> bool {
        self.maps.node_addresses.get(address, 0).is_ok()
    }

    fn is_here(&self) -> bool {
        self.in_node
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
            ..PinnedState::default()
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
