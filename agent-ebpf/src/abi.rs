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
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub address: Ipv4,
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

/// Value of `BACKENDS`. One aligned word, so a program reads it whole. Written once: a row that were written anew could be
/// read in memory that the kernel has handed to another backend meanwhile.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendEntry {
    pub address: Ipv4,
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
/// is released.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketEntry {
    pub backend_address: Ipv4,
    pub backend_port: Port,
    pub pad: [u8; 2],
    pub service: ReverseEntry,
}

/// Key of `SOCK_REVERSE`: a socket and a backend that it was sent to before its latest one. Only unconnected UDP sockets
/// that talk to several services have any; the latest is in `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReverseKey {
    pub cookie: SocketKey,
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

/// Per-CPU value of `STATS`, keyed by [`BackendId`]. Counts since the backend was first written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    /// Sockets sent to this backend: TCP and connected UDP at connect, unconnected UDP at the datagram that first goes here
    /// or comes back here from elsewhere.
    pub opens: u64,
    /// Of those, the ones released or sent elsewhere since. `active` is `opens - closes` over all CPUs.
    pub closes: u64,
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

    /// All of them.
    pub const ALL: [&str; 8] = [
        SERVICES,
        BACKEND_TABLE,
        BACKENDS,
        SOCKETS,
        SOCK_REVERSE,
        AFFINITY,
        STATS,
        SERVICE_STATS,
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
        no_padding!(ServiceKey: address 4, port 2, protocol 1, pad 1 => 8);
        no_padding!(ServiceEntry: service_id 4, generation 4, local 4, zone 4, ready 4, terminating 4, flags 4,
            affinity_timeout_s 4, local_share 4 => 36);
        no_padding!(ServiceRow: key 8, entry 36 => 44);
        no_padding!(SlotKey: service_id 4, generation 4, slot 4 => 12);
        no_padding!(BackendEntry: address 4, port 2, protocol 1, pad 1 => 8);
        no_padding!(SocketEntry: backend_address 4, backend_port 2, pad 2, service 16 => 24);
        no_padding!(ReverseKey: cookie 8, address 4, port 2, pad 2 => 16);
        no_padding!(ReverseEntry: address 4, port 2, pad 2, backend 4, service_id 4 => 16);
        no_padding!(AffinityKey: netns_cookie 8, service_id 4, pad 4 => 16);
        no_padding!(AffinityEntry: last_use_ns 8, backend 4, generation 4, slot 4, pad 4 => 24);
        no_padding!(BackendStats: opens 8, closes 8 => 16);
        no_padding!(ServiceStats: no_backend 8, hole 8 => 16);
        assert_eq!(size_of::<BackendId>(), 4);
    }
}
