//! What becomes of a TCP connection to a backend: how long its handshake took, whether it failed, how much it carried.

use agent_ebpf::abi::{
    Address, EVENT_CLOSED, EVENT_ESTABLISHED, EVENT_FAILED, Port, SOCKET_FOLLOWED, SOCKET_OVER,
    SOCKET_RELEASED, SocketEntry, SocketKey,
};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;

use crate::events::Event;
use crate::maps::SOCKETS;
use crate::{count, ctx, events};

const AF_INET: u32 = 2;

/// How long a client has to have waited for it to count as a failure that it gave up, in nanoseconds. The first SYN is
/// then repeated (RFC 6298).
const PATIENCE_NS: u64 = 1_000_000_000;

/// The kernel tells of every TCP socket below the cgroup; most have nothing to do with services.
#[inline(always)]
pub(crate) fn event(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => over(ctx),
        _ => {}
    }
}

/// The SYN is about to leave: asks to be told of the socket's states if it goes to a backend.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let Some((_, entry)) = entry(ctx) else {
        return;
    };
    // The row may be of an earlier connect of the same socket.
    if (entry.backend_address, entry.backend_port) != remote(ctx) {
        return;
    }
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if ctx.set_cb_flags(flags as i32).is_ok() {
        // SAFETY: a plain helper call.
        entry.started_ns = unsafe { bpf_ktime_get_ns() };
        // Not atomic: the application is in connect, so it releases nothing now.
        entry.flags |= SOCKET_FOLLOWED;
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let Some((cookie, entry)) = followed(ctx) else {
        return;
    };
    let took = since(entry);
    entry.handshake_ns = took;
    // Another program on the way here may have set its own flags in the place of ours.
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    count::established(entry.service.backend, took);
    events::sampled(
        EVENT_ESTABLISHED,
        cookie,
        entry,
        Event {
            duration_ns: took,
            ..Event::default()
        },
    );
}

/// The connection is over, or never came about.
#[inline(always)]
fn over(ctx: &SockOpsContext) {
    let Some((cookie, entry)) = followed(ctx) else {
        return;
    };
    let mut event = Event {
        duration_ns: since(entry),
        ..Event::default()
    };
    if ctx.arg(0) == BPF_TCP_SYN_SENT {
        // One that its client gave up soon says nothing of the backend.
        let given_up = ctx::flags(entry) & SOCKET_RELEASED != 0;
        if !given_up || event.duration_ns >= PATIENCE_NS {
            count::failed(entry.service.backend);
        }
        events::sampled(EVENT_FAILED, cookie, entry, event);
    } else {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access.
        unsafe {
            event.bytes_sent = (*ctx.ops).bytes_acked;
            event.bytes_received = (*ctx.ops).bytes_received;
        }
        count::carried(
            entry.service.backend,
            event.bytes_sent,
            event.bytes_received,
        );
        events::sampled(EVENT_CLOSED, cookie, entry, event);
    }
    if ctx::set_flag(entry, SOCKET_OVER) & SOCKET_RELEASED != 0 {
        let _ = SOCKETS.remove(cookie);
    } else {
        count::closed(entry.service.backend);
    }
}

#[inline(always)]
fn followed<'a>(ctx: &SockOpsContext) -> Option<(SocketKey, &'a mut SocketEntry)> {
    let (cookie, entry) = entry(ctx)?;
    if ctx::flags(entry) & (SOCKET_FOLLOWED | SOCKET_OVER) == SOCKET_FOLLOWED {
        Some((cookie, entry))
    } else {
        None
    }
}

#[inline(always)]
fn entry<'a>(ctx: &SockOpsContext) -> Option<(SocketKey, &'a mut SocketEntry)> {
    let cookie = ctx::socket(ctx);
    let entry = SOCKETS.get_ptr_mut(cookie)?;
    // SAFETY: only the socket's own programs write or remove its row. The kernel calls this one with the socket locked;
    // what its release writes at the same time are flags, and those are atomic.
    Some((cookie, unsafe { &mut *entry }))
}

/// Where the socket connects to.
#[inline(always)]
fn remote(ctx: &SockOpsContext) -> (Address, Port) {
    // The field holds network-order bytes, in the last two of its four.
    let [_, _, a, b] = ctx.remote_port().to_ne_bytes();
    if ctx.family() == AF_INET {
        return (Address::v4(ctx.remote_ip4().to_ne_bytes()), [a, b]);
    }
    let mut address = [0; 16];
    for n in 0..4 {
        // SAFETY: the kernel passes a valid context. Each word is read by itself: the verifier takes no copy of the whole.
        let word = unsafe { (&raw const (*ctx.ops).remote_ip6[n]).read_volatile() };
        address[4 * n..4 * n + 4].copy_from_slice(&word.to_ne_bytes());
    }
    (Address(address), [a, b])
}

#[inline(always)]
fn since(entry: &SocketEntry) -> u64 {
    // SAFETY: a plain helper call.
    unsafe { bpf_ktime_get_ns() }.saturating_sub(entry.started_ns)
}
