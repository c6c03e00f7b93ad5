//! Keys and values of the BPF maps.
//!
//! Every type is `repr(C)`, has no implicit padding, and is plain bytes: any bit pattern is a value, so a map can be read
//! back whoever wrote it. Addresses and ports are byte arrays in network order; counters and ids are host order.

/// Version of these layouts. It is part of the pin path, so programs and maps of different layouts never meet.
pub const ABI_VERSION: u32 = 1;

/// An IPv4 address in network order.
pub type Ipv4 = [u8; 4];
/// A transport port in network order.
pub type Port = [u8; 2];

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// `local_share` is a fraction of this: `SHARE_ONE` keeps every new connection on the node while a local backend is ready.
pub const SHARE_ONE: u32 = 1 << 16;

/// Key of `SERVICES`: what an application dials.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub address: Ipv4,
    pub port: Port,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub pad: u8,
}

/// Value of `SERVICES`: which backend table is live and how to draw from it.
///
/// The table has `ready` slots of ready backends, ordered node-local, same zone, rest, then `terminating` slots of
/// backends that still serve. One write of this entry switches the whole service to a new table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceEntry {
    /// Names the service in `BACKEND_TABLE` and in statistics.
    pub service_id: u32,
    /// Generation of the live table.
    pub generation: u32,
    /// Ready backends on this node: slots `0 .. local`.
    pub local: u32,
    /// Ready backends in this node's zone, the local ones not counted: slots `local .. local + zone`.
    pub zone: u32,
    /// All ready backends: slots `0 .. ready`.
    pub ready: u32,
    /// Serving but terminating backends: slots `ready .. ready + terminating`. Used only when `ready` is 0.
    pub terminating: u32,
    /// `FLAG_*` bits.
    pub flags: u32,
    /// Session affinity timeout in seconds; 0 is no affinity.
    pub affinity_timeout_s: u32,
    /// Share of new connections that stay on the node, of [`SHARE_ONE`], while `local` is not 0.
    pub local_share: u32,
}

/// `internalTrafficPolicy: Local`: slots beyond the local ones are never used. The table then holds local backends only.
pub const FLAG_LOCAL_ONLY: u32 = 1 << 0;

/// Key of `BACKEND_TABLE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    pub service_id: u32,
    pub generation: u32,
    pub slot: u32,
}

/// Key of `BACKENDS` and value of `BACKEND_TABLE`. Never reused while a socket may still name it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u32);

/// Value of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendEntry {
    pub address: Ipv4,
    pub port: Port,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// `BACKEND_*` bits.
    pub flags: u8,
}

/// The backend runs on this node.
pub const BACKEND_LOCAL: u8 = 1 << 0;
/// The backend is terminating and still serves.
pub const BACKEND_TERMINATING: u8 = 1 << 1;

/// Key of `SOCK_REVERSE`: a socket and the backend that it was sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReverseKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    pub address: Ipv4,
    pub port: Port,
    pub pad: [u8; 2],
}

/// Value of `SOCK_REVERSE`: the service address that the application dialled, and the backend it counts for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReverseEntry {
    pub address: Ipv4,
    pub port: Port,
    pub pad: [u8; 2],
    pub backend: BackendId,
    pub service_id: u32,
}

/// Per-CPU value of `STATS`, keyed by [`BackendId`]. Counts since the backend was first written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Connections and connected UDP sockets sent to this backend, and first datagrams of unconnected ones.
    pub opens: u64,
    /// Sockets released that had been sent to this backend. `active` is `opens - closes` over all CPUs.
    pub closes: u64,
}

/// Per-CPU value of `SERVICE_STATS`, keyed by service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Connections refused because no backend was ready.
    pub no_backend: u64,
    /// Lookups that found a service entry whose slot or backend was gone on every retry. Always 0 by invariant 4.
    pub hole: u64,
}
