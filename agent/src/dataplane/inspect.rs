//! The maps as a person looks at them: how full each is, and its rows, decoded and raw.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use agent_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, BackendEntry, BackendId, BackendStats, FLAG_LOCAL_ONLY,
    Port, ReverseEntry, ReverseKey, SHARE_ONE, ServiceKey, ServiceRow, ServiceStats, SlotKey,
    SocketEntry, SocketKey, TCP, UDP, maps as names,
};
use aya::Pod;
use aya::maps::{
    HashMap, IterableMap as _, MapData, MapError as AyaError, MapInfo, MapType, PerCpuHashMap,
};
use aya::util::nr_cpus;

use super::maps::{MapError, Maps, SumUp, read};
use super::sys::count_rows;

/// One map and how full it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSummary {
    pub name: &'static str,
    /// The kernel's map type, `Hash`, `LruHash` …
    pub kind: String,
    pub entries: u32,
    pub max_entries: u32,
    pub pin: PathBuf,
}

/// One row of a map. Per-CPU values are summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRow {
    pub map: &'static str,
    pub key: String,
    pub value: String,
    pub raw_key: Vec<u8>,
    pub raw_value: Vec<u8>,
}

impl Maps {
    /// Every map with its fill.
    pub fn summaries(&self) -> Result<Vec<MapSummary>, MapError> {
        names::ALL
            .into_iter()
            .map(|name| self.summary(name))
            .collect()
    }

    fn summary(&self, name: &'static str) -> Result<MapSummary, MapError> {
        let entries = match name {
            names::SERVICES => count(self.services.map()),
            names::BACKEND_TABLE => count(self.slots.map()),
            names::BACKENDS => count(self.backends.map()),
            names::SOCKETS => count(self.sockets.map()),
            names::SOCK_REVERSE => count(self.reverse.map()),
            names::AFFINITY => count(self.affinity.map()),
            names::STATS => count(self.stats.map()),
            names::SERVICE_STATS => count(self.service_stats.map()),
            names::CONFIG | names::EVENTS_LOST => Ok(1),
            // Records pass through it; none stays.
            names::EVENTS => Ok(0),
            other => {
                return Err(MapError::Unknown {
                    name: other.to_owned(),
                });
            }
        };
        let pin = self.dir.join(name);
        let info = MapInfo::from_pin(&pin).map_err(|source| MapError::Open {
            path: pin.clone(),
            source,
        })?;
        let kind = info.map_type().map_err(|source| read(name, source))?;
        Ok(MapSummary {
            name,
            kind: format!("{kind:?}"),
            entries: entries.map_err(|source| read(name, source))?,
            max_entries: info.max_entries(),
            pin,
        })
    }

    /// Every row of the map called `name`, in the map's own order.
    pub fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError> {
        match name {
            names::SERVICES => table(names::SERVICES, &self.services),
            names::BACKEND_TABLE => table(names::BACKEND_TABLE, &self.slots),
            names::BACKENDS => table(names::BACKENDS, &self.backends),
            names::SOCK_REVERSE => table(names::SOCK_REVERSE, &self.reverse),
            names::AFFINITY => table(names::AFFINITY, &self.affinity),
            names::STATS => per_cpu(names::STATS, &self.stats),
            names::SERVICE_STATS => per_cpu(names::SERVICE_STATS, &self.service_stats),
            names::SOCKETS => table(names::SOCKETS, &self.sockets),
            names::CONFIG => {
                let config = self.config.get(&0, 0);
                let config = config.map_err(|source| read(names::CONFIG, source))?;
                let text = format!("one in {} sockets is recorded", config.sample_every);
                Ok(vec![only_row(names::CONFIG, text, &config)])
            }
            names::EVENTS_LOST => {
                let lost = self.events_lost()?;
                let text = format!("{lost} records found the ring full");
                Ok(vec![only_row(names::EVENTS_LOST, text, &lost)])
            }
            names::EVENTS => Ok(Vec::new()),
            other => Err(MapError::Unknown {
                name: other.to_owned(),
            }),
        }
    }
}

/// How many rows a hash map has.
fn count(map: &MapData) -> Result<u32, AyaError> {
    let info = map.info()?;
    let key_size = info.key_size() as usize;
    let value_size = info.value_size() as usize;
    let per_cpu = matches!(
        info.map_type()?,
        MapType::PerCpuHash | MapType::LruPerCpuHash
    );
    let value_size = if per_cpu {
        let cpus = nr_cpus().map_err(|(_, error)| AyaError::IoError(error))?;
        value_size.next_multiple_of(8) * cpus
    } else {
        value_size
    };
    count_rows(map.fd().as_fd(), key_size, value_size).map_err(AyaError::IoError)
}

fn table<K: Pod + Show, V: Pod + Show>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
) -> Result<Vec<MapRow>, MapError> {
    let rows = map.iter().map(|pair| pair.map(|(k, v)| row(name, &k, &v)));
    rows.collect::<Result<_, _>>()
        .map_err(|source| read(name, source))
}

fn per_cpu<K, V>(
    name: &'static str,
    map: &PerCpuHashMap<MapData, K, V>,
) -> Result<Vec<MapRow>, MapError>
where
    K: Pod + Show,
    V: Pod + Show + super::maps::Sum,
{
    let rows = map
        .iter()
        .map(|pair| pair.map(|(k, cpus)| row(name, &k, &cpus.iter().copied().sum_up())));
    rows.collect::<Result<_, _>>()
        .map_err(|source| read(name, source))
}

pub(super) fn present<T>(
    name: &'static str,
    result: Result<T, AyaError>,
) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(AyaError::KeyNotFound) => Ok(None),
        Err(source) => Err(read(name, source)),
    }
}

pub(super) fn row<K: Pod + Show, V: Pod + Show>(map: &'static str, key: &K, value: &V) -> MapRow {
    MapRow {
        map,
        key: key.show(),
        value: value.show(),
        raw_key: bytes(key),
        raw_value: bytes(value),
    }
}

/// The only row of an array.
fn only_row<V: Pod>(map: &'static str, value: String, raw: &V) -> MapRow {
    MapRow {
        map,
        key: "0".to_owned(),
        value,
        raw_key: bytes(&0_u32),
        raw_value: bytes(raw),
    }
}

fn bytes<T: Pod>(value: &T) -> Vec<u8> {
    // SAFETY: the ABI's `Pod` types have no padding, so every byte is initialized, and the slice ends with the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
        .to_vec()
}

/// Text for people.
pub(super) trait Show {
    fn show(&self) -> String;
}

fn endpoint(address: Address, port: Port) -> String {
    SocketAddr::from((address.to_ip(), u16::from_be_bytes(port))).to_string()
}

fn protocol(number: u8) -> String {
    match number {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        other => format!("protocol {other}"),
    }
}

impl Show for ServiceKey {
    fn show(&self) -> String {
        format!(
            "{} {}",
            endpoint(self.address, self.port),
            protocol(self.protocol)
        )
    }
}

impl Show for ServiceRow {
    fn show(&self) -> String {
        let e = &self.entry;
        let share = f64::from(e.local_share) / f64::from(SHARE_ONE);
        let mut text = format!(
            "service {} generation {}: {} local, {} zone, {} ready, {} terminating, local share {share:.3}",
            e.service_id, e.generation, e.local, e.zone, e.ready, e.terminating
        );
        if e.affinity_timeout_s > 0 {
            text += &format!(", affinity {} s", e.affinity_timeout_s);
        }
        if e.flags & FLAG_LOCAL_ONLY != 0 {
            text += ", local only";
        }
        text
    }
}

impl Show for SlotKey {
    fn show(&self) -> String {
        format!(
            "service {} generation {} slot {}",
            self.service_id, self.generation, self.slot
        )
    }
}

impl Show for BackendId {
    fn show(&self) -> String {
        format!("backend {}", self.0)
    }
}

impl Show for u32 {
    fn show(&self) -> String {
        format!("service {self}")
    }
}

impl Show for BackendEntry {
    fn show(&self) -> String {
        format!(
            "{} {}",
            endpoint(self.address, self.port),
            protocol(self.protocol)
        )
    }
}

impl Show for SocketKey {
    fn show(&self) -> String {
        format!("socket {}", self.0)
    }
}

impl Show for SocketEntry {
    fn show(&self) -> String {
        let backend = endpoint(self.backend_address, self.backend_port);
        format!("to {backend}, {}", self.service.show())
    }
}

impl Show for ReverseKey {
    fn show(&self) -> String {
        format!(
            "socket {} to {}",
            self.cookie.0,
            endpoint(self.address, self.port)
        )
    }
}

impl Show for ReverseEntry {
    fn show(&self) -> String {
        let dialled = endpoint(self.address, self.port);
        format!(
            "dialled {dialled}, service {}, backend {}",
            self.service_id, self.backend.0
        )
    }
}

impl Show for AffinityKey {
    fn show(&self) -> String {
        format!(
            "service {} client netns {}",
            self.service_id, self.netns_cookie
        )
    }
}

impl Show for AffinityEntry {
    fn show(&self) -> String {
        let seconds = self.last_use_ns / 1_000_000_000;
        format!(
            "backend {}, last used {seconds} s after boot",
            self.backend.0
        )
    }
}

impl Show for BackendStats {
    fn show(&self) -> String {
        format!(
            "{} opens, {} active, {} failed, {} bytes sent, {} received",
            self.opens,
            self.opens.saturating_sub(self.closes),
            self.failures,
            self.bytes_sent,
            self.bytes_received,
        )
    }
}

impl Show for ServiceStats {
    fn show(&self) -> String {
        format!(
            "{} refused for want of a backend, {} holes",
            self.no_backend, self.hole
        )
    }
}
