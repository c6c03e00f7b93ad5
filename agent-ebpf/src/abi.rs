//! Keys and values of the BPF maps.
//!
//! Every type is `repr(C)`, has no implicit padding, and is plain bytes: any bit pattern is a value, so a map can be read
//! back whoever wrote it. Addresses and ports are byte arrays in network order; counters and ids are host order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Version of these layouts. It is part of the pin path, so programs and maps of different layouts never meet.
pub const ABI_VERSION: u32 = 2;

/// An IP address in network order. An IPv4 address stands as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2), which is also
/// how an IPv6 socket dials it: one key for one service, whatever the socket.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// The IPv4 address `octets`, in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The octets of an IPv4 address, in network order; `None` for an IPv6 address.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// The address that it stands for.
    pub fn to_ip(self) -> IpAddr {
        match self.as_v4() {
            Some(octets) => IpAddr::V4(octets.into()),
            None => IpAddr::V6(self.0.into()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self(ip.octets())
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&self.to_ip(), f)
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.to_ip(), f)
    }
}

/// A transport port in network order.
pub type Port = [u8; 2];

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// `local_share` is a fraction of this: `SHARE_ONE` keeps every new connection on the node while a local backend is ready.
pub const SHARE_ONE: u32 = 1 << 16;

/// Key of `SERVICES`: what an application dials.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub address: Address,
    pub port: Port,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    pub pad: u8,
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

/// `internalTrafficPolicy: Local`: slots beyond the local ones are never used. The table then offers local backends only.
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

/// Key of `SOCKETS`: `bpf_get_socket_cookie`, which names a socket for as long as the machine runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketKey(pub u64);

/// Value of `SOCKETS`: where a client socket was last sent, and what its application had dialled. There until the socket
/// is released, and its connection over.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketEntry {
    /// `bpf_ktime_get_ns` when the socket was sent there: of TCP when its SYN left, 0 before.
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
    /// How long the TCP handshake took, in nanoseconds; 0 until it is done.
    pub handshake_ns: u64,
}

/// `kn_sock_ops` follows the connection and hears when it is over.
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
    /// Time from connect to established, summed over those.
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

/// The one row of `CONFIG`: what user space asks of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramConfig {
    /// One in so many sockets is recorded in `EVENTS`; 0 for none. Refusals always are.
    pub sample_every: u32,
    pub pad: u32,
}

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

/// Names of the maps, in the object and on bpffs.
pub mod maps {
    pub const SERVICES: &str = "SERVICES";
    pub const BACKEND_TABLE: &str = "BACKEND_TABLE";
    pub const BACKENDS: &str = "BACKENDS";
    pub const SOCKETS: &str = "SOCKETS";
    pub const SOCK_REVERSE: &str = "SOCK_REVERSE";
    pub const AFFINITY: &str = "AFFINITY";
    pub const STATS: &str = "STATS";
    pub const SERVICE_STATS: &str = "SERVICE_STATS";
    pub const CONFIG: &str = "CONFIG";
    pub const EVENTS: &str = "EVENTS";
    pub const EVENTS_LOST: &str = "EVENTS_LOST";

    /// All of them.
    pub const ALL: [&str; 11] = [
        SERVICES,
        BACKEND_TABLE,
        BACKENDS,
        SOCKETS,
        SOCK_REVERSE,
        AFFINITY,
        STATS,
        SERVICE_STATS,
        CONFIG,
        EVENTS,
        EVENTS_LOST,
    ];
}

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($type:ty),+ $(,)?) => { $(
            // SAFETY: `repr(C)`, no implicit padding and valid for any bit pattern; the tests check the sizes.
            unsafe impl aya::Pod for $type {}
        )+ };
    }
    use super::*;
    pod!(
        ServiceKey,
        ServiceRow,
        SlotKey,
        BackendId,
        BackendEntry,
        SocketKey,
        SocketEntry,
        ReverseKey,
        ReverseEntry,
        AffinityKey,
        AffinityEntry,
        BackendStats,
        ServiceStats,
        ProgramConfig,
        FlowEvent,
    );
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// The size of a type without implicit padding is the sum of its fields'.
    macro_rules! no_padding {
        ($type:ty: $($field:ident $size:literal),+ => $total:literal) => {{
            let mut end = 0;
            $(
                assert_eq!(offset_of!($type, $field), end, "hole before {}", stringify!($field));
                end += $size;
            )+
            assert_eq!(end, size_of::<$type>(), "{} ends in padding", stringify!($type));
            assert_eq!(end, $total);
        }};
    }

    #[test]
    fn layouts_have_no_implicit_padding() {
        no_padding!(ServiceKey: address 16, port 2, protocol 1, pad 1 => 20);
        no_padding!(ServiceEntry: service_id 4, generation 4, local 4, zone 4, ready 4, terminating 4, flags 4,
            affinity_timeout_s 4, local_share 4 => 36);
        no_padding!(ServiceRow: key 20, entry 36 => 56);
        no_padding!(SlotKey: service_id 4, generation 4, slot 4 => 12);
        no_padding!(BackendEntry: address 16, port 2, protocol 1, pad 1 => 20);
        no_padding!(SocketEntry: started_ns 8, netns_cookie 8, flags 8, backend_address 16, backend_port 2, protocol 1,
            pad 1, service 28, handshake_ns 8 => 80);
        no_padding!(ReverseKey: cookie 8, address 16, port 2, pad 6 => 32);
        no_padding!(ReverseEntry: address 16, port 2, pad 2, backend 4, service_id 4 => 28);
        no_padding!(AffinityKey: netns_cookie 8, service_id 4, pad 4 => 16);
        no_padding!(AffinityEntry: last_use_ns 8, backend 4, generation 4, slot 4, pad 4 => 24);
        no_padding!(BackendStats: opens 8, closes 8, failures 8, bytes_sent 8, bytes_received 8, handshakes 8,
            handshake_ns 8, handshake_buckets 128 => 184);
        no_padding!(ServiceStats: no_backend 8, hole 8 => 16);
        no_padding!(ProgramConfig: sample_every 4, pad 4 => 8);
        no_padding!(FlowEvent: time_ns 8, cookie 8, netns_cookie 8, duration_ns 8, bytes_sent 8, bytes_received 8,
            dialled 16, backend_address 16, dialled_port 2, backend_port 2, service_id 4, backend 4, pid 4, kind 1,
            protocol 1, pad 6, comm 16 => 120);
        assert_eq!(size_of::<BackendId>(), 4);
    }

    #[test]
    fn an_address_is_what_it_was_made_of() {
        for ip in [
            "10.96.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "::",
            "::1",
            "fd00::7",
            "2001:db8::ffff:10.0.0.1",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Address::from(ip).to_ip(), ip);
        }
        let mapped: Ipv6Addr = "::ffff:10.96.0.1".parse().unwrap();
        assert_eq!(Address::from(mapped), Address::v4([10, 96, 0, 1]));
    }
}
