//! Rows of client sockets, and what is counted of them.

use super::{Address, BackendId, Port, TCP};

/// Key of `SOCKETS`: `bpf_get_socket_cookie`, which names a socket for as long as the machine runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketKey(pub u64);

/// Value of `SOCKETS`: where a client socket was last sent, and what its application had dialled. There until the socket
/// is released, and its connection over.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketEntry {
    /// `bpf_ktime_get_coarse_ns` when the socket was sent there, `bpf_ktime_get_ns` of one that is sampled; 0 when that is
    /// not known.
    pub started_ns: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// `SOCKET_*` bits. Two programs may set bits at once, so each does it atomically.
    pub flags: u64,
    pub backend_address: Address,
    pub backend_port: Port,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub pad: u8,
    pub service: ReverseEntry,
    /// Of TCP how long the handshake took, in nanoseconds; 0 until it is done. Of UDP the backend's [`Place`].
    pub detail: u64,
}

impl SocketEntry {
    /// Whether it still counts for its backend.
    pub fn counts(&self) -> bool {
        self.ends() == 0
    }

    /// Those of its flags that say that one of its sides is done.
    pub fn ends(&self) -> u64 {
        self.flags & (SOCKET_RELEASED | SOCKET_OVER)
    }

    /// How long the TCP handshake took, in nanoseconds; `None` while it is not done, and of UDP.
    pub fn handshake_ns(&self) -> Option<u64> {
        (self.protocol == TCP && self.detail != 0).then_some(self.detail)
    }
}

/// Orders `kn_opened` to count connections that were carried over.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub backend: BackendId,
    pub connections: u32,
}

impl Opened {
    /// Where it stands in the frame that `kn_opened` is run with: behind an Ethernet header of zeros.
    pub const AT: usize = 14;
    /// How long that frame is.
    pub const FRAME: usize = 64;

    pub fn to_frame(self) -> [u8; Self::FRAME] {
        let mut frame = [0; Self::FRAME];
        frame[Self::AT..Self::AT + 4].copy_from_slice(&self.backend.0.to_ne_bytes());
        frame[Self::AT + 4..Self::AT + 8].copy_from_slice(&self.connections.to_ne_bytes());
        frame
    }
}

/// Where a backend stands in its service's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub generation: u32,
    pub slot: u32,
}

impl Place {
    /// As it stands in a [`SocketEntry`].
    #[inline(always)]
    pub const fn to_detail(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    #[inline(always)]
    pub const fn from_detail(detail: u64) -> Self {
        Self {
            generation: (detail >> 32) as u32,
            slot: detail as u32,
        }
    }
}

/// The connection was established, and `kn_sock_ops` hears when it is over.
pub const SOCKET_FOLLOWED: u64 = 1 << 0;
/// The application has released the socket.
pub const SOCKET_RELEASED: u64 = 1 << 1;
/// The connection is over. Of this and [`SOCKET_RELEASED`], who sets the second removes the row.
pub const SOCKET_OVER: u64 = 1 << 2;
/// The socket's events are recorded.
pub const SOCKET_SAMPLED: u64 = 1 << 3;

/// Key of `SOCK_REVERSE`: a socket and a backend that it was sent to before its latest one. Only unconnected UDP sockets
/// that talk to several services have any; the latest is in `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReverseKey {
    pub cookie: SocketKey,
    pub address: Address,
    pub port: Port,
    pub pad: [u8; 6],
}

/// Value of `SOCK_REVERSE`: the service address that the application dialled, and the backend it counts for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReverseEntry {
    pub address: Address,
    pub port: Port,
    pub pad: [u8; 2],
    pub backend: BackendId,
    pub service_id: u32,
}

/// Key of `AFFINITY`: a client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace: all that runs in one pod is one client.
    pub netns_cookie: u64,
    pub service_id: u32,
    pub pad: u32,
}

/// Value of `AFFINITY`: the backend that the client had last, and where it stood then.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityEntry {
    /// `bpf_ktime_get_ns` of the last use.
    pub last_use_ns: u64,
    pub backend: BackendId,
    /// Generation of the table and slot in it where the backend was found.
    pub generation: u32,
    pub slot: u32,
    pub pad: u32,
}

/// Per-CPU value of `STATS`, keyed by [`BackendId`]. Counts since the backend was first written. All but the first two are
/// of TCP only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Sockets sent to this backend: TCP and connected UDP at connect, unconnected UDP at the datagram that first goes here
    /// or comes back here from elsewhere.
    pub opens: u64,
    /// Of those, the ones over, released or sent elsewhere since. `active` is `opens - closes` over all CPUs.
    pub closes: u64,
    /// Connections that ended before they were established: refused, timed out, or given up by a client that waited for a
    /// second at least.
    pub failures: u64,
    /// Bytes that the backend acknowledged, of connections that are over.
    pub bytes_sent: u64,
    /// Bytes received from the backend, of connections that are over.
    pub bytes_received: u64,
    /// Connections that were established.
    pub handshakes: u64,
    /// How long the handshakes took, summed over those.
    pub handshake_ns: u64,
    /// Those by time, see [`crate::histogram`].
    pub handshake_buckets: [u32; crate::histogram::BUCKETS],
}

impl BackendStats {
    pub const ZERO: Self = Self {
        opens: 0,
        closes: 0,
        failures: 0,
        bytes_sent: 0,
        bytes_received: 0,
        handshakes: 0,
        handshake_ns: 0,
        handshake_buckets: [0; crate::histogram::BUCKETS],
    };
}

/// Per-CPU value of `SERVICE_STATS`, keyed by service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Connections and datagrams refused because no backend was ready.
    pub no_backend: u64,
    /// Lookups that found a service entry whose slot or backend was gone on every retry. Always 0 by invariant 4.
    pub hole: u64,
}

impl ServiceStats {
    pub const ZERO: Self = Self {
        no_backend: 0,
        hole: 0,
    };
}
