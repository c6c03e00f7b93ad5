//! Records for people who watch: sampled sockets, and every refusal.

use agent_ebpf::abi::{
    EVENT_OPENED, FlowEvent, SOCKET_SAMPLED, ServiceKey, SocketEntry, SocketKey,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_current_comm;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns,
};
use aya_ebpf::programs::SockAddrContext;

use crate::ctx;
use crate::maps::{CONFIG, EVENTS, EVENTS_LOST};

/// What some kinds of records say beyond what the socket's row says.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) duration_ns: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
}

/// Draws whether a new socket's events are recorded.
#[inline(always)]
pub(crate) fn drawn() -> bool {
    match CONFIG.get(0) {
        Some(config) if config.sample_every != 0 => {
            // SAFETY: a plain helper call.
            (unsafe { bpf_get_prandom_u32() }).is_multiple_of(config.sample_every)
        }
        _ => false,
    }
}

/// Records an event of a socket that has a row, if it is one of those that are recorded.
#[inline(always)]
pub(crate) fn sampled(kind: u8, cookie: SocketKey, entry: &SocketEntry, event: Event) {
    if ctx::flags(entry) & SOCKET_SAMPLED == 0 {
        return;
    }
    write(|record| {
        of_socket(record, kind, cookie, entry);
        record.duration_ns = event.duration_ns;
        record.bytes_sent = event.bytes_sent;
        record.bytes_received = event.bytes_received;
    });
}

/// Records that the process which runs now opened a socket to a backend.
#[inline(always)]
pub(crate) fn opened(cookie: SocketKey, entry: &SocketEntry) {
    if ctx::flags(entry) & SOCKET_SAMPLED != 0 {
        write(|record| {
            of_socket(record, EVENT_OPENED, cookie, entry);
            process(record);
        });
    }
}

/// Records that a connect or a datagram was refused.
#[inline(never)]
pub(crate) fn refused(ctx: &SockAddrContext, dialled: &ServiceKey, service_id: u32, kind: u8) {
    write(|event| {
        header(event, kind, dialled.protocol);
        event.cookie = ctx::socket(ctx);
        // SAFETY: a plain helper call on the program's own context.
        event.netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        event.dialled = dialled.address;
        event.dialled_port = dialled.port;
        event.service_id = service_id;
        process(event);
    });
}

#[inline(always)]
fn of_socket(event: &mut FlowEvent, kind: u8, cookie: SocketKey, entry: &SocketEntry) {
    header(event, kind, entry.protocol);
    event.cookie = cookie;
    event.netns_cookie = entry.netns_cookie;
    event.dialled = entry.service.address;
    event.dialled_port = entry.service.port;
    event.backend_address = entry.backend_address;
    event.backend_port = entry.backend_port;
    event.service_id = entry.service.service_id;
    event.backend = entry.service.backend;
}

#[inline(always)]
fn header(event: &mut FlowEvent, kind: u8, protocol: u8) {
    // SAFETY: a plain helper call.
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    event.kind = kind;
    event.protocol = protocol;
}

/// The process that runs now.
#[inline(always)]
fn process(event: &mut FlowEvent) {
    event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the helper writes a name of at most that length, or zeros when it fails.
    unsafe { bpf_get_current_comm(event.comm.as_mut_ptr().cast(), 16) };
}

/// Counts a record that is not made.
#[inline(always)]
pub(crate) fn lost() {
    if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: this CPU's own row.
        unsafe { *lost += 1 };
    }
}

/// Fills a record where it lies in the ring: on a program's stack it would take a quarter of it.
#[inline(always)]
fn write(fill: impl FnOnce(&mut FlowEvent)) {
    let Some(mut record) = EVENTS.reserve(0) else {
        lost();
        return;
    };
    let words = record.as_mut_ptr().cast::<u64>();
    for n in 0..size_of::<FlowEvent>() / size_of::<u64>() {
        // SAFETY: within the record, which is made of whole words. Volatile, as else it becomes a call of memset, and a
        // program that dials has no stack left for one more call: Linux 6.1 counts at least 32 bytes for each.
        unsafe { words.add(n).write_volatile(0) };
    }
    // SAFETY: the memory is as large and aligned as the record, for which all zeros is a value.
    let event = unsafe { &mut *record.as_mut_ptr() };
    fill(event);
    record.submit(0);
}
