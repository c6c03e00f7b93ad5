//! The pinned maps, typed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::pods::{PodTarget, PodTraffic};
use agent_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, BackendEntry, BackendId, BackendStats, Connection,
    DropReason, FlowKey, FragmentKey, FragmentPorts, LinkIndex, MaglevChunk, MaglevKey, Member,
    PodEntry, PodRanges, ProgramConfig, ReverseEntry, ReverseKey, ServiceEntry, ServiceKey,
    ServiceRow, ServiceStats, SlotKey, SocketEntry, SocketKey, SourceRange, UplinkEntry, XdpLink,
    maps as names,
};
use aya::Pod;
use aya::maps::{
    Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError as AyaError, PerCpuArray,
    PerCpuHashMap,
};

use ipnet::IpNet;

use super::policy::PolicyMaps;
use super::port_bits;
use super::sys::each_pair;
use super::{MapOp, PinnedState, ServiceMaps, SourcePrefix};

/// Why a map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("cannot open the pinned map {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: AyaError,
    },
    #[error("map {map} is full at {max_entries} entries, so {op:?} was not written")]
    Full {
        map: &'static str,
        max_entries: u32,
        op: MapOp,
    },
    #[error("cannot perform {op:?} on map {map}")]
    Write {
        map: &'static str,
        op: MapOp,
        #[source]
        source: io::Error,
    },
    #[error("cannot read map {map}")]
    Read {
        map: &'static str,
        #[source]
        source: AyaError,
    },
    #[error("cannot carry rows of another version into map {map}")]
    Carry {
        map: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot write map {}", names::CONFIG)]
    Config {
        #[source]
        source: AyaError,
    },
    #[error(
        "cannot put {address} into map {}, or take it out",
        names::NODE_ADDRESSES
    )]
    NodeAddress {
        address: Address,
        #[source]
        source: io::Error,
    },
    #[error("cannot write map {map}")]
    Put {
        map: &'static str,
        #[source]
        source: AyaError,
    },
    #[error("there is no map {name}; there are {}", names::ALL.join(", "))]
    Unknown { name: String },
}

type Table<K, V> = HashMap<MapData, K, V>;

/// Handles on the pinned maps. Any number may be open at once; only the proxy's writes.
pub struct Maps {
    pub(super) dir: PathBuf,
    pub(super) services: Table<ServiceKey, ServiceRow>,
    pub(super) slots: Table<SlotKey, BackendId>,
    pub(super) backends: Table<BackendId, BackendEntry>,
    pub(super) sockets: Table<SocketKey, SocketEntry>,
    pub(super) reverse: Table<ReverseKey, ReverseEntry>,
    pub(super) affinity: Table<AffinityKey, AffinityEntry>,
    pub(super) stats: PerCpuHashMap<MapData, BackendId, BackendStats>,
    pub(super) outside_opens: PerCpuHashMap<MapData, BackendId, u64>,
    pub(super) service_stats: PerCpuHashMap<MapData, u32, ServiceStats>,
    pub(super) config: Array<MapData, ProgramConfig>,
    pub(super) events_lost: PerCpuArray<MapData, u64>,
    pub(super) node_addresses: Table<Address, Member>,
    pub(super) host_ports: Array<MapData, u64>,
    pub(super) service_ports: Array<MapData, u64>,
    pub(super) translating: Array<MapData, u32>,
    pub(super) pod_ranges: Array<MapData, PodRanges>,
    pub(super) maglev: Table<MaglevKey, MaglevChunk>,
    pub(super) source_ranges: LpmTrie<MapData, SourceRange, Member>,
    pub(super) pods: Table<LinkIndex, PodEntry>,
    pub(super) pod_addresses: Table<Address, PodTarget>,
    pub(super) pod_traffic: PerCpuHashMap<MapData, LinkIndex, PodTraffic>,
    pub(super) drops: PerCpuArray<MapData, u64>,
    pub(super) uplinks: Table<LinkIndex, UplinkEntry>,
    pub(super) xdp_links: Table<LinkIndex, XdpLink>,
    pub(super) connections: Table<FlowKey, Connection>,
    pub(super) fragments: Table<FragmentKey, FragmentPorts>,
    pub(super) exempt: LpmTrie<MapData, Address, Member>,
    pub(super) near: LpmTrie<MapData, Address, Member>,
    pub(super) formers: Table<Address, Address>,
    pub(super) policy: PolicyMaps,
}

impl Maps {
    /// Opens the maps pinned in `dir`, which [`super::Dataplane::dir`] names.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            dir: dir.to_owned(),
            services: open(dir, names::SERVICES, Map::HashMap)?,
            slots: open(dir, names::BACKEND_TABLE, Map::HashMap)?,
            backends: open(dir, names::BACKENDS, Map::HashMap)?,
            sockets: open(dir, names::SOCKETS, Map::HashMap)?,
            reverse: open(dir, names::SOCK_REVERSE, Map::LruHashMap)?,
            affinity: open(dir, names::AFFINITY, Map::LruHashMap)?,
            stats: open(dir, names::STATS, Map::PerCpuHashMap)?,
            outside_opens: open(dir, names::OUTSIDE_OPENS, Map::PerCpuHashMap)?,
            service_stats: open(dir, names::SERVICE_STATS, Map::PerCpuHashMap)?,
            config: open(dir, names::CONFIG, Map::Array)?,
            events_lost: open(dir, names::EVENTS_LOST, Map::PerCpuArray)?,
            node_addresses: open(dir, names::NODE_ADDRESSES, Map::HashMap)?,
            host_ports: open(dir, names::HOST_PORTS, Map::Array)?,
            service_ports: open(dir, names::SERVICE_PORTS, Map::Array)?,
            translating: open(dir, names::TRANSLATING, Map::Array)?,
            pod_ranges: open(dir, names::POD_RANGES, Map::Array)?,
            maglev: open(dir, names::MAGLEV, Map::HashMap)?,
            source_ranges: open(dir, names::SOURCE_RANGES, Map::LpmTrie)?,
            pods: open(dir, names::PODS, Map::HashMap)?,
            pod_addresses: open(dir, names::POD_ADDRESSES, Map::HashMap)?,
            pod_traffic: open(dir, names::POD_TRAFFIC, Map::PerCpuHashMap)?,
            drops: open(dir, names::DROPS, Map::PerCpuArray)?,
            uplinks: open(dir, names::UPLINKS, Map::HashMap)?,
            xdp_links: open(dir, names::XDP_LINKS, Map::HashMap)?,
            connections: open(dir, names::CONNECTIONS, Map::LruHashMap)?,
            fragments: open(dir, names::FRAGMENTS, Map::LruHashMap)?,
            exempt: open(dir, names::EXEMPT, Map::LpmTrie)?,
            near: open(dir, names::NEAR, Map::LpmTrie)?,
            formers: open(dir, names::FORMERS, Map::HashMap)?,
            policy: PolicyMaps::open(dir)?,
        })
    }

    /// One service address; `None` when it is not in the tables.
    pub fn service(&self, key: &ServiceKey) -> Result<Option<ServiceEntry>, MapError> {
        match self.services.get(key, 0) {
            Ok(row) => Ok(Some(row.entry)),
            Err(AyaError::KeyNotFound) => Ok(None),
            Err(source) => Err(read(names::SERVICES, source)),
        }
    }

    /// One backend; `None` when it is not in the tables.
    pub fn backend(&self, id: BackendId) -> Result<Option<BackendEntry>, MapError> {
        match self.backends.get(&id, 0) {
            Ok(row) => Ok(Some(row)),
            Err(AyaError::KeyNotFound) => Ok(None),
            Err(source) => Err(read(names::BACKENDS, source)),
        }
    }

    /// What one backend's connections came to, over all CPUs; zeros when none was ever opened.
    pub fn backend_stats(&self, id: BackendId) -> Result<BackendStats, MapError> {
        or_default(
            names::STATS,
            self.stats
                .get(&id, 0)
                .map(|cpus| cpus.iter().copied().sum_up()),
        )
    }

    /// One service's refusals, over all CPUs; zeros when there was none.
    pub fn service_stats(&self, service_id: u32) -> Result<ServiceStats, MapError> {
        let cpus = self.service_stats.get(&service_id, 0);
        or_default(
            names::SERVICE_STATS,
            cpus.map(|cpus| cpus.iter().copied().sum_up()),
        )
    }

    /// Records one in `every` sockets in `EVENTS`; 0 for none.
    pub fn set_sampling(&mut self, every: u32) -> Result<(), MapError> {
        self.configure(|config| config.sample_every = every)
    }

    /// The first and the last node port; both 0 for none.
    pub fn set_node_ports(&mut self, first: u16, last: u16) -> Result<(), MapError> {
        self.configure(|config| config.node_ports = [first, last])
    }

    /// Changes the one row. Two at once would undo each other: the node ports are set once, before anybody may watch.
    fn configure(&mut self, change: impl FnOnce(&mut ProgramConfig)) -> Result<(), MapError> {
        let row = self.config.get(&0, 0);
        let mut config = row.map_err(|source| MapError::Config { source })?;
        change(&mut config);
        self.config
            .set(0, config, 0)
            .map_err(|source| MapError::Config { source })
    }

    /// Has node ports answered at these addresses and no others. Returns whether that is a change.
    pub fn set_node_addresses(&mut self, wanted: &BTreeSet<Address>) -> Result<bool, MapError> {
        let present: Result<BTreeSet<Address>, AyaError> = self.node_addresses.keys().collect();
        let present = present.map_err(|source| read(names::NODE_ADDRESSES, source))?;
        for address in wanted.difference(&present) {
            let put = self.node_addresses.insert(address, Member::default(), 0);
            put.map_err(|error| node_address(*address, error))?;
        }
        for address in present.difference(wanted) {
            let removed = self.node_addresses.remove(address);
            removed.map_err(|error| node_address(*address, error))?;
        }
        Ok(present != *wanted)
    }

    /// Says which node had which load balancer's address before this one, by that node's address. Of the others in `kept`
    /// nothing new is known.
    pub fn set_formers(
        &mut self,
        known: &BTreeMap<Address, Address>,
        kept: &BTreeSet<Address>,
    ) -> Result<(), MapError> {
        const MAP: &str = names::FORMERS;
        let rows: Result<BTreeMap<Address, Address>, AyaError> = self.formers.iter().collect();
        let rows = rows.map_err(|source| read(MAP, source))?;
        for (address, node) in known
            .iter()
            .filter(|(address, node)| rows.get(*address) != Some(*node))
        {
            let put = self.formers.insert(address, node, 0);
            put.map_err(|source| MapError::Put { map: MAP, source })?;
        }
        for address in rows.keys().filter(|address| !kept.contains(*address)) {
            // Only this removes rows, so one that fails is tried again.
            let _ = self.formers.remove(address);
        }
        Ok(())
    }

    /// Says from which ranges this node's pods have their addresses: nobody else sends from them. The first of each family
    /// counts.
    pub fn set_pod_ranges(&mut self, ranges: &[IpNet]) -> Result<(), MapError> {
        let mut row = PodRanges::default();
        for range in ranges.iter().rev() {
            match range.trunc() {
                IpNet::V4(range) => {
                    row.ipv4 = u32::from(range.addr()).to_be();
                    row.ipv4_mask = u32::from(range.netmask()).to_be();
                }
                IpNet::V6(range) => {
                    row.ipv6 = Address::from(IpAddr::from(range.addr())).words();
                    row.ipv6_mask = Address::from(IpAddr::from(range.netmask())).words();
                }
            }
        }
        let put = self.pod_ranges.set(0, row, 0);
        put.map_err(|source| MapError::Put {
            map: names::POD_RANGES,
            source,
        })
    }

    /// How many records have found `EVENTS` full.
    pub fn events_lost(&self) -> Result<u64, MapError> {
        let cpus = self.events_lost.get(&0, 0);
        let cpus = cpus.map_err(|source| read(names::EVENTS_LOST, source))?;
        Ok(cpus.iter().sum())
    }

    /// How many packets were dropped for which reason, over all CPUs.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapError> {
        let of = |reason: DropReason| {
            let cpus = self.drops.get(&(reason as u32), 0);
            let cpus = cpus.map_err(|source| read(names::DROPS, source))?;
            Ok((reason, cpus.iter().sum()))
        };
        DropReason::ALL.into_iter().map(of).collect()
    }

    /// The links at which packets are translated.
    pub(super) fn uplinks(&self) -> Result<BTreeMap<LinkIndex, UplinkEntry>, MapError> {
        rows(names::UPLINKS, &self.uplinks, |own| own)
    }

    /// Says which addresses the node has on a link to other machines.
    pub(super) fn put_uplink(&mut self, link: LinkIndex, own: UplinkEntry) -> Result<(), MapError> {
        // What is there is not written anew: a program may be reading it.
        if self
            .uplinks
            .get(&link, 0)
            .is_ok_and(|present| present == own)
        {
            return Ok(());
        }
        self.uplinks
            .insert(link, own, 0)
            .map_err(|source| MapError::Put {
                map: names::UPLINKS,
                source,
            })
    }

    pub(super) fn remove_uplink(&mut self, link: LinkIndex) {
        // It may have gone meanwhile.
        let _ = self.uplinks.remove(&link);
    }

    /// The links at which packets are sent on before the network stack sees them.
    pub(super) fn xdp_links(&self) -> Result<BTreeMap<LinkIndex, XdpLink>, MapError> {
        rows(names::XDP_LINKS, &self.xdp_links, |link| link)
    }

    /// Lets the XDP program take packets from a link, and send them out by it.
    pub(super) fn put_xdp_link(&mut self, link: LinkIndex, row: XdpLink) -> Result<(), MapError> {
        if self
            .xdp_links
            .get(&link, 0)
            .is_ok_and(|present| present == row)
        {
            return Ok(());
        }
        self.xdp_links
            .insert(link, row, 0)
            .map_err(|source| MapError::Put {
                map: names::XDP_LINKS,
                source,
            })
    }

    pub(super) fn remove_xdp_link(&mut self, link: LinkIndex) {
        // It may have gone meanwhile.
        let _ = self.xdp_links.remove(&link);
    }

    /// Every client socket that was sent to a backend.
    pub fn sockets(&self) -> Result<Vec<(SocketKey, SocketEntry)>, MapError> {
        let mut rows = Vec::new();
        let map = self.sockets.map().fd().as_fd();
        let read = each_pair(map, |key, row| rows.push((key, row)));
        read.map_err(|error| self::read(names::SOCKETS, AyaError::IoError(error)))?;
        Ok(rows)
    }

    /// Removes a socket's row that no program will remove.
    pub(super) fn forget_socket(&mut self, socket: SocketKey) {
        // It may have gone meanwhile.
        let _ = self.sockets.remove(&socket);
    }

    /// Removes the counters of backends and services that `state` does not have: what stays behind when a row goes and its
    /// counters do not, because somebody died in between.
    pub fn forget_counters(&mut self, state: &PinnedState) -> Result<(), MapError> {
        let named: BTreeSet<u32> = state.services.values().map(|e| e.service_id).collect();
        let backends: Result<Vec<BackendId>, _> = self.stats.keys().collect();
        let services: Result<Vec<u32>, _> = self.service_stats.keys().collect();
        let backends = backends.map_err(|source| read(names::STATS, source))?;
        for id in backends
            .iter()
            .filter(|id| !state.backends.contains_key(id))
        {
            // Both: one that has gone meanwhile is as it should be.
            let _ = self.stats.remove(id);
            let _ = self.outside_opens.remove(id);
        }
        let services = services.map_err(|source| read(names::SERVICE_STATS, source))?;
        for id in services.iter().filter(|id| !named.contains(id)) {
            let _ = self.service_stats.remove(id);
        }
        Ok(())
    }

    /// All counters at once.
    pub fn totals(&self) -> Result<Totals, MapError> {
        let mut totals = Totals::default();
        for row in self.stats.iter() {
            let (id, cpus) = row.map_err(|source| read(names::STATS, source))?;
            totals.backends.insert(id, cpus.iter().copied().sum_up());
        }
        for row in self.service_stats.iter() {
            let (id, cpus) = row.map_err(|source| read(names::SERVICE_STATS, source))?;
            totals.services.insert(id, cpus.iter().copied().sum_up());
        }
        self.add_outside(&mut totals.backends)?;
        Ok(totals)
    }
}

/// Counters summed over all CPUs. A backend or service that nothing happened to has no row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub backends: BTreeMap<BackendId, BackendStats>,
    pub services: BTreeMap<u32, ServiceStats>,
}

impl ServiceMaps for Maps {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        match op {
            MapOp::PutBackend(id, entry) => put(names::BACKENDS, &mut self.backends, op, id, entry),
            MapOp::PutSlot(key, id) => put(names::BACKEND_TABLE, &mut self.slots, op, key, id),
            MapOp::PutMaglev(key, chunk) => put(names::MAGLEV, &mut self.maglev, op, key, &**chunk),
            MapOp::PutSourceRange(range) => {
                let ranges = &mut self.source_ranges;
                let result = ranges.insert(&range.key(), Member::default(), 0);
                result.map_err(|error| failed(names::SOURCE_RANGES, ranges.map(), op, error))
            }
            MapOp::PutService(key, entry) => {
                let (key, entry) = (*key, *entry);
                let row = ServiceRow { key, entry };
                self.mark_port(&key, &entry)?;
                put(names::SERVICES, &mut self.services, op, &key, &row)
            }
            MapOp::DeleteService(key) => {
                let row = self.services.get(key, 0);
                delete(names::SERVICES, op, self.services.remove(key))?;
                match row {
                    Ok(row) => {
                        if port_bits::is_one(&row.entry) {
                            self.unmark_host_port(key.port)?;
                        }
                        let stats = self.service_stats.remove(&row.entry.service_id);
                        delete(names::SERVICE_STATS, op, stats)
                    }
                    Err(AyaError::KeyNotFound) => Ok(()),
                    Err(source) => Err(read(names::SERVICES, source)),
                }
            }
            MapOp::DeleteSlot(key) => delete(names::BACKEND_TABLE, op, self.slots.remove(key)),
            MapOp::DeleteMaglev(key) => delete(names::MAGLEV, op, self.maglev.remove(key)),
            MapOp::DeleteSourceRange(range) => {
                let removed = self.source_ranges.remove(&range.key());
                delete(names::SOURCE_RANGES, op, removed)
            }
            MapOp::DeleteBackend(id, _) => {
                delete(names::BACKENDS, op, self.backends.remove(id))?;
                delete(names::STATS, op, self.stats.remove(id))?;
                delete(names::OUTSIDE_OPENS, op, self.outside_opens.remove(id))
            }
        }
    }

    fn dump(&self) -> Result<PinnedState, MapError> {
        let ranges = self.source_ranges.iter();
        let ranges = ranges.map(|row| row.map(|(key, _)| SourcePrefix::from(key)));
        let ranges: Result<BTreeSet<SourcePrefix>, AyaError> = ranges.collect();
        Ok(PinnedState {
            services: rows(names::SERVICES, &self.services, |row: ServiceRow| row.entry)?,
            slots: rows(names::BACKEND_TABLE, &self.slots, |id| id)?,
            backends: rows(names::BACKENDS, &self.backends, |entry| entry)?,
            maglev: rows(names::MAGLEV, &self.maglev, |chunk| chunk)?,
            source_ranges: ranges.map_err(|source| read(names::SOURCE_RANGES, source))?,
        })
    }
}

/// Counters that add up.
pub trait Sum: Default {
    #[must_use]
    fn add(self, other: Self) -> Self;
}

impl Sum for u64 {
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Sum for BackendStats {
    fn add(self, other: Self) -> Self {
        let mut handshake_buckets = self.handshake_buckets;
        for (sum, more) in handshake_buckets.iter_mut().zip(other.handshake_buckets) {
            // A CPU's counter may have gone round.
            *sum = sum.wrapping_add(more);
        }
        Self {
            opens: self.opens + other.opens,
            closes: self.closes + other.closes,
            failures: self.failures + other.failures,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_received: self.bytes_received + other.bytes_received,
            handshakes: self.handshakes + other.handshakes,
            handshake_ns: self.handshake_ns + other.handshake_ns,
            handshake_buckets,
        }
    }
}

impl Sum for ServiceStats {
    fn add(self, other: Self) -> Self {
        Self {
            no_backend: self.no_backend + other.no_backend,
            hole: self.hole + other.hole,
        }
    }
}

/// The sum over CPUs.
pub(super) trait SumUp<T> {
    fn sum_up(self) -> T;
}

impl<T: Sum, I: Iterator<Item = T>> SumUp<T> for I {
    fn sum_up(self) -> T {
        self.fold(T::default(), T::add)
    }
}

pub(super) fn open<T: TryFrom<Map, Error = AyaError>>(
    dir: &Path,
    name: &str,
    kind: fn(MapData) -> Map,
) -> Result<T, MapError> {
    let path = dir.join(name);
    let map = MapData::from_pin(&path).and_then(|data| T::try_from(kind(data)));
    map.map_err(|source| MapError::Open { path, source })
}

fn put<K: Pod, V: Pod>(
    map: &'static str,
    table: &mut Table<K, V>,
    op: &MapOp,
    key: &K,
    value: &V,
) -> Result<(), MapError> {
    table
        .insert(key, value, 0)
        .map_err(|error| failed(map, table.map(), op, error))
}

fn failed(map: &'static str, data: &MapData, op: &MapOp, error: AyaError) -> MapError {
    let (source, op) = (errno(error), op.clone());
    match source.raw_os_error() {
        // A full hash, and a full trie.
        Some(libc::E2BIG | libc::ENOSPC) => MapError::Full {
            map,
            max_entries: data.info().map_or(0, |info| info.max_entries()),
            op,
        },
        _ => MapError::Write { map, op, source },
    }
}

/// A row that is already gone is as it should be.
fn delete(map: &'static str, op: &MapOp, result: Result<(), AyaError>) -> Result<(), MapError> {
    match result.map_err(errno) {
        Err(source) if source.raw_os_error() != Some(libc::ENOENT) => Err(MapError::Write {
            map,
            op: op.clone(),
            source,
        }),
        _ => Ok(()),
    }
}

fn rows<K: Pod + Ord, V: Pod, T>(
    map: &'static str,
    table: &Table<K, V>,
    value: impl Fn(V) -> T,
) -> Result<BTreeMap<K, T>, MapError> {
    let pairs = table.iter().map(|row| row.map(|(k, v)| (k, value(v))));
    pairs
        .collect::<Result<_, _>>()
        .map_err(|source| read(map, source))
}

fn or_default<T: Default>(map: &'static str, result: Result<T, AyaError>) -> Result<T, MapError> {
    match result {
        Err(AyaError::KeyNotFound) => Ok(T::default()),
        other => other.map_err(|source| read(map, source)),
    }
}

fn node_address(address: Address, error: AyaError) -> MapError {
    let source = errno(error);
    MapError::NodeAddress { address, source }
}

pub(super) fn read(map: &'static str, source: AyaError) -> MapError {
    MapError::Read { map, source }
}

pub(super) fn errno(error: AyaError) -> io::Error {
    match error {
        AyaError::SyscallError(error) => error.io_error,
        AyaError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
