//! Records for people who watch: sampled sockets and clients outside, and refusals: of sockets every one, of clients outside
//! not too many.

use agent_ebpf::abi::{
    Connection, DropReason, EVENT_BY_OUTSIDER, EVENT_BY_POD, EVENT_DROPPED, EVENT_HOLE,
    EVENT_NO_BACKEND, EVENT_OPENED, FlowEvent, FlowKey, SOCKET_SAMPLED, ServiceKey, Side,
    SocketEntry, SocketKey, begins, is_sampled,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_current_comm;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns,
};
use aya_ebpf::programs::SockAddrContext;

use crate::maps::{BY_SERVICE, CONFIG, EVENTS, EVENTS_LOST, admits};
use crate::{clock, ctx};

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
    match sample_every() {
        0 => false,
        // SAFETY: a plain helper call.
        every => (unsafe { bpf_get_prandom_u32() }).is_multiple_of(every),
    }
}

#[inline(always)]
fn sample_every() -> u32 {
    CONFIG.get(0).map_or(0, |config| config.sample_every)
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

/// Records that a connect or a datagram was refused, if by [`EVENT_DROPPED`] because of the service's source ranges.
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
        if kind == EVENT_DROPPED {
            event.reason = DropReason::SourceRange as u8;
        }
        process(event);
    });
}

/// Records that a client whose packets are translated was given a backend, if its flow is one of those that are recorded.
#[inline(never)]
pub(crate) fn given(key: &FlowKey, row: &Connection) {
    if !is_sampled(row.key_hash, sample_every()) {
        return;
    }
    write(|event| {
        of_packet(event, EVENT_OPENED, key);
        event.backend_address = row.destination;
        event.backend_port = row.destination_port;
        event.service_id = row.service_id;
        event.backend = row.backend;
    });
}

/// Records that such a client was refused, as its service has no backend, or a row was missing.
#[inline(never)]
pub(crate) fn turned_away(key: &FlowKey, service_id: u32, is_hole: bool) {
    let kind = match is_hole {
        true => EVENT_HOLE,
        false => EVENT_NO_BACKEND,
    };
    write_some(|event| {
        of_packet(event, kind, key);
        event.service_id = service_id;
    });
}

/// Records that a connection of such a client was not begun.
#[inline(never)]
pub(crate) fn not_begun(key: &FlowKey, reason: DropReason) {
    if key.side == Side::OUT || !begins(reason) {
        return;
    }
    write_some(|event| {
        of_packet(event, EVENT_DROPPED, key);
        event.reason = reason as u8;
    });
}

#[inline(always)]
fn of_packet(event: &mut FlowEvent, kind: u8, key: &FlowKey) {
    header(event, kind, key.protocol);
    event.cookie = SocketKey(key.hash().into());
    event.by = match key.side {
        Side::FROM_POD => EVENT_BY_POD,
        _ => EVENT_BY_OUTSIDER,
    };
    event.comm = key.source.octets();
    event.client_port = key.source_port;
    event.dialled = key.destination;
    event.dialled_port = key.destination_port;
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

/// The same for what a flood of packets could bring about.
#[inline(always)]
fn write_some(fill: impl FnOnce(&mut FlowEvent)) {
    match admits(BY_SERVICE, clock::coarse_ns()) {
        true => write(fill),
        false => lost(),
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
