//! The rows that packets at uplinks read and write, whichever program they meet.

use agent_ebpf::abi::{
    Address, BackendId, Connection, FlowKey, LinkIndex, MAGLEV_CHUNK, MaglevKey, PodEntry, Port,
    ServiceKey, SourceRange, TCP, UDP, host_port_bit,
};
use agent_ebpf::nat::{Added, REFRESH_NS, Use};
use aya_ebpf::bindings::{
    bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::maps::lpm_trie::Key;
use core::ffi::c_void;

use crate::clock::coarse_ns;
use crate::count::IF_ABSENT;
use crate::maps::{
    CONFIG, CONNECTIONS, FORMERS, HOST_PORTS, MAGLEV, NEAR, NODE_ADDRESSES, POD_RANGES, PODS,
    SERVICES, SOURCE_RANGES, UPLINKS,
};

const EEXIST: i32 = 17;

#[inline(never)]
pub(crate) fn row(key: &FlowKey, into: &mut Connection, use_now: Option<&mut Use>) -> bool {
    const WORDS: usize = size_of::<Connection>() / size_of::<u64>();
    let Some(row) = CONNECTIONS.get_ptr_mut(key) else {
        return false;
    };
    let (from, to) = (row.cast::<u64>(), (&raw mut *into).cast::<u64>());
    for n in 1..=WORDS {
        // SAFETY: a row's memory stays mapped while the program runs. The word with the hash is read last: who gets the
        // memory writes it first.
        unsafe {
            to.add(n % WORDS)
                .write_volatile(from.add(n % WORDS).read_volatile())
        };
    }
    if into.key_hash != key.hash() {
        return false;
    }
    if let Some(used) = use_now {
        if used.now_ns == 0 {
            used.now_ns = coarse_ns();
        }
        let Use {
            now_ns,
            bytes,
            flags,
        } = *used;
        // SAFETY: as above. Two CPUs may write at once: a time is then as good as the other, a flag comes again, and of the
        // bytes some are not counted.
        unsafe {
            (&raw mut (*row).bytes).write_volatile(into.bytes + u64::from(bytes));
            if now_ns.saturating_sub(into.last_seen_ns) > REFRESH_NS {
                (&raw mut (*row).last_seen_ns).write_volatile(now_ns);
            }
            if into.seen | flags != into.seen {
                (&raw mut (*row).seen).write_volatile(into.seen | flags);
            }
        }
    }
    true
}

#[inline(always)]
pub(crate) fn add(key: &FlowKey, row: &Connection) -> Added {
    match CONNECTIONS.insert(key, row, IF_ABSENT) {
        Ok(()) => Added::Added,
        Err(error) if error == -EEXIST => Added::Present,
        Err(_) => Added::Full,
    }
}

#[inline(always)]
pub(crate) fn put(key: &FlowKey, row: &Connection) -> bool {
    CONNECTIONS.insert(key, row, 0).is_ok()
}

#[inline(never)]
pub(crate) fn moved(key: &FlowKey, link: u32) {
    let Some(row) = CONNECTIONS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: as above. In a row that has become another's this moment, its next packet says better.
    unsafe { (&raw mut (*row).link).write_volatile(link) };
}

#[inline(never)]
pub(crate) fn uncount(key: &FlowKey, bytes: u32) {
    let Some(row) = CONNECTIONS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: as above. A row that has become another's this moment has counted less than this.
    unsafe {
        let counted = (&raw const (*row).bytes).read_volatile();
        (&raw mut (*row).bytes).write_volatile(counted.saturating_sub(u64::from(bytes)));
    }
}

/// The node's address on a link; [`PodEntry::NONE`] when it has none of the family.
#[inline(always)]
pub(crate) fn own_address(link: u32, is_ipv4: bool) -> Address {
    // SAFETY: user space replaces a row by a new one, and only when the link's addresses change.
    match unsafe { UPLINKS.get(LinkIndex(link)) } {
        Some(own) if is_ipv4 => own.ipv4,
        Some(own) => own.ipv6,
        None => at_pods(is_ipv4),
    }
}

/// Whether a link is a tunnel to other nodes' pods: it has the address of this node's pods' gateway.
#[inline(always)]
pub(crate) fn is_tunnel(link: u32) -> bool {
    // SAFETY: as above.
    let own = unsafe { UPLINKS.get(LinkIndex(link)) };
    match (own, POD_RANGES.get(0)) {
        (Some(own), Some(pods)) => pods.has(&own.ipv4) || pods.has(&own.ipv6),
        _ => false,
    }
}

/// The node's address for all pods' links, of which the row of no link tells.
#[inline(always)]
pub(crate) fn at_pods(is_ipv4: bool) -> Address {
    // SAFETY: user space writes it once, at start.
    match unsafe { PODS.get(LinkIndex::NONE) } {
        Some(own) if is_ipv4 => own.ipv4,
        Some(own) => own.ipv6,
        None => PodEntry::NONE,
    }
}

#[inline(always)]
pub(crate) fn is_node_address(address: &Address) -> bool {
    NODE_ADDRESSES.get_ptr(address).is_some()
}

/// The backend is on another node that shares a link with this one.
#[inline(always)]
pub(crate) fn is_near(backend: &Address) -> bool {
    NEAR.get(&Key::new(128, *backend)).is_some()
}

/// The node that answered for an address before this one did.
#[inline(always)]
pub(crate) fn former(address: &Address) -> Option<Address> {
    // SAFETY: user space replaces a row by a new one. One that is another address's by now leads to a node that knows as
    // little of the connection.
    unsafe { FORMERS.get(address) }.copied()
}

#[inline(always)]
pub(crate) fn node_ports() -> (u16, u16) {
    CONFIG
        .get(0)
        .map_or((0, 0), |config| config.node_ports.into())
}

/// Whether a pod has the host port.
#[inline(always)]
pub(crate) fn is_host_port(port: Port) -> bool {
    let (word, bit) = host_port_bit(port);
    HOST_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Whether a socket of the node would get what comes back by `answers`. `ctx` is that of the program.
#[inline(always)]
pub(crate) fn has_socket(ctx: *mut c_void, answers: &FlowKey) -> bool {
    let protocol = answers.protocol;
    if protocol != TCP && protocol != UDP {
        return false;
    }
    let (sport, dport) = (
        u16::from_ne_bytes(answers.source_port),
        u16::from_ne_bytes(answers.destination_port),
    );
    // SAFETY: all fields are integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let length = match (answers.source.as_v4(), answers.destination.as_v4()) {
        (Some(source), Some(destination)) => {
            tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: u32::from_ne_bytes(source),
                daddr: u32::from_ne_bytes(destination),
                sport,
                dport,
            };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
        }
        _ => {
            tuple.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: answers.source.words(),
                daddr: answers.destination.words(),
                sport,
                dport,
            };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
        }
    };
    const THIS_NAMESPACE: u64 = u64::MAX;
    let (tuple, length) = (&raw mut tuple, length as u32);
    // SAFETY: the tuple outlives the calls, and a socket that is found is let go at once.
    unsafe {
        let socket = match protocol {
            TCP => bpf_skc_lookup_tcp(ctx.cast(), tuple, length, THIS_NAMESPACE, 0),
            _ => bpf_sk_lookup_udp(ctx.cast(), tuple, length, THIS_NAMESPACE, 0),
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}

#[inline(always)]
pub(crate) fn maglev(key: &MaglevKey, entry: usize) -> Option<BackendId> {
    let chunk = MAGLEV.get_ptr(key)?;
    // SAFETY: as for slots. One entry is read where it lies: the whole is more than half of a program's stack.
    Some(unsafe { (&raw const (*chunk).0[entry & (MAGLEV_CHUNK - 1)]).read_volatile() })
}

#[inline(always)]
pub(crate) fn is_service(key: &ServiceKey) -> bool {
    SERVICES.get_ptr(key).is_some()
}

#[inline(always)]
pub(crate) fn serves(client: &SourceRange) -> bool {
    SOURCE_RANGES.get(&Key::new(160, *client)).is_some()
}

/// Lets a packet's program read and write these rows, and the sockets' tables, as the library asks for them.
macro_rules! with_rows {
    ($packet:ty) => {
        impl agent_ebpf::nat::Connections for $packet {
            #[inline(always)]
            fn row(
                &self,
                key: &agent_ebpf::abi::FlowKey,
                into: &mut agent_ebpf::abi::Connection,
                use_now: Option<&mut agent_ebpf::nat::Use>,
            ) -> bool {
                crate::rows::row(key, into, use_now)
            }

            #[inline(always)]
            fn add(
                &self,
                key: &agent_ebpf::abi::FlowKey,
                row: &agent_ebpf::abi::Connection,
            ) -> agent_ebpf::nat::Added {
                crate::rows::add(key, row)
            }

            #[inline(always)]
            fn put(
                &self,
                key: &agent_ebpf::abi::FlowKey,
                row: &agent_ebpf::abi::Connection,
            ) -> bool {
                crate::rows::put(key, row)
            }

            #[inline(always)]
            fn moved(&self, key: &agent_ebpf::abi::FlowKey, link: u32) {
                crate::rows::moved(key, link);
            }

            #[inline(always)]
            fn uncount(&self, key: &agent_ebpf::abi::FlowKey, bytes: u32) {
                crate::rows::uncount(key, bytes);
            }
        }

        impl agent_ebpf::select::Tables for $packet {
            #[inline(always)]
            fn service(
                &self,
                key: &agent_ebpf::abi::ServiceKey,
            ) -> Option<agent_ebpf::abi::ServiceRow> {
                crate::tables::KernelTables.service(key)
            }

            #[inline(always)]
            fn slot(&self, key: &agent_ebpf::abi::SlotKey) -> Option<agent_ebpf::abi::BackendId> {
                crate::tables::KernelTables.slot(key)
            }

            #[inline(always)]
            fn backend(
                &self,
                id: agent_ebpf::abi::BackendId,
            ) -> Option<agent_ebpf::abi::BackendEntry> {
                crate::tables::KernelTables.backend(id)
            }

            #[inline(always)]
            fn affinity(
                &self,
                key: &agent_ebpf::abi::AffinityKey,
            ) -> Option<agent_ebpf::abi::AffinityEntry> {
                crate::tables::KernelTables.affinity(key)
            }

            #[inline(always)]
            fn remember(
                &self,
                key: &agent_ebpf::abi::AffinityKey,
                entry: &agent_ebpf::abi::AffinityEntry,
            ) {
                crate::tables::KernelTables.remember(key, entry);
            }
        }

        impl agent_ebpf::outside::OutsideTables for $packet {
            #[inline(always)]
            fn maglev(
                &self,
                key: &agent_ebpf::abi::MaglevKey,
                entry: usize,
            ) -> Option<agent_ebpf::abi::BackendId> {
                crate::rows::maglev(key, entry)
            }

            #[inline(always)]
            fn is_service(&self, key: &agent_ebpf::abi::ServiceKey) -> bool {
                crate::rows::is_service(key)
            }

            #[inline(always)]
            fn serves(&self, client: &agent_ebpf::abi::SourceRange) -> bool {
                crate::rows::serves(client)
            }
        }
    };
}
pub(crate) use with_rows;
