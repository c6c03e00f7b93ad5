//! Flows of datagrams to backends that their service no longer offers.
//!
//! They have no end of their own: whoever goes on sending from one port would stay with a backend that is leaving, or that is
//! another service's by now. Connections stay with theirs, as they would not survive a change.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{
    BackendId, CONNECTION_FORMER, CONNECTION_REPLY, CONNECTION_SERVICE, Connection, FlowKey,
    ServiceEntry, ServiceKey, SlotKey, UDP, maps as names,
};
use agent_ebpf::node_port;
use aya::maps::MapError as AyaError;

use super::maps::{MapError, Maps, read};

/// Whether a row is that of datagrams to a service's backend.
pub(super) fn is_theirs(key: &FlowKey, row: &Connection) -> bool {
    let kind = row.kind & (CONNECTION_SERVICE | CONNECTION_REPLY | CONNECTION_FORMER);
    key.protocol == UDP && kind == CONNECTION_SERVICE && row.backend != BackendId(0)
}

/// What services offer, each read once.
#[derive(Default)]
pub(super) struct Offers {
    known: BTreeMap<ServiceKey, Option<BTreeSet<BackendId>>>,
}

impl Offers {
    /// Whether the flow of a row may go on to its backend. Where what is offered cannot be told, it may.
    pub(super) fn keep(
        &mut self,
        maps: &Maps,
        key: &FlowKey,
        row: &Connection,
    ) -> Result<bool, MapError> {
        if !is_theirs(key, row) {
            return Ok(true);
        }
        let dialled = key.dialled();
        let offered = match self.known.entry(dialled) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(offered(maps, &dialled)?),
        };
        let offered = offered.as_ref();
        Ok(offered.is_none_or(|offered| offered.contains(&row.backend)))
    }
}

fn offered(maps: &Maps, dialled: &ServiceKey) -> Result<Option<BTreeSet<BackendId>>, MapError> {
    let at_node_port = ServiceKey {
        address: node_port::any(&dialled.address),
        ..*dialled
    };
    for key in [dialled, &at_node_port] {
        if let Some(service) = maps.service(key)? {
            return backends(maps, &service);
        }
    }
    Ok(None)
}

/// Nothing when the table is replaced this moment.
fn backends(maps: &Maps, service: &ServiceEntry) -> Result<Option<BTreeSet<BackendId>>, MapError> {
    let count = match service.ready {
        0 => service.terminating,
        ready => ready,
    };
    let mut offered = BTreeSet::new();
    for slot in 0..count {
        let key = SlotKey {
            service_id: service.service_id,
            generation: service.generation,
            slot,
        };
        match maps.slots.get(&key, 0) {
            Ok(backend) => offered.insert(backend),
            Err(AyaError::KeyNotFound) => return Ok(None),
            Err(source) => return Err(read(names::BACKEND_TABLE, source)),
        };
    }
    Ok(Some(offered))
}
