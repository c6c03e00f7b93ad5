//! Service address to backend address, when a socket connects or a datagram leaves.

use core::mem::MaybeUninit;

use agent_ebpf::abi::{
    AffinityEntry, AffinityKey, BackendEntry, BackendId, EVENT_HOLE, EVENT_NO_BACKEND,
    ReverseEntry, ReverseKey, SOCKET_OVER, SOCKET_SAMPLED, ServiceKey, ServiceRow, SlotKey,
    SocketEntry, SocketKey, UDP,
};
use agent_ebpf::select::{Caller, Tables, Verdict, choose, mix};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::programs::SockAddrContext;

use crate::count::IF_ABSENT;
use crate::ctx::Form;
use crate::maps::{
    AFFINITY, BACKEND_TABLE, BACKENDS, SERVICES, SOCK_REVERSE, SOCKETS, has_set_retval,
};
use crate::{PROCEED, REJECT, count, ctx, events};

const ECONNREFUSED: i32 = 111;

/// A socket connects, or a datagram leaves a UDP socket that names its destination.
#[inline(always)]
pub(crate) fn dial<F: Form>(ctx: &SockAddrContext) -> i32 {
    let Some(dialled) = &ctx::dialled::<F>(ctx) else {
        return PROCEED;
    };
    match choose(&KernelTables, &Socket { ctx, dialled }, dialled) {
        Verdict::NotService => PROCEED,
        Verdict::Backend {
            service_id,
            id,
            entry,
        } => {
            remember(ctx, dialled, service_id, id, &entry);
            ctx::set_address::<F>(ctx, &entry.address, entry.port);
            PROCEED
        }
        Verdict::NoBackend { service_id } => {
            count::refused(service_id);
            events::refused(ctx, dialled, service_id, EVENT_NO_BACKEND);
            refuse()
        }
        Verdict::Hole { service_id } => {
            count::hole(service_id);
            events::refused(ctx, dialled, service_id, EVENT_HOLE);
            refuse()
        }
    }
}

/// Fails the system call with ECONNREFUSED, or with EPERM where the kernel cannot choose the error.
#[inline(always)]
fn refuse() -> i32 {
    if has_set_retval() {
        // SAFETY: a plain helper call; the value is a valid negative errno.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REJECT
}

/// Notes where the socket goes now, and counts it when that is not where it went before. Not inlined: a program has 512
/// bytes of stack, and what the choice used is free again by now. It may call nothing, not even memset: the two frames
/// alone reach what Linux 6.1 allows.
#[inline(never)]
fn remember(
    ctx: &SockAddrContext,
    dialled: &ServiceKey,
    service_id: u32,
    id: BackendId,
    backend: &BackendEntry,
) {
    let socket = ctx::socket(ctx);
    if dialled.protocol == UDP
        && let Some(known) = SOCKETS.get_ptr_mut(socket)
    {
        // A UDP socket sends many datagrams to one place: what is likely costs least.
        // SAFETY: only the socket's own programs write or remove its row.
        let known = unsafe { &*known };
        if known.service.backend == id
            && (known.backend_address, known.backend_port) == (backend.address, backend.port)
            && (known.service.address, known.service.port) == (dialled.address, dialled.port)
        {
            return;
        }
    }
    let now = SocketEntry {
        started_ns: if dialled.protocol == UDP {
            // SAFETY: a plain helper call.
            unsafe { bpf_ktime_get_ns() }
        } else {
            0
        },
        // SAFETY: a plain helper call on the program's own context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        flags: if events::drawn() { SOCKET_SAMPLED } else { 0 },
        backend_address: backend.address,
        backend_port: backend.port,
        protocol: dialled.protocol,
        pad: 0,
        service: ReverseEntry {
            address: dialled.address,
            port: dialled.port,
            pad: [0; 2],
            backend: id,
            service_id,
        },
        handshake_ns: 0,
    };
    if SOCKETS.insert(socket, now, IF_ABSENT).is_ok() {
        count::opened(id);
        events::opened(socket, &now);
        return;
    }
    // When the map is full the connection goes on, untranslated in getpeername and uncounted.
    let Some(known) = SOCKETS.get_ptr_mut(socket) else {
        return;
    };
    // SAFETY: as above.
    let known = unsafe { &mut *known };
    if dialled.protocol == UDP {
        // Answers from the earlier backend may still come.
        let mut earlier = MaybeUninit::<ReverseKey>::uninit();
        let key = earlier.as_mut_ptr();
        // SAFETY: each field is written, and with them the whole key. Volatile, as else the padding is a call of memset.
        let earlier = unsafe {
            (&raw mut (*key).cookie).write(socket);
            (&raw mut (*key).address).write(known.backend_address);
            (&raw mut (*key).port).write(known.backend_port);
            for n in 0..6 {
                (&raw mut (*key).pad[n]).write_volatile(0);
            }
            earlier.assume_init_ref()
        };
        let _ = SOCK_REVERSE.insert(earlier, known.service, 0);
    }
    let over = ctx::flags(known) & SOCKET_OVER != 0;
    if over || known.service.backend != id {
        if !over {
            count::closed(known.service.backend);
        }
        count::opened(id);
    }
    *known = now;
    events::opened(socket, &now);
}

/// The maps, as the choice sees them.
struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow> {
        let row = SERVICES.get_ptr(key)?;
        // SAFETY: a row's memory stays mapped while the program runs. The key is read after the entry: if that memory
        // was handed to another service meanwhile, the key says so.
        unsafe {
            let entry = (&raw const (*row).entry).read_volatile();
            Some(ServiceRow {
                key: (&raw const (*row).key).read_volatile(),
                entry,
            })
        }
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<BackendId> {
        // SAFETY: user space removes a slot only after no service entry has named its generation for a while.
        unsafe { BACKEND_TABLE.get(key) }.copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<BackendEntry> {
        // SAFETY: as for slots.
        unsafe { BACKENDS.get(id) }.copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        // SAFETY: a row that the LRU hands to another client meanwhile names a backend that is checked against the
        // service's own table before use.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey, entry: &AffinityEntry) {
        let _ = AFFINITY.insert(key, entry, 0);
    }
}

/// The dialling socket, as the choice sees it. Each answer is a helper call, made only when asked for.
struct Socket<'a> {
    ctx: &'a SockAddrContext,
    dialled: &'a ServiceKey,
}

impl Caller for Socket<'_> {
    #[inline(always)]
    fn spread(&self) -> u32 {
        if self.dialled.protocol != UDP {
            // SAFETY: a plain helper call.
            return unsafe { bpf_get_prandom_u32() };
        }
        let SocketKey(cookie) = ctx::socket(self.ctx);
        let mut destination = u32::from(u16::from_ne_bytes(self.dialled.port));
        for word in self.dialled.address.0.as_chunks().0 {
            destination ^= u32::from_ne_bytes(*word);
        }
        (mix(cookie as u32 ^ (cookie >> 32) as u32) >> 32) as u32 ^ destination
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: a plain helper call on the program's own context.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { bpf_ktime_get_ns() }
    }
}
