//! One flow event under the cluster's names, and whether a watcher wants it. Pure.

use agent_ebpf::abi::{
    DropReason, EVENT_BY_OUTSIDER, EVENT_BY_POD, EVENT_BY_SOCKET, EVENT_CLOSED, EVENT_DROPPED,
    EVENT_ESTABLISHED, EVENT_FAILED, EVENT_HOLE, EVENT_NO_BACKEND, EVENT_OPENED, FlowEvent, Scope,
    ServiceKey, Side, SocketKey, TCP,
};
use jiff::{SignedDuration, Timestamp};

use super::clients::Client;
use super::names::{Names, is_asked_for, protocol, socket_address};
use crate::dataplane::Outside;
use crate::introspection as api;

/// What a watcher may ask for.
pub const VERDICTS: [&str; 7] = [
    "opened",
    "established",
    "failed",
    "closed",
    "no-backend",
    "hole",
    DROPPED,
];

/// A packet at a pod's link that a network policy refused, or a connection from outside that was not let in.
pub const DROPPED: &str = "dropped";

/// What became of the socket.
pub(super) fn verdict(kind: u8) -> &'static str {
    match kind {
        EVENT_OPENED => VERDICTS[0],
        EVENT_ESTABLISHED => VERDICTS[1],
        EVENT_FAILED => VERDICTS[2],
        EVENT_CLOSED => VERDICTS[3],
        EVENT_NO_BACKEND => VERDICTS[4],
        EVENT_HOLE => VERDICTS[5],
        EVENT_DROPPED => DROPPED,
        _ => "unknown",
    }
}

/// Whether the kernel refused what the application asked for.
pub(super) fn is_refusal(kind: u8) -> bool {
    matches!(kind, EVENT_NO_BACKEND | EVENT_HOLE | EVENT_DROPPED)
}

/// Why: the verdict, and of what was dropped the reason by which that is counted.
pub(super) fn reason(event: &FlowEvent) -> &'static str {
    match event.kind {
        EVENT_DROPPED => {
            let mut all = DropReason::ALL.into_iter();
            let found = all.find(|reason| *reason as u32 == u32::from(event.reason));
            found.map_or("unknown", DropReason::name)
        }
        kind => verdict(kind),
    }
}

/// The end of a connection whose client has no socket here, as the table's rows tell it. Nobody else does: the programs see
/// packets only.
pub(super) fn ended(open: &Outside) -> FlowEvent {
    let Outside { key, row, answers } = open;
    let seen = answers.map_or(0, |answers| answers.last_seen_ns);
    let last = row.last_seen_ns.max(seen);
    FlowEvent {
        time_ns: last,
        cookie: SocketKey(row.key_hash.into()),
        netns_cookie: 0,
        duration_ns: last.saturating_sub(row.since_ns),
        bytes_sent: row.bytes,
        bytes_received: answers.map_or(0, |answers| answers.bytes),
        dialled: key.destination,
        backend_address: row.destination,
        dialled_port: key.destination_port,
        backend_port: row.destination_port,
        service_id: row.service_id,
        backend: row.backend,
        pid: 0,
        kind: match open.was_answered() {
            false if key.protocol == TCP => EVENT_FAILED,
            _ => EVENT_CLOSED,
        },
        protocol: key.protocol,
        by: match key.side {
            Side::FROM_POD => EVENT_BY_POD,
            _ => EVENT_BY_OUTSIDER,
        },
        reason: 0,
        client_port: key.source_port,
        pad: [0; 2],
        comm: key.source.octets(),
    }
}

/// The kernel's monotonic clock beside the people's, read at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub monotonic_ns: u64,
    pub wall: Timestamp,
}

impl Clock {
    /// When something was, by the monotonic clock.
    pub fn at(self, ns: u64) -> Timestamp {
        let ago = i64::try_from(self.monotonic_ns.saturating_sub(ns)).unwrap_or(i64::MAX);
        let at = self.wall.checked_sub(SignedDuration::from_nanos(ago));
        at.unwrap_or(self.wall)
    }
}

pub(super) fn dialled(event: &FlowEvent) -> ServiceKey {
    ServiceKey {
        address: event.dialled,
        port: event.dialled_port,
        protocol: event.protocol,
        scope: match event.by {
            EVENT_BY_OUTSIDER => Scope::EXTERNAL,
            _ => Scope::CLUSTER,
        },
    }
}

pub(super) fn flow(
    event: &FlowEvent,
    client: &Client,
    names: Names<'_>,
    clock: Clock,
) -> api::Flow {
    let service = names.service(&dialled(event));
    let refused = is_refusal(event.kind);
    let is_socket = event.by == EVENT_BY_SOCKET;
    let peer = if refused {
        Default::default()
    } else {
        names.peer(service.map(|(service, _)| service), event.backend_address)
    };
    let timed = matches!(event.kind, EVENT_ESTABLISHED | EVENT_FAILED | EVENT_CLOSED);
    // Of UDP sockets nobody counts them, of packets the rows do.
    let counted = event.protocol == TCP || !is_socket;
    let carried = event.kind == EVENT_CLOSED && counted;
    api::Flow {
        time: clock.at(event.time_ns).to_string(),
        verdict: verdict(event.kind).to_owned(),
        protocol: protocol(event.protocol),
        client: client.to_string(),
        process: match is_socket {
            true => process(&event.comm),
            false => String::new(),
        },
        pid: event.pid,
        dialled: socket_address(event.dialled, event.dialled_port),
        service: service.map(|(it, _)| it.to_string()).unwrap_or_default(),
        port_name: service
            .map(|(_, port)| port.to_string())
            .unwrap_or_default(),
        backend: if refused {
            String::new()
        } else {
            socket_address(event.backend_address, event.backend_port)
        },
        backend_pod: peer.pod,
        backend_node: peer.node,
        cookie: event.cookie.0,
        seconds: timed.then(|| event.duration_ns as f64 / 1e9),
        bytes_sent: carried.then_some(event.bytes_sent),
        bytes_received: carried.then_some(event.bytes_received),
        reason: match event.kind {
            EVENT_DROPPED => reason(event).to_owned(),
            _ => String::new(),
        },
    }
}

/// The name of a process, up to the first zero.
fn process(comm: &[u8]) -> String {
    let end = comm.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&comm[..end.unwrap_or(comm.len())]).into_owned()
}

/// Whether the watcher asked for this flow.
pub(super) fn wanted(request: &api::WatchFlowsRequest, flow: &api::Flow) -> bool {
    let is = |filter: &str, value: &str| filter.is_empty() || filter.eq_ignore_ascii_case(value);
    is_asked_for(&request.service, &flow.service)
        && (is_asked_for(&request.pod, &flow.client)
            || is_asked_for(&request.pod, &flow.backend_pod))
        && is(&request.node, &flow.backend_node)
        && is(&request.verdict, &flow.verdict)
        && is(&request.protocol, &flow.protocol)
}

/// Whether a watcher of one in `every` sockets takes this one, of those that the kernel draws, one in `drawn`. All events
/// of a socket are taken, or none.
pub(super) fn is_drawn(cookie: u64, every: u32, drawn: u32) -> bool {
    // The kernel's own draw knows nothing of the cookie. Fibonacci hashing: cookies count up.
    let hash = cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (hash * u64::from(every)) >> 32 < u64::from(drawn)
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
