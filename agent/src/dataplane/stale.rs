//! Rows of `SOCKETS` that no program will remove.
//!
//! Two programs have to hear of a socket's end: its release, and the end of its connection. The kernel's own sockets, of
//! network file systems say, are never released, also not those that were refused, and another program's flags can keep the
//! second from hearing.

use std::collections::HashSet;

use agent_ebpf::abi::{SOCKET_FOLLOWED, SOCKET_OVER, SOCKET_RELEASED, SocketEntry, SocketKey, TCP};

use super::maps::{MapError, Maps};

/// Looks now and then. A row that waits for an end at two looks waits in vain, or for a socket of which nothing is of
/// interest any more.
pub struct StaleSockets {
    maps: Maps,
    /// Sockets, and when each was sent where it was at the last look.
    waiting: HashSet<(SocketKey, u64)>,
}

impl StaleSockets {
    pub fn new(maps: Maps) -> Self {
        Self {
            maps,
            waiting: HashSet::new(),
        }
    }

    /// Removes the rows that waited already at the look before; gives how many.
    pub fn sweep(&mut self) -> Result<usize, MapError> {
        let rows = self.maps.sockets()?;
        let waiting = rows.iter().filter(|(_, entry)| waits(entry));
        let waiting = waiting.map(|(socket, entry)| (*socket, entry.started_ns));
        let waiting: HashSet<(SocketKey, u64)> = waiting.collect();
        let stale: Vec<(SocketKey, u64)> = waiting.intersection(&self.waiting).copied().collect();
        for (socket, _) in &stale {
            self.maps.forget_socket(*socket);
        }
        self.waiting = waiting;
        Ok(stale.len())
    }
}

fn waits(entry: &SocketEntry) -> bool {
    let has = |flag| entry.flags & flag != 0;
    if has(SOCKET_FOLLOWED) {
        return has(SOCKET_RELEASED) != has(SOCKET_OVER);
    }
    // Refused or unanswered, and still not released. What another version began may be established.
    entry.protocol == TCP && entry.started_ns != 0
}
