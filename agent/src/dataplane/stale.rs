//! Rows of `SOCKETS` that no program will remove.
//!
//! Two programs have to hear of a socket's end: its release, and the end of its connection. The kernel's own sockets, of
//! network file systems say, are never released, and another program's flags can keep the second from hearing.

use std::collections::HashSet;

use agent_ebpf::abi::{SOCKET_FOLLOWED, SOCKET_OVER, SOCKET_RELEASED, SocketEntry, SocketKey};

use super::maps::{MapError, Maps};

/// Looks now and then. A row that waits for the second of its two ends at two looks waits in vain, or for a socket of
/// which nothing is of interest any more.
pub struct StaleSockets {
    maps: Maps,
    waiting: HashSet<SocketKey>,
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
        let waiting: HashSet<SocketKey> = waiting.map(|(socket, _)| *socket).collect();
        let stale: Vec<SocketKey> = waiting.intersection(&self.waiting).copied().collect();
        for socket in &stale {
            self.maps.forget_socket(*socket);
        }
        self.waiting = waiting;
        Ok(stale.len())
    }
}

fn waits(entry: &SocketEntry) -> bool {
    let has = |flag| entry.flags & flag != 0;
    has(SOCKET_FOLLOWED) && has(SOCKET_RELEASED) != has(SOCKET_OVER)
}
