//! Records for people who watch.

use super::{Address, BackendId, DropReason, Port, SocketKey};

/// A record of `EVENTS`: what happened to a socket that dialled a service, or to a client whose packets were translated. What
/// an event has nothing to say about is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// `bpf_ktime_get_ns` of the event.
    pub time_ns: u64,
    /// Of a client without a socket here: the hash of its flow.
    pub cookie: SocketKey,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// Established and failed: since connect. Closed: the connection's life.
    pub duration_ns: u64,
    /// Closed: bytes that the backend acknowledged.
    pub bytes_sent: u64,
    /// Closed: bytes received from the backend.
    pub bytes_received: u64,
    /// What the application dialled.
    pub dialled: Address,
    pub backend_address: Address,
    pub dialled_port: Port,
    pub backend_port: Port,
    pub service_id: u32,
    pub backend: BackendId,
    /// Opened and refused: the process that dialled.
    pub pid: u32,
    /// `EVENT_*`.
    pub kind: u8,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// `EVENT_BY_*`: who dialled.
    pub by: u8,
    /// Dropped: the number of its [`DropReason`].
    pub reason: u8,
    /// Of a client without a socket here.
    pub client_port: Port,
    pub pad: [u8; 2],
    /// Opened and refused: the name of the process that dialled, ended by zeros. Of a client without a socket here: the octets
    /// of its address.
    pub comm: [u8; 16],
}

impl FlowEvent {
    /// Where a client without a socket here is.
    pub fn client(&self) -> Option<(Address, Port)> {
        (self.by != EVENT_BY_SOCKET).then(|| (self.comm.into(), self.client_port))
    }
}

/// A socket that the programs see.
pub const EVENT_BY_SOCKET: u8 = 0;
/// A machine outside, whose packets come in by an uplink.
pub const EVENT_BY_OUTSIDER: u8 = 1;
/// A pod of this node whose sockets the programs do not see.
pub const EVENT_BY_POD: u8 = 2;

/// The socket was sent to a backend.
pub const EVENT_OPENED: u8 = 1;
/// TCP: the backend accepted.
pub const EVENT_ESTABLISHED: u8 = 2;
/// TCP: refused, timed out, or given up before the backend accepted.
pub const EVENT_FAILED: u8 = 3;
/// TCP: the connection is over. UDP: the socket was released.
pub const EVENT_CLOSED: u8 = 4;
/// Refused, because the service has no backend.
pub const EVENT_NO_BACKEND: u8 = 5;
/// Refused, because a row was missing; see [`ServiceStats::hole`].
pub const EVENT_HOLE: u8 = 6;
/// A client outside was not let in: `reason` says why.
pub const EVENT_DROPPED: u8 = 7;

/// Whether a packet that was dropped for this reason would have begun a connection.
#[inline(always)]
pub const fn begins(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::SourceRange | DropReason::NoPort | DropReason::TableFull
    )
}

/// Whether a flow with this hash is recorded where one in `every` is; of 0 none.
#[inline(always)]
pub const fn is_sampled(hash: u32, every: u32) -> bool {
    every != 0 && hash.is_multiple_of(every)
}
