//! Carries rows from another version's maps into ours. Ids stay as they are, so that rows of different maps go on naming
//! each other, and a row that we have already is never replaced: whatever was carried before may be carried again.

mod connections;
mod sockets;

use std::io;
use std::path::Path;

use agent_ebpf::abi::pods::PodTraffic;
use agent_ebpf::abi::{
    BackendId, BackendStats, LinkIndex, Member, SourceRange, TCP, maps as names,
};
use aya::Pod;
use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError as AyaError, PerCpuHashMap, PerCpuValues,
};
use tracing::warn;

use super::maps::{MapError, Maps, SumUp as _, errno, open, read};
use super::policy::{PolicyMapError, PolicyMaps, PolicyTables as _};
use super::v1;
use super::versions::Carried;

/// `BPF_NOEXIST`
const IF_ABSENT: u64 = 1;

/// Adds connections to those that a backend has had, in the kernel, where programs count at the same time. Makes the row.
pub(super) type CountOpened<'a> = &'a mut dyn FnMut(BackendId, u32) -> Result<(), MapError>;

type Table<K, V> = HashMap<MapData, K, V>;

/// The service tables. A crash in between leaves a part, to which the next start adds the rest.
pub(super) fn tables(from: &Path, carried: Carried, maps: &mut Maps) -> Result<(), MapError> {
    let Maps {
        services,
        slots,
        backends,
        maglev,
        ..
    } = maps;
    match carried {
        Carried::Nothing => Ok(()),
        // In the order in which a table is written: what names a row comes after it.
        Carried::V1 => {
            copy(from, names::BACKENDS, hash, backends, v1::backend)?;
            copy(from, names::BACKEND_TABLE, hash, slots, v1::slot)?;
            copy(from, names::SERVICES, hash, services, v1::service)
        }
        Carried::Same => {
            copy(from, names::BACKENDS, hash, backends, |k, v| (k, v))?;
            copy(from, names::BACKEND_TABLE, hash, slots, |k, v| (k, v))?;
            copy(from, names::MAGLEV, hash, maglev, |k, v| (k, v))?;
            source_ranges(from, &mut maps.source_ranges)?;
            let services = &mut maps.services;
            copy(from, names::SERVICES, hash, services, |k, v| (k, v))?;
            maps.mark_ports()?;
            carry_policy(from, &mut maps.policy)?;
            traffic(from, maps)
        }
    }
}

/// Who is let in to which service. A row that is there says the same.
fn source_ranges(
    from: &Path,
    ours: &mut LpmTrie<MapData, SourceRange, Member>,
) -> Result<(), MapError> {
    const MAP: &str = names::SOURCE_RANGES;
    if !from.join(MAP).exists() {
        return Ok(());
    }
    let old: LpmTrie<MapData, SourceRange, Member> = open(from, MAP, Map::LpmTrie)?;
    for row in old.iter() {
        let (key, member) = row.map_err(|source| read(MAP, source))?;
        let put = ours.insert(&key, member, 0).map_err(errno);
        put.map_err(|source| MapError::Carry { map: MAP, source })?;
    }
    Ok(())
}

/// What network policies allow, and the conversations that they have allowed. Ours are new, and no program reads them yet.
fn carry_policy(from: &Path, ours: &mut PolicyMaps) -> Result<(), MapError> {
    // Programs without policies made none of these maps.
    if !from.join(names::POLICY_PODS).exists() || ours.generation()? > 0 {
        return Ok(());
    }
    let old = PolicyMaps::open(from)?;
    let failed = |error: PolicyMapError| MapError::Carry {
        map: names::POLICY_PODS,
        source: io::Error::other(error),
    };
    for op in old.dump()?.writes() {
        ours.apply(&op).map_err(failed)?;
    }
    let flows: Vec<_> = old.flows.iter().filter_map(Result::ok).collect();
    ours.remember(&flows);
    Ok(())
}

/// What passed pods' links. Where a pod is, and how it is reached, the agent says anew.
fn traffic(from: &Path, maps: &mut Maps) -> Result<(), MapError> {
    const MAP: &str = names::POD_TRAFFIC;
    if !from.join(MAP).exists() {
        return Ok(());
    }
    let old: PerCpuHashMap<MapData, LinkIndex, PodTraffic> = open(from, MAP, Map::PerCpuHashMap)?;
    for row in old.iter() {
        let (link, cpus) = row.map_err(|source| read(MAP, source))?;
        maps.start_traffic(link, cpus.iter().copied().sum_up())?;
    }
    Ok(())
}

/// What is known of open sockets and of clients with affinity. To be called while the programs that end the rows of
/// sockets run for both versions; then no row stays behind in ours.
pub(super) fn clients(
    from: &Path,
    carried: Carried,
    maps: &mut Maps,
    opened: CountOpened<'_>,
) -> Result<(), MapError> {
    match carried {
        Carried::Nothing => Ok(()),
        Carried::V1 => {
            let backends = other::<BackendId, v1::BackendEntry>(from, names::BACKENDS, hash)?;
            let protocol = |id: u32| {
                let row = backends.as_ref()?.get(&BackendId(id), 0).ok()?;
                Some(row.protocol)
            };
            stats(from, maps, v1::stats)?;
            let convert = |entry: v1::SocketEntry| {
                v1::socket(entry, protocol(entry.service.backend).unwrap_or(TCP))
            };
            sockets::carry(from, maps, convert, opened)?;
            copy(
                from,
                names::SOCK_REVERSE,
                lru,
                &mut maps.reverse,
                v1::reverse,
            )?;
            copy(from, names::AFFINITY, lru, &mut maps.affinity, v1::affinity)
        }
        Carried::Same => {
            stats(from, maps, |stats| stats)?;
            sockets::carry(from, maps, |entry| entry, opened)?;
            copy(from, names::SOCK_REVERSE, lru, &mut maps.reverse, |k, v| {
                (k, v)
            })?;
            let addresses = &mut maps.node_addresses;
            copy(from, names::NODE_ADDRESSES, hash, addresses, |k, v| (k, v))?;
            translating(from, maps)?;
            copy(from, names::FORMERS, hash, &mut maps.formers, |k, v| (k, v))?;
            copy(from, names::UPLINKS, hash, &mut maps.uplinks, |k, v| (k, v))?;
            connections::carry(from, &mut maps.connections)?;
            copy(from, names::AFFINITY, lru, &mut maps.affinity, |k, v| {
                (k, v)
            })
        }
    }
}

/// At which pods' links packets are translated: else connections through them would break off.
fn translating(from: &Path, maps: &mut Maps) -> Result<(), MapError> {
    const MAP: &str = names::TRANSLATING;
    if !from.join(MAP).exists() {
        return Ok(());
    }
    let old: Array<MapData, u32> = open(from, MAP, Map::Array)?;
    for (link, seen) in (0..).zip(old.iter()) {
        if seen.map_err(|source| read(MAP, source))? != 0 {
            let put = maps.translating.set(link, 1, 0).map_err(errno);
            put.map_err(|source| MapError::Carry { map: MAP, source })?;
        }
    }
    Ok(())
}

/// The counters of backends, as if nothing were open: [`sockets::carry`] adds what is.
fn stats<V: Pod>(
    from: &Path,
    maps: &mut Maps,
    convert: impl Fn(V) -> BackendStats,
) -> Result<(), MapError> {
    if !from.join(names::STATS).exists() {
        return Ok(());
    }
    let old: PerCpuHashMap<MapData, BackendId, V> = open(from, names::STATS, Map::PerCpuHashMap)?;
    for row in old.iter() {
        let (id, cpus) = row.map_err(|source| read(names::STATS, source))?;
        // Its row would outlive it.
        if maps.backend(id)?.is_none() {
            continue;
        }
        let mut total: BackendStats = cpus.iter().copied().map(&convert).sum_up();
        total.opens = total.closes;
        let mut row = vec![BackendStats::ZERO; cpus.len()];
        row[0] = total;
        put_stats(maps, id, row)?;
    }
    Ok(())
}

fn put_stats(maps: &mut Maps, id: BackendId, cpus: Vec<BackendStats>) -> Result<(), MapError> {
    let failed = |source| MapError::Carry {
        map: names::STATS,
        source,
    };
    let cpus = PerCpuValues::try_from(cpus).map_err(failed)?;
    let put = maps.stats.insert(id, cpus, IF_ABSENT);
    match put.map_err(errno) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Copies every row that we do not have; what finds our map full is lost.
fn copy<A: Pod, B: Pod, K: Pod, V: Pod>(
    from: &Path,
    map: &'static str,
    kind: fn(MapData) -> Map,
    ours: &mut Table<K, V>,
    convert: impl Fn(A, B) -> (K, V),
) -> Result<(), MapError> {
    let Some(old) = other::<A, B>(from, map, kind)? else {
        return Ok(());
    };
    let mut full = 0;
    for pair in old.iter() {
        let (key, value) = match pair {
            Ok((key, value)) => convert(key, value),
            // It went between the look at its key and that at its value.
            Err(AyaError::KeyNotFound) => continue,
            Err(source) => return Err(read(map, source)),
        };
        if matches!(put(map, ours, &key, &value)?, Put::Full) {
            full += 1;
        }
    }
    if full > 0 {
        warn!(
            map,
            rows = full,
            "rows of another version find the map full"
        );
    }
    Ok(())
}

/// What became of a row.
enum Put {
    Done,
    There,
    Full,
}

fn put<K: Pod, V: Pod>(
    map: &'static str,
    ours: &mut Table<K, V>,
    key: &K,
    value: &V,
) -> Result<Put, MapError> {
    let Err(error) = ours.insert(key, value, IF_ABSENT).map_err(errno) else {
        return Ok(Put::Done);
    };
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(Put::There),
        Some(libc::E2BIG) => Ok(Put::Full),
        _ => Err(MapError::Carry { map, source: error }),
    }
}

/// The map of another version; `None` where its directory has lost it.
fn other<K: Pod, V: Pod>(
    from: &Path,
    name: &str,
    kind: fn(MapData) -> Map,
) -> Result<Option<Table<K, V>>, MapError> {
    if !from.join(name).exists() {
        return Ok(None);
    }
    open(from, name, kind).map(Some)
}

fn row<T>(map: &'static str, result: Result<T, AyaError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(row) => Ok(Some(row)),
        Err(AyaError::KeyNotFound) => Ok(None),
        Err(source) => Err(read(map, source)),
    }
}

fn hash(data: MapData) -> Map {
    Map::HashMap(data)
}

fn lru(data: MapData) -> Map {
    Map::LruHashMap(data)
}
