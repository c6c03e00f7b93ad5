//! Rows of connections that are translated by the packet.

use super::{Address, BackendId, PodEntry, Port};

/// Key of `CONNECTIONS`: a packet's addresses and ports as it comes to one side of an uplink. An echo's identifier stands
/// for the port of who asks, 0 for that of who answers.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    /// [`TCP`], [`UDP`], ICMP or ICMPv6.
    pub protocol: u8,
    pub side: Side,
    pub pad: [u8; 2],
}

/// Where a packet is translated: as it comes in by an uplink or leaves by one, as it leaves a pod or goes to it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side(pub u8);

impl Side {
    pub const IN: Self = Self(0);
    pub const OUT: Self = Self(1);
    pub const FROM_POD: Self = Self(2);
    pub const TO_POD: Self = Self(3);

    /// Where the answers to what is translated here are translated.
    #[inline(always)]
    pub const fn other(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// Value of `CONNECTIONS`: what a packet's addresses and ports become. Each connection has two rows, one for each
/// direction; what one makes of a packet, the other takes back.
///
/// The kernel hands the memory of a row that gives way to another at once. `key_hash`, which is written first, tells a
/// reader that what it copied is another's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    /// Of the row's own key.
    pub key_hash: u32,
    /// Index of the link by which the connection went out, or its client's packets come in: the latest, where that changes.
    pub link: u32,
    /// `bpf_ktime_get_ns` of a packet, not much older than the last.
    pub last_seen_ns: u64,
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    /// The backend of a service's connection; 0 if it is refused.
    pub backend: BackendId,
    /// 0 for one that is only masqueraded.
    pub service_id: u32,
    /// `CONNECTION_*` bits.
    pub kind: u8,
    /// TCP flags that were seen in this direction, and [`crate::nat::SEEN`].
    pub seen: u8,
    pub pad: [u8; 2],
    /// Of the packets in this direction, with their headers from IP's on; about, where several CPUs count.
    pub bytes: u64,
    /// `bpf_ktime_get_ns` of the connection's first packet.
    pub since_ns: u64,
}

impl FlowKey {
    pub const EMPTY: Self = Self {
        source: PodEntry::NONE,
        destination: PodEntry::NONE,
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
        side: Side::IN,
        pad: [0; 2],
    };
}

impl Connection {
    pub const EMPTY: Self = Self {
        key_hash: 0,
        link: 0,
        last_seen_ns: 0,
        source: PodEntry::NONE,
        destination: PodEntry::NONE,
        source_port: [0; 2],
        destination_port: [0; 2],
        backend: BackendId(0),
        service_id: 0,
        kind: 0,
        seen: 0,
        pad: [0; 2],
        bytes: 0,
        since_ns: 0,
    };
}

/// A row of the answers' direction.
pub const CONNECTION_REPLY: u8 = 1 << 0;
/// Its destination is a service's address, translated into a backend's. Else its source is translated into the node's.
pub const CONNECTION_SERVICE: u8 = 1 << 1;
/// Its packets are handed to the backend's node as they are, which answers the client itself.
pub const CONNECTION_DIRECT: u8 = 1 << 2;

/// It was opened by the node that had the service's address before this one. Its packets are handed there as they are.
pub const CONNECTION_FORMER: u8 = 1 << 3;
/// Its packets go as they are: somebody outside reached a pod at its own address.
pub const CONNECTION_UNCHANGED: u8 = 1 << 4;
/// Its service sends clients to backends of this node only, which see the clients' own addresses.
pub const CONNECTION_LOCAL: u8 = 1 << 5;

/// Key of `FRAGMENTS`: what the fragments of one packet have in common.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    pub identification: u32,
    pub protocol: u8,
    pub side: Side,
    pub pad: [u8; 2],
}

/// Value of `FRAGMENTS`: the ports that only the first has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentPorts {
    pub source: Port,
    pub destination: Port,
}
