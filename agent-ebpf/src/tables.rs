//! The service tables in the maps, as the choice of a backend reads them.

use agent_ebpf::abi::{
    AffinityEntry, AffinityKey, BackendEntry, BackendId, ServiceKey, ServiceRow, SlotKey,
};
use agent_ebpf::select::Tables;

use crate::maps::{AFFINITY, BACKEND_TABLE, BACKENDS, SERVICES};

pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        let row = SERVICES.get_ptr(key)?;
        // SAFETY: a row's memory stays mapped while the program runs. The key is read after the entry: if that memory
        // was handed to another service meanwhile, the key says so.
        unsafe {
            let entry = (&raw const (*row).entry).read_volatile();
            Some(ServiceRow {
                key: (&raw const (*row).key).read_volatile(),
                entry,
            })
        }
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<BackendId> {
        // SAFETY: user space removes a slot only after no service entry has named its generation for a while.
        unsafe { BACKEND_TABLE.get(key) }.copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<BackendEntry> {
        // SAFETY: as for slots.
        unsafe { BACKENDS.get(id) }.copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        // SAFETY: a row that the LRU hands to another client meanwhile names a backend that is checked against the
        // service's own table before use.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey, entry: &AffinityEntry) {
        let _ = AFFINITY.insert(key, entry, 0);
    }
}
