//! Records for people who watch.

use super::{Address, BackendId, Port, SocketKey};

/// A record of `EVENTS`: what happened to a socket that dialled a service. What an event has nothing to say about is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// `bpf_ktime_get_ns` of the event.
    pub time_ns: u64,
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
    pub pad: [u8; 6],
    /// Opened and refused: the name of the process that dialled, ended by zeros.
    pub comm: [u8; 16],
}

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
