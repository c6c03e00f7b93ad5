//! Everything that touches BPF: load, attach, pin, typed maps, feature probe.
//!
//! ```text
//! probe ──> load: object -> pinned maps, programs, pinned links on the node's cgroup
//!                      │
//! proxy ──[MapOp]──> ServiceMaps ──> SERVICES, BACKEND_TABLE, BACKENDS … ─read by──> the programs
//!                            STATS, SERVICE_STATS, EVENTS <──written by────────────────┘
//! ```
//!
//! All of it is pinned below `<bpf-dir>/v<ABI version>/`, so the kernel goes on serving when this process ends.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{
    BackendEntry, BackendId, MaglevChunk, MaglevKey, ServiceEntry, ServiceKey, SlotKey,
};

mod carry;
mod connections;
mod conversations;
mod datagrams;
mod diag;
mod events;
#[cfg(test)]
mod events_tests;
pub mod fake;
#[cfg(test)]
mod follow_tests;
#[cfg(test)]
mod gone_tests;
#[cfg(test)]
mod hairpin_tests;
mod inspect;
mod links;
mod listeners;
mod load;
mod lookup;
mod maps;
mod netdev;
#[cfg(test)]
mod node_port_tests;
mod object;
mod outside;
mod pod_links;
mod pod_maps;
mod policy;
mod policy_show;
mod port_bits;
mod prefixes;
mod probe;
#[cfg(test)]
mod records_tests;
mod retired;
mod sock_diag;
mod sockets;
mod source_prefix;
mod stale;
mod sys;
mod take_over;
mod tc;
#[cfg(test)]
mod tc_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upgrade_tests;
mod uplinks;
mod v1;
mod versions;
mod xdp;
#[cfg(test)]
mod xdp_tests;

pub use agent_ebpf::abi::ABI_VERSION;
pub use connections::{Connections, Fill, Swept};
pub use conversations::{OpenConversation, conversations_in};
pub use diag::{Namespace, SocketInfo, TcpInfo, netns_cookie, sockets_in};
pub use events::{Events, Records};
pub use inspect::{MapRow, MapSummary};
pub use listeners::{Backlog, Listeners};
pub use load::{
    Config, DEFAULT_CONNECTIONS, DEFAULT_SERVICES, Dataplane, LoadError, MapSizes, remove, start,
    upgrade_check,
};
pub use lookup::Lookup;
pub use maps::{MapError, Maps, Sum, Totals};
pub use netdev::{XdpFeatures, xdp_features};
pub use outside::Outside;
pub use pod_links::PodLinks;
pub use policy::{PolicyMapError, PolicyMaps, PolicyTables};
pub use policy_show::{identity_row, pod_row, rule_row};
pub use probe::{Feature, Probe, ProbeError, probe};
pub use retired::Retired;
pub use sockets::{CloseError, Closed, ClosingMaps, close_sockets};
pub use source_prefix::SourcePrefix;
pub use stale::StaleSockets;
pub use sys::monotonic_ns;
pub use take_over::TakeOver;
pub use tc::{AttachError, Hook, LinkPrograms};
pub use uplinks::{Uplink, UplinkError, Uplinks, filtered_links, remove_filters};
pub use versions::own_directory;
pub use versions::{Carried, Difference, Layout, Plan, Source};
pub use xdp::XdpError;

/// One write to one map. [`crate::proxy`] computes them; the dataplane performs them, in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapOp {
    PutBackend(BackendId, BackendEntry),
    PutSlot(SlotKey, BackendId),
    /// Behind a pointer: a part of a table is several times as large as the other rows.
    PutMaglev(MaglevKey, Box<MaglevChunk>),
    PutSourceRange(SourcePrefix),
    PutService(ServiceKey, ServiceEntry),
    DeleteService(ServiceKey),
    DeleteSlot(SlotKey),
    DeleteMaglev(MaglevKey),
    DeleteSourceRange(SourcePrefix),
    DeleteBackend(BackendId, Sockets),
}

/// What becomes of the client sockets that were sent to a backend when its row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sockets {
    /// The backend is gone: they are closed, so that their clients reconnect at once.
    Close,
    /// The backend is there and only its service is gone: they go on.
    Keep,
}

/// The service tables, as they stand in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinnedState {
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    pub slots: BTreeMap<SlotKey, BackendId>,
    pub backends: BTreeMap<BackendId, BackendEntry>,
    pub maglev: BTreeMap<MaglevKey, MaglevChunk>,
    pub source_ranges: BTreeSet<SourcePrefix>,
}

/// The service tables, as their one writer sees them: the kernel's [`Maps`], or a [`fake`].
pub trait ServiceMaps: Send {
    /// Performs one write. Idempotent: a row already there is replaced, a row already gone is no error.
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError>;

    /// Performs writes in order up to the first that fails, which the error names. What was written stays: the order of
    /// the writes keeps every lookup valid at each step.
    fn apply_all(&mut self, ops: &[MapOp]) -> Result<(), MapError> {
        ops.iter().try_for_each(|op| self.apply(op))
    }

    /// Performs removals of rows that no lookup meets any more, also beyond one that fails. Gives those that failed, to be
    /// repeated.
    fn remove_all(&mut self, ops: Vec<MapOp>) -> Vec<(MapOp, MapError)> {
        ops.into_iter()
            .filter_map(|op| self.apply(&op).err().map(|error| (op, error)))
            .collect()
    }

    /// Reads all tables back.
    fn dump(&self) -> Result<PinnedState, MapError>;
}
