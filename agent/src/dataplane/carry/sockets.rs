//! Carries the rows of open sockets from another version's map into ours, while the programs of both versions end such rows.
//!
//! The programs of one version run after those of the other, so a socket may end just when its row is copied: ours have
//! run and found no row, theirs have not yet ended theirs. Hence each copied row is looked at again when all programs that
//! ran then are done, and one whose end ours have missed is taken back.

use std::collections::{BTreeMap, HashMap as Rows};
use std::path::Path;
use std::thread;
use std::time::Duration;

use agent_ebpf::abi::{BackendId, SocketEntry, SocketKey, maps as names};
use aya::Pod;
use rustix::thread::{MembarrierCommand, membarrier};
use tracing::warn;

use super::{CountOpened, Put, Table, hash, other, put, row};
use crate::dataplane::maps::{MapError, Maps};

const MAP: &str = names::SOCKETS;

/// How often a socket's row is copied that changes each time.
const COPIES: usize = 8;

pub(super) fn carry<V: Pod>(
    from: &Path,
    maps: &mut Maps,
    convert: impl Fn(V) -> SocketEntry,
    opened: CountOpened<'_>,
) -> Result<(), MapError> {
    let Some(old) = other::<SocketKey, V>(from, MAP, hash)? else {
        return Ok(());
    };
    let ours = &mut maps.sockets;
    let theirs = |socket: &SocketKey| -> Result<_, MapError> {
        Ok(row(MAP, old.get(socket, 0))?.map(&convert))
    };
    let mut waiting = Vec::new();
    for socket in old.keys() {
        let socket = socket.map_err(|source| super::read(MAP, source))?;
        if row(MAP, ours.get(&socket, 0))?.is_none() {
            waiting.push(socket);
        }
    }
    // The sockets that count for a backend from here on.
    let mut counting: Rows<SocketKey, BackendId> = Rows::new();
    let mut full = 0;
    for _ in 0..COPIES {
        let mut copied = Vec::new();
        for socket in waiting.drain(..) {
            let Some(entry) = theirs(&socket)? else {
                continue;
            };
            let backend = entry.service.backend;
            // Its end is counted only where there is a row to count it in.
            opened(backend, 0)?;
            match put(MAP, ours, &socket, &entry)? {
                Put::Done => copied.push(socket),
                Put::There => continue,
                Put::Full => {
                    full += 1;
                    continue;
                }
            }
            if entry.counts() {
                counting.insert(socket, backend);
            }
        }
        if copied.is_empty() {
            break;
        }
        wait_for_running_programs();
        for socket in copied {
            let entry = theirs(&socket)?;
            let taken = take_back(ours, &socket, entry.as_ref())?;
            if taken == Taken::Uncounted {
                counting.remove(&socket);
            }
            if taken != Taken::Not {
                waiting.push(socket);
            }
        }
    }
    if full > 0 {
        warn!(
            sockets = full,
            "the map SOCKETS is full: of these, getpeername shows the backend from now on"
        );
    }
    let mut by_backend: BTreeMap<BackendId, u32> = BTreeMap::new();
    for backend in counting.into_values() {
        *by_backend.entry(backend).or_default() += 1;
    }
    for (backend, count) in by_backend {
        opened(backend, count)?;
    }
    Ok(())
}

/// Whether our row of a socket was taken back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Not,
    /// Before our programs counted an end of it.
    Uncounted,
    Counted,
}

/// Takes our row of a socket back when our programs have missed an end of it that `theirs` shows.
fn take_back(
    ours: &mut Table<SocketKey, SocketEntry>,
    socket: &SocketKey,
    theirs: Option<&SocketEntry>,
) -> Result<Taken, MapError> {
    let Some(entry) = row(MAP, ours.get(socket, 0))? else {
        return Ok(Taken::Not);
    };
    if !missed(theirs, &entry) || ours.remove(socket).is_err() {
        return Ok(Taken::Not);
    }
    Ok(if entry.counts() {
        Taken::Uncounted
    } else {
        Taken::Counted
    })
}

/// Whether the other version's programs, all done, have seen an end of the socket that ours have not.
fn missed(theirs: Option<&SocketEntry>, ours: &SocketEntry) -> bool {
    theirs.is_none_or(|theirs| theirs.ends() & !ours.ends() != 0)
}

/// Waits until every program that runs now has returned: all that the kernel calls here run within an RCU read-side
/// section, and the call waits for those (membarrier(2)).
fn wait_for_running_programs() {
    /// Far longer than a program runs, where the kernel does not wait for us: it has CPUs without a tick.
    const INSTEAD: Duration = Duration::from_millis(50);
    if membarrier(MembarrierCommand::Global).is_err() {
        thread::sleep(INSTEAD);
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::abi::{
        Address, ReverseEntry, SOCKET_FOLLOWED, SOCKET_OVER, SOCKET_RELEASED, SOCKET_SAMPLED, TCP,
    };

    use super::*;

    fn with(flags: u64) -> SocketEntry {
        SocketEntry {
            flags,
            started_ns: 1,
            netns_cookie: 1,
            backend_address: Address::v4([10, 0, 0, 9]),
            backend_port: [31, 144],
            protocol: TCP,
            pad: 0,
            service: ReverseEntry {
                backend: BackendId(1),
                service_id: 1,
                address: Address::v4([10, 96, 0, 1]),
                port: [0, 80],
                pad: [0; 2],
            },
            detail: 0,
        }
    }

    #[test]
    fn an_end_that_only_theirs_saw_is_missed() {
        let established = with(SOCKET_FOLLOWED);
        let released = with(SOCKET_FOLLOWED | SOCKET_RELEASED);
        assert!(!missed(Some(&established), &established));
        assert!(missed(Some(&released), &established));
        assert!(!missed(Some(&established), &released), "ours ran last");
        assert!(missed(None, &released), "the second end");
        let other = with(SOCKET_FOLLOWED | SOCKET_OVER);
        assert!(missed(Some(&other), &released));
        assert!(!missed(Some(&with(SOCKET_SAMPLED)), &with(0)), "no end");
    }

    #[test]
    fn a_socket_counts_until_its_first_end() {
        assert!(with(SOCKET_FOLLOWED | SOCKET_SAMPLED).counts());
        assert!(!with(SOCKET_FOLLOWED | SOCKET_RELEASED).counts());
        assert!(!with(SOCKET_FOLLOWED | SOCKET_OVER).counts());
    }
}
