//! Counters. A row is made by the first event that it counts, so backends that nobody uses cost nothing.

use agent_ebpf::abi::{
    BackendId, BackendStats, EVENT_CLOSED, SOCKET_FOLLOWED, SOCKET_OVER, SOCKET_RELEASED,
    ServiceStats, UDP,
};
use agent_ebpf::histogram::{self, BUCKETS};
use aya_ebpf::btf_maps::PerCpuHashMap;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::SockContext;

use crate::events::Event;
use crate::maps::{SERVICE_STATS, SOCKETS, STATS};
use crate::{ctx, events};

/// `BPF_NOEXIST`: two CPUs may count the same first event; the loser then finds the winner's row.
pub(crate) const IF_ABSENT: u64 = 1;

pub(crate) fn opened(backend: BackendId) {
    with_row(&STATS, &backend, &NO_BACKEND_STATS, |stats| {
        stats.opens += 1
    });
}

pub(crate) fn closed(backend: BackendId) {
    of_opened(backend, |stats| stats.closes += 1);
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

/// A TCP connection to the backend ended before it was established.
#[inline(always)]
pub(crate) fn failed(backend: BackendId) {
    of_opened(backend, |stats| stats.failures += 1);
}

/// A TCP connection to the backend is over.
#[inline(always)]
pub(crate) fn carried(backend: BackendId, sent: u64, received: u64) {
    of_opened(backend, |stats| {
        stats.bytes_sent += sent;
        stats.bytes_received += received;
    });
}

pub(crate) fn refused(service_id: u32) {
    of_service(service_id, |stats| stats.no_backend += 1);
}

pub(crate) fn hole(service_id: u32) {
    of_service(service_id, |stats| stats.hole += 1);
}

/// A socket is released: it no longer counts for the backend that it was sent to, if its connection did still. The row of a TCP connection stays until
/// that is over, which is mostly a moment later.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    let cookie = ctx::socket(ctx);
    let Some(entry) = SOCKETS.get_ptr_mut(cookie) else {
        return;
    };
    // SAFETY: only the socket's own programs write or remove its row.
    let entry = unsafe { &mut *entry };
    let backend = entry.service.backend;
    let before = ctx::set_flag(entry, SOCKET_RELEASED);
    if before & SOCKET_OVER == 0 {
        closed(backend);
    }
    if before & SOCKET_FOLLOWED != 0 && before & SOCKET_OVER == 0 {
        return;
    }
    if entry.protocol == UDP {
        // SAFETY: a plain helper call.
        let now = unsafe { bpf_ktime_get_ns() };
        let event = Event {
            duration_ns: now.saturating_sub(entry.started_ns),
            ..Event::default()
        };
        events::sampled(EVENT_CLOSED, cookie, entry, event);
    }
    let _ = SOCKETS.remove(cookie);
}

/// New rows are copied from here: on a program's stack they would take a good part of it.
static NO_BACKEND_STATS: BackendStats = BackendStats::ZERO;
static NO_SERVICE_STATS: ServiceStats = ServiceStats::ZERO;

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
    // SAFETY: this CPU's own row, and the program is not preempted by another that writes it on this CPU.
    change(unsafe { &mut *row });
}
