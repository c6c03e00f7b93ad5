//! The maps as those who look need them: the kernel's, or a test's.

use std::collections::BTreeMap;

use agent_ebpf::abi::pods::PodTraffic;
use agent_ebpf::abi::{Address, DropReason, ServiceKey, SocketEntry, SocketKey};

use crate::dataplane::{Lookup, MapError, MapRow, MapSummary, Maps, Outside, Totals};

/// Reads, and never writes.
pub trait MapReader: Send + Sync {
    fn summaries(&self) -> Result<Vec<MapSummary>, MapError>;
    fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError>;
    /// What decides what becomes of a connect to `key`, by a client in the network namespace with this cookie.
    fn lookup(
        &self,
        key: &ServiceKey,
        netns_cookie: Option<u64>,
    ) -> Result<Option<Lookup>, MapError>;
    /// The client sockets that were sent to backends.
    fn sockets(&self) -> Result<Vec<(SocketKey, SocketEntry)>, MapError>;
    /// The connections of clients outside with backends.
    fn outside(&self) -> Result<Vec<Outside>, MapError>;
    fn totals(&self) -> Result<Totals, MapError>;
    /// Packets dropped, by reason.
    fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapError>;
    /// What passed the links of this node's pods, by the pods' addresses.
    fn traffic(&self) -> Result<BTreeMap<Address, PodTraffic>, MapError>;
}

impl MapReader for Maps {
    fn summaries(&self) -> Result<Vec<MapSummary>, MapError> {
        Maps::summaries(self)
    }
    fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError> {
        Maps::rows(self, name)
    }
    fn lookup(
        &self,
        key: &ServiceKey,
        netns_cookie: Option<u64>,
    ) -> Result<Option<Lookup>, MapError> {
        Maps::lookup(self, key, netns_cookie)
    }
    fn sockets(&self) -> Result<Vec<(SocketKey, SocketEntry)>, MapError> {
        Maps::sockets(self)
    }
    fn outside(&self) -> Result<Vec<Outside>, MapError> {
        Maps::outside_both_ways(self)
    }
    fn totals(&self) -> Result<Totals, MapError> {
        Maps::totals(self)
    }
    fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapError> {
        Maps::drops(self)
    }
    fn traffic(&self) -> Result<BTreeMap<Address, PodTraffic>, MapError> {
        Maps::traffic(self)
    }
}
