//! Service address to backend address, when a socket connects or a datagram leaves.

use core::mem::MaybeUninit;

use agent_ebpf::abi::{
    BackendEntry, DropReason, EVENT_DROPPED, EVENT_HOLE, EVENT_NO_BACKEND, Place, ReverseEntry,
    ReverseKey, SOCKET_FOLLOWED, SOCKET_OVER, SOCKET_SAMPLED, ServiceKey, SocketEntry, SocketKey,
    SourceRange, UDP,
};
use agent_ebpf::node_port::{self, Node as _};
use agent_ebpf::select::{Caller, Picked, Served, Verdict, choose, mix};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32};
use aya_ebpf::programs::SockAddrContext;

use crate::bind::ThisNode;
use crate::count::IF_ABSENT;
use crate::ctx::Form;
use crate::maps::{SOCK_REVERSE, SOCKETS};
use crate::packets::dropped;
use crate::tables::KernelTables;
use crate::{PROCEED, clock, count, ctx, events, refuse, rows};

const ECONNREFUSED: i32 = 111;
/// What a firewall answers to the node's own sockets.
const EPERM: i32 = 1;

/// A socket connects, or a datagram leaves a UDP socket that names its destination.
#[inline(always)]
pub(crate) fn dial<F: Form>(ctx: &SockAddrContext) -> i32 {
    let Some(dialled) = &ctx::key::<F>(ctx) else {
        return PROCEED;
    };
    let socket = Socket::of(ctx, dialled);
    match chosen(&socket, dialled) {
        Verdict::NotService | Verdict::ByPacket => PROCEED,
        Verdict::Backend {
            service_id,
            picked,
            entry,
        } => {
            // A UDP socket sends many datagrams to one place: what is likely costs least.
            if socket.last() != Some(picked) {
                let chosen = Chosen {
                    service_id,
                    picked,
                    entry,
                };
                remember(ctx, dialled, &chosen);
            }
            ctx::set_address::<F>(ctx, &entry.address, entry.port);
            PROCEED
        }
        Verdict::NotServed { service_id } => {
            dropped(DropReason::SourceRange);
            events::refused(ctx, dialled, service_id, EVENT_DROPPED);
            refuse(EPERM)
        }
        Verdict::NoBackend { service_id } => {
            count::refused(service_id);
            events::refused(ctx, dialled, service_id, EVENT_NO_BACKEND);
            refuse(ECONNREFUSED)
        }
        Verdict::Hole { service_id } => {
            count::hole(service_id);
            events::refused(ctx, dialled, service_id, EVENT_HOLE);
            refuse(ECONNREFUSED)
        }
    }
}

/// What becomes of the dial. The rows of node ports and host ports stand under another address than is dialled.
#[inline(always)]
fn chosen(socket: &Socket<'_>, dialled: &ServiceKey) -> Verdict {
    let node = ThisNode(socket.ctx);
    // A host port may be of the node's loopback alone.
    if node_port::is_elsewhere(&node, &dialled.address) {
        return Verdict::NotService;
    }
    let mut key = *dialled;
    for _ in 0..2 {
        let verdict = choose(&KernelTables, socket, &key);
        if verdict != Verdict::NotService || !node_port::is_dialled(&node, dialled) {
            return verdict;
        }
        key.address = node_port::any(&dialled.address);
    }
    Verdict::NotService
}

/// A backend, and whose.
struct Chosen {
    service_id: u32,
    picked: Picked,
    entry: BackendEntry,
}

/// Notes where the socket goes now, and counts it when that is not where it went before. Not inlined: a program has 512
/// bytes of stack, and what the choice used is free again by now. It may call nothing, not even memset: the two frames
/// alone reach what Linux 6.1 allows.
#[inline(never)]
fn remember(ctx: &SockAddrContext, dialled: &ServiceKey, chosen: &Chosen) {
    let socket = ctx::socket(ctx);
    let (id, backend) = (chosen.picked.backend, &chosen.entry);
    let flags = if events::drawn() { SOCKET_SAMPLED } else { 0 };
    let now = SocketEntry {
        started_ns: clock::socket_ns(flags),
        // SAFETY: a plain helper call on the program's own context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        flags,
        backend_address: backend.address,
        backend_port: backend.port,
        protocol: dialled.protocol,
        pad: 0,
        service: ReverseEntry {
            address: dialled.address,
            port: dialled.port,
            pad: [0; 2],
            backend: id,
            service_id: chosen.service_id,
        },
        detail: match dialled.protocol {
            UDP => chosen.picked.place.to_detail(),
            _ => 0,
        },
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
    // SAFETY: only the socket's own programs write or remove its row.
    let known = unsafe { &mut *known };
    if dialled.protocol == UDP {
        let service = &known.service;
        if (service.backend, service.address, service.port) == (id, dialled.address, dialled.port) {
            // It stands elsewhere in a new table.
            known.detail = now.detail;
            return;
        }
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
    let (before, flags) = (known.service.backend, ctx::flags(known));
    let over = flags & SOCKET_OVER != 0;
    // A TCP socket that dials anew without having been followed was refused.
    let refused = dialled.protocol != UDP && flags & (SOCKET_FOLLOWED | SOCKET_OVER) == 0;
    if over || refused || before != id {
        if !over {
            count::ended(before, refused && known.started_ns != 0);
        }
        count::opened(id);
    }
    *known = now;
    events::opened(socket, &now);
}

/// The dialling socket, as the choice sees it. Each answer is a helper call, made only when asked for.
struct Socket<'a> {
    ctx: &'a SockAddrContext,
    dialled: &'a ServiceKey,
    /// Of a UDP socket.
    cookie: SocketKey,
    /// The row of a UDP socket that has dialled before.
    known: Option<*mut SocketEntry>,
}

impl<'a> Socket<'a> {
    #[inline(always)]
    fn of(ctx: &'a SockAddrContext, dialled: &'a ServiceKey) -> Self {
        let (mut cookie, mut known) = (SocketKey(0), None);
        if dialled.protocol == UDP {
            cookie = ctx::socket(ctx);
            known = SOCKETS.get_ptr_mut(cookie);
        }
        Self {
            ctx,
            dialled,
            cookie,
            known,
        }
    }
}

impl Caller for Socket<'_> {
    #[inline(always)]
    fn spread(&self) -> u32 {
        if self.dialled.protocol != UDP {
            // SAFETY: a plain helper call.
            return unsafe { bpf_get_prandom_u32() };
        }
        let SocketKey(cookie) = self.cookie;
        let mut destination = u32::from(u16::from_ne_bytes(self.dialled.port));
        for word in self.dialled.address.words() {
            destination ^= word;
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
        clock::coarse_ns()
    }

    #[inline(always)]
    fn served(&self, service_id: u32) -> Served {
        match self.dialled.address.as_v4() {
            Some(_) => is_served(self.ctx, service_id, true),
            None => is_served(self.ctx, service_id, false),
        }
    }

    #[inline(always)]
    fn last(&self) -> Option<Picked> {
        // SAFETY: only the socket's own programs write or remove its row. Two threads that send at once may read each
        // other's half: what they read is checked against the service's own table before use.
        let known = unsafe { &*self.known? };
        let same = (known.service.address, known.service.port)
            == (self.dialled.address, self.dialled.port);
        same.then(|| Picked {
            backend: known.service.backend,
            place: Place::from_detail(known.detail),
        })
    }
}

/// The node's own sockets speak with the node's address. A function of its own, for its stack.
#[inline(never)]
fn is_served(ctx: &SockAddrContext, service_id: u32, is_ipv4: bool) -> Served {
    if !ThisNode(ctx).is_here() {
        return Served::ByPacket;
    }
    let client = SourceRange {
        service_id: service_id.to_be_bytes(),
        address: rows::at_pods(is_ipv4),
    };
    match rows::serves(&client) {
        true => Served::Yes,
        false => Served::No,
    }
}
