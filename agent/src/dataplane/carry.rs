//! Carries rows from another version's maps into ours. Ids stay as they are, so that rows of different maps go on naming
//! each other, and a row that we have already is never replaced: whatever was carried before may be carried again.

use std::collections::BTreeMap;
use std::path::Path;

use agent_ebpf::abi::{BackendId, BackendStats, SocketEntry, SocketKey, TCP, maps as names};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError as AyaError, PerCpuHashMap, PerCpuValues};
use tracing::warn;

use super::maps::{MapError, Maps, SumUp as _, errno, open, read};
use super::v1;
use super::versions::Carried;

/// `BPF_NOEXIST`
const IF_ABSENT: u64 = 1;
/// How often a socket's row is copied that changes meanwhile.
const COPIES: usize = 8;

type Table<K, V> = HashMap<MapData, K, V>;

/// The service tables. A crash in between leaves a part, to which the next start adds the rest.
pub(super) fn tables(from: &Path, carried: Carried, maps: &mut Maps) -> Result<(), MapError> {
    let Maps {
        services,
        slots,
        backends,
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
            copy(from, names::SERVICES, hash, services, |k, v| (k, v))
        }
    }
}

/// What is known of open sockets and of clients with affinity. To be called while the programs that end the rows of
/// sockets run for both versions; then no row stays behind in ours.
pub(super) fn clients(from: &Path, carried: Carried, maps: &mut Maps) -> Result<(), MapError> {
    match carried {
        Carried::Nothing => Ok(()),
        Carried::V1 => {
            let backends = other::<BackendId, v1::BackendEntry>(from, names::BACKENDS, hash)?;
            let protocol = |id: u32| {
                let row = backends.as_ref()?.get(&BackendId(id), 0).ok()?;
                Some(row.protocol)
            };
            stats(from, maps, v1::stats)?;
            sockets(from, maps, |entry: v1::SocketEntry| {
                v1::socket(entry, protocol(entry.service.backend).unwrap_or(TCP))
            })?;
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
            sockets(from, maps, |entry| entry)?;
            copy(from, names::SOCK_REVERSE, lru, &mut maps.reverse, |k, v| {
                (k, v)
            })?;
            copy(from, names::AFFINITY, lru, &mut maps.affinity, |k, v| {
                (k, v)
            })
        }
    }
}

/// The counters of backends, as if nothing were open: [`sockets`] adds what is.
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
        put_stats(maps, id, row, IF_ABSENT)?;
    }
    Ok(())
}

/// The rows of open sockets. Both versions' programs end rows meanwhile: one that changed while it was copied is copied
/// again, and one that went is taken back.
fn sockets<V: Pod + PartialEq>(
    from: &Path,
    maps: &mut Maps,
    convert: impl Fn(V) -> SocketEntry,
) -> Result<(), MapError> {
    const MAP: &str = names::SOCKETS;
    let Some(old) = other::<SocketKey, V>(from, MAP, hash)? else {
        return Ok(());
    };
    let mut opened: BTreeMap<BackendId, u64> = BTreeMap::new();
    let mut full = 0;
    for socket in old.keys() {
        let socket = socket.map_err(|source| read(MAP, source))?;
        let mut last = row(MAP, old.get(&socket, 0))?;
        for _ in 0..COPIES {
            let Some(copied) = last else { break };
            let entry = convert(copied);
            match put(MAP, &mut maps.sockets, &socket, &entry)? {
                Put::Done => {}
                Put::There => break,
                Put::Full => {
                    full += 1;
                    break;
                }
            }
            last = row(MAP, old.get(&socket, 0))?;
            // It may be that our own program has ended it, and counted that.
            if last == Some(copied) || maps.sockets.remove(&socket).is_err() {
                *opened.entry(entry.service.backend).or_default() += 1;
                break;
            }
        }
    }
    if full > 0 {
        warn!(
            sockets = full,
            "the map SOCKETS is full: of these, getpeername shows the backend from now on"
        );
    }
    for (backend, count) in opened {
        let cpus = row(names::STATS, maps.stats.get(&backend, 0))?;
        if let Some(cpus) = cpus {
            let mut cpus = cpus.to_vec();
            cpus[0].opens += count;
            put_stats(maps, backend, cpus, 0)?;
        }
    }
    Ok(())
}

fn put_stats(
    maps: &mut Maps,
    id: BackendId,
    cpus: Vec<BackendStats>,
    flags: u64,
) -> Result<(), MapError> {
    let failed = |source| MapError::Carry {
        map: names::STATS,
        source,
    };
    let cpus = PerCpuValues::try_from(cpus).map_err(failed)?;
    let put = maps.stats.insert(id, cpus, flags);
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
