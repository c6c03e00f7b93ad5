//! The rows of ABI version 1, and what they are now. Pure. That version knew IPv4 addresses only.

use agent_ebpf::abi::{self, Address, BackendId, Port, SlotKey};

/// Key of `SERVICES`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServiceKey {
    pub(super) address: [u8; 4],
    pub(super) port: Port,
    pub(super) protocol: u8,
    pub(super) pad: u8,
}

/// What stood beside the key in the value of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServiceEntry {
    pub(super) service_id: u32,
    pub(super) generation: u32,
    pub(super) local: u32,
    pub(super) zone: u32,
    pub(super) ready: u32,
    pub(super) terminating: u32,
    pub(super) flags: u32,
    pub(super) affinity_timeout_s: u32,
    pub(super) local_share: u32,
}

/// Value of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServiceRow {
    pub(super) key: ServiceKey,
    pub(super) entry: ServiceEntry,
}

/// Value of `BACKENDS`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackendEntry {
    pub(super) address: [u8; 4],
    pub(super) port: Port,
    pub(super) protocol: u8,
    pub(super) pad: u8,
}

/// Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketEntry {
    pub(super) backend_address: [u8; 4],
    pub(super) backend_port: Port,
    pub(super) pad: [u8; 2],
    pub(super) service: ReverseEntry,
}

/// Key of `SOCK_REVERSE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReverseKey {
    pub(super) cookie: u64,
    pub(super) address: [u8; 4],
    pub(super) port: Port,
    pub(super) pad: [u8; 2],
}

/// Value of `SOCK_REVERSE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReverseEntry {
    pub(super) address: [u8; 4],
    pub(super) port: Port,
    pub(super) pad: [u8; 2],
    pub(super) backend: u32,
    pub(super) service_id: u32,
}

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AffinityKey {
    pub(super) netns_cookie: u64,
    pub(super) service_id: u32,
    pub(super) pad: u32,
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AffinityEntry {
    pub(super) last_use_ns: u64,
    pub(super) backend: u32,
    pub(super) generation: u32,
    pub(super) slot: u32,
    pub(super) pad: u32,
}

/// Per-CPU value of `STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackendStats {
    pub(super) opens: u64,
    pub(super) closes: u64,
}

macro_rules! pod {
    ($($type:ty),+ $(,)?) => { $(
        // SAFETY: `repr(C)`, no implicit padding and valid for any bit pattern; a test checks the sizes.
        unsafe impl aya::Pod for $type {}
    )+ };
}
pod!(
    ServiceKey,
    ServiceRow,
    BackendEntry,
    SocketEntry,
    ReverseKey,
    ReverseEntry,
    AffinityKey,
    AffinityEntry,
    BackendStats,
);

pub(super) fn service(key: ServiceKey, row: ServiceRow) -> (abi::ServiceKey, abi::ServiceRow) {
    let key = abi::ServiceKey {
        address: Address::v4(key.address),
        port: key.port,
        protocol: key.protocol,
        scope: abi::Scope::CLUSTER,
    };
    let ServiceEntry {
        service_id,
        generation,
        local,
        zone,
        ready,
        terminating,
        flags,
        affinity_timeout_s,
        local_share,
    } = row.entry;
    let entry = abi::ServiceEntry {
        service_id,
        generation,
        local,
        zone,
        ready,
        terminating,
        flags,
        affinity_timeout_s,
        local_share,
    };
    (key, abi::ServiceRow { key, entry })
}

/// The same then and now.
pub(super) fn slot(key: SlotKey, id: BackendId) -> (SlotKey, BackendId) {
    (key, id)
}

pub(super) fn backend(id: BackendId, entry: BackendEntry) -> (BackendId, abi::BackendEntry) {
    let entry = abi::BackendEntry {
        address: Address::v4(entry.address),
        port: entry.port,
        protocol: entry.protocol,
        pad: 0,
    };
    (id, entry)
}

/// `protocol` is its backend's. Nobody follows the connection, and nothing is known of its beginning.
pub(super) fn socket(entry: SocketEntry, protocol: u8) -> abi::SocketEntry {
    abi::SocketEntry {
        started_ns: 0,
        netns_cookie: 0,
        flags: 0,
        backend_address: Address::v4(entry.backend_address),
        backend_port: entry.backend_port,
        protocol,
        pad: 0,
        service: reverse_entry(entry.service),
        detail: 0,
    }
}

pub(super) fn reverse(
    key: ReverseKey,
    entry: ReverseEntry,
) -> (abi::ReverseKey, abi::ReverseEntry) {
    let key = abi::ReverseKey {
        cookie: abi::SocketKey(key.cookie),
        address: Address::v4(key.address),
        port: key.port,
        pad: [0; 6],
    };
    (key, reverse_entry(entry))
}

fn reverse_entry(entry: ReverseEntry) -> abi::ReverseEntry {
    abi::ReverseEntry {
        address: Address::v4(entry.address),
        port: entry.port,
        pad: [0; 2],
        backend: BackendId(entry.backend),
        service_id: entry.service_id,
    }
}

pub(super) fn affinity(
    key: AffinityKey,
    entry: AffinityEntry,
) -> (abi::AffinityKey, abi::AffinityEntry) {
    let key = abi::AffinityKey {
        netns_cookie: key.netns_cookie,
        service_id: key.service_id,
        pad: 0,
    };
    let entry = abi::AffinityEntry {
        last_use_ns: entry.last_use_ns,
        backend: BackendId(entry.backend),
        generation: entry.generation,
        slot: entry.slot,
        pad: 0,
    };
    (key, entry)
}

pub(super) fn stats(stats: BackendStats) -> abi::BackendStats {
    abi::BackendStats {
        opens: stats.opens,
        closes: stats.closes,
        ..abi::BackendStats::ZERO
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use agent_ebpf::abi::TCP;

    use super::*;

    #[test]
    fn the_rows_are_as_large_as_that_version_wrote_them() {
        let sizes = [
            size_of::<ServiceKey>(),
            size_of::<ServiceRow>(),
            size_of::<BackendEntry>(),
            size_of::<SocketEntry>(),
            size_of::<ReverseKey>(),
            size_of::<ReverseEntry>(),
            size_of::<AffinityKey>(),
            size_of::<AffinityEntry>(),
            size_of::<BackendStats>(),
        ];
        assert_eq!(sizes, [8, 44, 8, 24, 16, 16, 16, 24, 16]);
    }

    #[test]
    fn a_socket_keeps_what_it_dialled_and_whom_it_counts_for() {
        let service = ReverseEntry {
            address: [10, 96, 0, 1],
            port: [0, 80],
            pad: [0; 2],
            backend: 7,
            service_id: 3,
        };
        let old = SocketEntry {
            backend_address: [10, 244, 1, 5],
            backend_port: [31, 144],
            pad: [0; 2],
            service,
        };
        let new = socket(old, TCP);
        assert_eq!(new.backend_address, Address::v4([10, 244, 1, 5]));
        assert_eq!((new.backend_port, new.protocol), ([31, 144], TCP));
        assert_eq!(new.service.address, Address::v4([10, 96, 0, 1]));
        assert_eq!(new.service.port, [0, 80]);
        assert_eq!(
            (new.service.backend, new.service.service_id),
            (BackendId(7), 3)
        );
        assert_eq!(new.flags, 0, "it ends when it is released");
    }
}
