//! What becomes of a TCP connection to a backend: how long its handshake took, and how much it carried.
//!
//! Every call of `kn_sock_ops` is felt in `connect()`, so nothing is asked for before the connection is established. One that
//! fails is noticed when its socket is released, or dials again ([`crate::count`], [`crate::translate`]).

use agent_ebpf::abi::{
    Address, EVENT_CLOSED, EVENT_ESTABLISHED, Port, SOCKET_FOLLOWED, SOCKET_OVER, SOCKET_RELEASED,
    SocketEntry, SocketKey,
};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_TCP_CLOSE,
};
use aya_ebpf::programs::SockOpsContext;

use crate::events::Event;
use crate::maps::SOCKETS;
use crate::{clock, count, ctx, events};

const AF_INET: u32 = 2;

/// The kernel tells of every TCP socket below the cgroup; most have nothing to do with services.
#[inline(always)]
pub(crate) fn event(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => over(ctx),
        _ => {}
    }
}

/// The backend accepted: asks to be told when the connection is over.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let Some((cookie, entry)) = entry(ctx) else {
        return;
    };
    // The row may be of an earlier connect of the same socket.
    if ctx::flags(entry) & SOCKET_OVER != 0
        || (entry.backend_address, entry.backend_port) != remote(ctx)
    {
        return;
    }
    let took = handshake_ns(ctx, entry);
    entry.detail = took;
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if ctx.set_cb_flags(flags as i32).is_ok() {
        ctx::set_flag(entry, SOCKET_FOLLOWED);
    }
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

/// The connection is over.
#[inline(always)]
fn over(ctx: &SockOpsContext) {
    let Some((cookie, entry)) = followed(ctx) else {
        return;
    };
    // SAFETY: the kernel passes a valid context, and the verifier checks each access.
    let (bytes_sent, bytes_received) =
        unsafe { ((*ctx.ops).bytes_acked, (*ctx.ops).bytes_received) };
    let event = Event {
        duration_ns: since(entry),
        bytes_sent,
        bytes_received,
    };
    // Whoever ends the row may do so from the moment that its flag is set.
    let backend = entry.service.backend;
    count::carried(backend, bytes_sent, bytes_received);
    events::sampled(EVENT_CLOSED, cookie, entry, event);
    if ctx::set_flag(entry, SOCKET_OVER) & SOCKET_RELEASED != 0 {
        let _ = SOCKETS.remove(cookie);
    } else {
        count::ended(backend, false);
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
        return (Address::v4_word(ctx.remote_ip4()), [a, b]);
    }
    // SAFETY: the kernel passes a valid context. Each word is read by itself: the verifier takes no copy of the whole.
    let word = |n: usize| unsafe { (&raw const (*ctx.ops).remote_ip6[n]).read_volatile() };
    let address = Address::from_words([word(0), word(1), word(2), word(3)]);
    (address, [a, b])
}

/// How long the handshake took: TCP's own first sample of the round-trip time, which is of the SYN. Where SYNs had to be
/// repeated there is none (RFC 6298), and it took a second at least.
#[inline(always)]
fn handshake_ns(ctx: &SockOpsContext, entry: &SocketEntry) -> u64 {
    // SAFETY: the kernel passes a valid context, and the verifier checks the access. In eighths of a microsecond.
    match unsafe { (*ctx.ops).srtt_us } >> 3 {
        0 => since(entry),
        sample => u64::from(sample) * 1_000,
    }
}

#[inline(always)]
pub(crate) fn since(entry: &SocketEntry) -> u64 {
    clock::socket_ns(ctx::flags(entry)).saturating_sub(entry.started_ns)
}
