//! Everything that touches BPF: load, attach, pin, typed maps, feature probe.

use agent_ebpf::abi::{BackendEntry, BackendId, ServiceEntry, ServiceKey, SlotKey};

/// One write to one map. [`crate::proxy`] computes them; the dataplane performs them, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapOp {
    PutBackend(BackendId, BackendEntry),
    PutSlot(SlotKey, BackendId),
    PutService(ServiceKey, ServiceEntry),
    DeleteService(ServiceKey),
    DeleteSlot(SlotKey),
    DeleteBackend(BackendId),
}
