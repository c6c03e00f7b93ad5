//! Rows of services, their tables and backends, and what of them is derived.

use super::{Address, Port, UDP};

/// `local_share` is a fraction of this: `SHARE_ONE` keeps every new connection on the node while a local backend is ready.
pub const SHARE_ONE: u32 = 1 << 16;

/// Key of `SERVICES`: what an application dials. A node port stands under the unspecified address of its family, whichever
/// of `NODE_ADDRESSES` is dialled.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub address: Address,
    pub port: Port,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub scope: Scope,
}

/// From where a service address is dialled: one address may have other backends for either.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(pub u8);

impl Scope {
    /// By a socket on this node, or a pod's packet: cluster IPs, and the other addresses as clients in the cluster see them.
    pub const CLUSTER: Self = Self(0);
    /// By a packet that comes from outside: node ports, load balancers' addresses and external IPs, as
    /// `externalTrafficPolicy` says.
    pub const EXTERNAL: Self = Self(1);
}

/// Value of `SERVICES`: an entry beside its own key.
///
/// The kernel may hand the memory of a replaced row to the next row written, while a program still reads it. The key in
/// the row tells such a reader that what it copied is another service's, so that it looks again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRow {
    pub key: ServiceKey,
    pub entry: ServiceEntry,
}

/// Which backend table of a service is live and how to draw from it.
///
/// The table has `ready` slots of ready backends, ordered node-local, same zone, rest, then `terminating` slots of
/// backends that still serve. What stands behind those is never drawn: backends that are draining, whose rows have to
/// stay for the connections that they have. One write of this entry switches the whole service to a new table.
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

/// `internalTrafficPolicy: Local`, or `externalTrafficPolicy: Local` in [`Scope::EXTERNAL`]: slots beyond the local ones are
/// never used. The table then offers local backends only.
pub const FLAG_LOCAL_ONLY: u32 = 1 << 0;
/// Only sources that `SOURCE_RANGES` has for the service are served.
pub const FLAG_SOURCE_RANGES: u32 = 1 << 1;
/// [`Scope::EXTERNAL`]: the backend's node answers the client itself.
pub const FLAG_DIRECT_RETURN: u32 = 1 << 2;
/// The service has a Maglev table. Which of [`MAGLEV_SIZES`] it has stands in the two bits from [`MAGLEV_SIZE_SHIFT`] on.
pub const FLAG_MAGLEV: u32 = 1 << 3;
pub const MAGLEV_SIZE_SHIFT: u32 = 4;
/// A pod's host port, no service's. Where it stands under the unspecified address it is dialled as a node port is.
pub const FLAG_HOST_PORT: u32 = 1 << 6;

/// How many entries a Maglev table may have: primes (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).
pub const MAGLEV_SIZES: [u32; 4] = [251, 1_021, 4_093, 16_381];
/// Entries in one row of `MAGLEV`.
pub const MAGLEV_CHUNK: usize = 64;

/// Key of `MAGLEV`: a part of a service's table of one generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaglevKey {
    pub service_id: u32,
    pub generation: u32,
    /// Holds the entries from `chunk * MAGLEV_CHUNK` on.
    pub chunk: u32,
}

/// Value of `MAGLEV`. What stands behind the last entry of a table is never read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaglevChunk(pub [BackendId; MAGLEV_CHUNK]);

/// What the keys of `SOURCE_RANGES` are prefixes of, 32 to 160 bits long: a service, and a client that it serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange {
    /// In network order, as the trie compares from the first bit on.
    pub service_id: [u8; 4],
    pub address: Address,
}

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

/// Value of `BACKENDS`. Written once: a row that were written anew could be read in memory that the kernel has handed to
/// another backend meanwhile.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendEntry {
    pub address: Address,
    pub port: Port,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub pad: u8,
}

/// Words of `SERVICE_PORTS`, which has a bit for each port of TCP and then of UDP.
pub const SERVICE_PORT_WORDS: u32 = 2 * HOST_PORT_WORDS;

/// As [`host_port_bit`], of `SERVICE_PORTS`.
#[inline(always)]
pub const fn service_port_bit(protocol: u8, port: Port) -> (u32, u64) {
    let (word, bit) = host_port_bit(port);
    match protocol {
        UDP => (word + HOST_PORT_WORDS, bit),
        _ => (word, bit),
    }
}

/// Words of `HOST_PORTS`, which has a bit for each port.
pub const HOST_PORT_WORDS: u32 = (1 << 16) / u64::BITS;

/// The word of `HOST_PORTS` in which a port's bit stands, and the bit.
#[inline(always)]
pub const fn host_port_bit(port: Port) -> (u32, u64) {
    let port = u16::from_be_bytes(port) as u32;
    (port / u64::BITS, 1 << (port % u64::BITS))
}
