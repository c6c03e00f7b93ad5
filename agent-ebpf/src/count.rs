//! Counters. A row is made by the first event that it counts, so backends that nobody uses cost nothing.

use agent_ebpf::abi::{BackendId, ServiceStats};
use aya_ebpf::btf_maps::PerCpuHashMap;
use aya_ebpf::programs::SockContext;

use crate::ctx;
use crate::maps::{SERVICE_STATS, SOCKETS, STATS};

/// `BPF_NOEXIST`: two CPUs may count the same first event; the loser then finds the winner's row.
pub(crate) const IF_ABSENT: u64 = 1;

pub(crate) fn opened(backend: BackendId) {
    with_row(&STATS, &backend, |stats| stats.opens += 1);
}

/// Never makes a row: the backend may be gone, and its row with it.
pub(crate) fn closed(backend: BackendId) {
    if let Some(stats) = STATS.get_ptr_mut(backend) {
        // SAFETY: as in `with_row`.
        unsafe { (*stats).closes += 1 };
    }
}

pub(crate) fn refused(service_id: u32) {
    with_row(&SERVICE_STATS, &service_id, |stats: &mut ServiceStats| {
        stats.no_backend += 1
    });
}

pub(crate) fn hole(service_id: u32) {
    with_row(&SERVICE_STATS, &service_id, |stats: &mut ServiceStats| {
        stats.hole += 1
    });
}

/// A socket is released: it no longer counts for the backend that it was sent to.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    let socket = ctx::socket(ctx);
    // SAFETY: only the socket's own programs write or remove its row, and this is the last of them.
    if let Some(entry) = unsafe { SOCKETS.get(socket) } {
        closed(entry.service.backend);
        let _ = SOCKETS.remove(socket);
    }
}

#[inline(always)]
fn with_row<K, V: Default, const N: usize, const F: usize>(
    map: &PerCpuHashMap<K, V, N, F>,
    key: &K,
    change: impl FnOnce(&mut V),
) {
    let row = match map.get_ptr_mut(key) {
        Some(row) => row,
        None => {
            // A full map loses this count and nothing else; the fill is shown by `kernelet map list`.
            let _ = map.insert(key, V::default(), IF_ABSENT);
            match map.get_ptr_mut(key) {
                Some(row) => row,
                None => return,
            }
        }
    };
    // SAFETY: this CPU's own row, and the program is not preempted by another that writes it on this CPU.
    change(unsafe { &mut *row });
}
