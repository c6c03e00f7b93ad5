//! Counters. A row is made by the first event that it counts, so backends that nobody uses cost nothing.

use core::arch::asm;

use agent_ebpf::abi::{
    BackendId, BackendStats, EVENT_CLOSED, EVENT_FAILED, Opened, SOCKET_FOLLOWED, SOCKET_OVER,
    SOCKET_RELEASED, ServiceStats, SocketEntry, UDP,
};
use agent_ebpf::histogram::{self, BUCKETS};
use aya_ebpf::bindings::{BPF_TCP_CLOSE, BPF_TCP_SYN_SENT};
use aya_ebpf::btf_maps::PerCpuHashMap;
use aya_ebpf::programs::SockContext;

use crate::events::Event;
use crate::maps::{OUTSIDE_OPENS, SERVICE_STATS, SOCKETS, STATS};
use crate::{ctx, events, follow};

/// `BPF_NOEXIST`: two CPUs may count the same first event; the loser then finds the winner's row.
pub(crate) const IF_ABSENT: u64 = 1;

/// How long a client has to have waited for it to count as a failure that it gave up, in nanoseconds. The first SYN is
/// then repeated (RFC 6298).
const PATIENCE_NS: u64 = 1_000_000_000;

pub(crate) fn opened(backend: BackendId) {
    with_row(&STATS, &backend, &NO_BACKEND_STATS, |stats| {
        add(&mut stats.opens, 1)
    });
}

/// Connections to the backend were carried over from another version's maps.
#[inline(always)]
pub(crate) fn carried_over(order: Opened) {
    with_row(&STATS, &order.backend, &NO_BACKEND_STATS, |stats| {
        add(&mut stats.opens, order.connections.into());
    });
}

/// A socket no longer counts for the backend. With `failed`, because it did not come to be connected.
pub(crate) fn ended(backend: BackendId, failed: bool) {
    of_opened(backend, |stats| {
        add(&mut stats.closes, 1);
        if failed {
            add(&mut stats.failures, 1);
        }
    });
}

/// A TCP connection to the backend was established `took` nanoseconds after connect.
#[inline(always)]
pub(crate) fn established(backend: BackendId, took: u64) {
    of_opened(backend, |stats| {
        stats.handshakes += 1;
        stats.handshake_ns += took;
        // The mask says to the verifier what `bucket` promises.
        stats.handshake_buckets[histogram::bucket(took) & (BUCKETS - 1)] += 1;
    });
}

/// A TCP connection to the backend is over.
#[inline(always)]
pub(crate) fn carried(backend: BackendId, sent: u64, received: u64) {
    of_opened(backend, |stats| {
        stats.bytes_sent += sent;
        stats.bytes_received += received;
    });
}

/// A client whose packets are translated was given the backend.
pub(crate) fn opened_outside(backend: BackendId) {
    with_row(&OUTSIDE_OPENS, &backend, &NO_OPENS, |opens| add(opens, 1));
}

pub(crate) fn refused(service_id: u32) {
    of_service(service_id, |stats| add(&mut stats.no_backend, 1));
}

pub(crate) fn hole(service_id: u32) {
    of_service(service_id, |stats| add(&mut stats.hole, 1));
}

/// A socket is released: it no longer counts for the backend that it was sent to, if its connection did still. The row of
/// an established TCP connection stays until that is over, which is mostly a moment later.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    let cookie = ctx::socket(ctx);
    let Some(entry) = SOCKETS.get_ptr_mut(cookie) else {
        return;
    };
    // SAFETY: only the socket's own programs write or remove its row.
    let entry = unsafe { &mut *entry };
    // Whoever ends the row may do so from the moment that its flag is set.
    let (backend, tcp) = (entry.service.backend, entry.protocol != UDP);
    let before = ctx::set_flag(entry, SOCKET_RELEASED);
    if before & SOCKET_FOLLOWED != 0 {
        if before & SOCKET_OVER == 0 {
            ended(backend, false);
        } else {
            let _ = SOCKETS.remove(cookie);
        }
        return;
    }
    let event = Event {
        duration_ns: follow::since(entry),
        ..Event::default()
    };
    let handshake = if tcp {
        handshake(ctx, entry)
    } else {
        Handshake::Done
    };
    let failed = match handshake {
        Handshake::Done => false,
        // One that its client gave up soon says nothing of the backend.
        Handshake::Waiting => event.duration_ns >= PATIENCE_NS,
        Handshake::Refused => true,
    };
    ended(backend, failed);
    if !tcp {
        events::sampled(EVENT_CLOSED, cookie, entry, event);
    } else if handshake != Handshake::Done {
        events::sampled(EVENT_FAILED, cookie, entry, event);
    }
    let _ = SOCKETS.remove(cookie);
}

/// How the handshake stands of a socket that is released.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Waiting,
    Refused,
    /// Or nothing is known of it.
    Done,
}

/// Of a TCP socket that `kn_sock_ops` does not follow.
#[inline(always)]
fn handshake(ctx: &SockContext, entry: &SocketEntry) -> Handshake {
    // SAFETY: the kernel passes a valid context, and the verifier checks the access.
    match unsafe { (*ctx.sock).state } {
        BPF_TCP_SYN_SENT => Handshake::Waiting,
        // What another version began may have been established.
        BPF_TCP_CLOSE if entry.started_ns != 0 => Handshake::Refused,
        _ => Handshake::Done,
    }
}

/// New rows are copied from here: on a program's stack they would take a good part of it.
static NO_BACKEND_STATS: BackendStats = BackendStats::ZERO;
static NO_OPENS: u64 = 0;
static NO_SERVICE_STATS: ServiceStats = ServiceStats::ZERO;

/// Adds to a counter in this CPU's own row. What counts for a process may be interrupted by what counts for the network stack on
/// the same CPU, or give way to another process: one instruction loses neither.
#[inline(always)]
fn add(counter: &mut u64, by: u64) {
    // SAFETY: the operand is aligned, and valid for the row's life.
    unsafe {
        asm!(
            "lock *(u64 *)({at} + 0) += {by}",
            at = in(reg) counter,
            by = in(reg) by,
        );
    }
}

/// Never makes a row: the first open did, and the backend may be gone, and its row with it.
#[inline(always)]
fn of_opened(backend: BackendId, change: impl FnOnce(&mut BackendStats)) {
    if let Some(stats) = STATS.get_ptr_mut(backend) {
        // SAFETY: as in `with_row`.
        change(unsafe { &mut *stats });
    }
}

#[inline(always)]
fn of_service(service_id: u32, change: impl FnOnce(&mut ServiceStats)) {
    with_row(&SERVICE_STATS, &service_id, &NO_SERVICE_STATS, change);
}

#[inline(always)]
fn with_row<K, V, const N: usize, const F: usize>(
    map: &PerCpuHashMap<K, V, N, F>,
    key: &K,
    empty: &'static V,
    change: impl FnOnce(&mut V),
) {
    let row = match map.get_ptr_mut(key) {
        Some(row) => row,
        None => {
            // A full map loses this count and nothing else; the fill is shown by `kernelet map list`.
            let _ = map.insert(key, empty, IF_ABSENT);
            match map.get_ptr_mut(key) {
                Some(row) => row,
                None => return,
            }
        }
    };
    // SAFETY: this CPU's own row. What others on this CPU may write meanwhile, [`add`] writes.
    change(unsafe { &mut *row });
}
