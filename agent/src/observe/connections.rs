//! Connections as they stand: rows of `SOCKETS`, with what the kernel knows of each socket, under the cluster's names.
//! Pure.

use std::collections::HashMap;

use agent_ebpf::abi::{Scope, ServiceKey, SocketEntry, SocketKey, TCP, UDP};

use super::clients::Client;
use super::names::{Names, is_asked_for, protocol, socket_address};
use crate::dataplane::SocketInfo;
use crate::introspection as api;

/// What the kernel holds of one socket that was sent to a backend.
#[derive(Clone, Debug)]
pub struct Open {
    pub cookie: SocketKey,
    pub entry: SocketEntry,
    pub client: Client,
}

/// The connections that `filter` asks for, oldest first. `now_ns` is the clock of `SocketEntry::started_ns`.
pub fn connections(
    open: &[Open],
    infos: &HashMap<SocketKey, SocketInfo>,
    names: Names<'_>,
    now_ns: u64,
    filter: &api::ListConnectionsRequest,
) -> Vec<api::Connection> {
    let mut open: Vec<&Open> = open.iter().collect();
    open.sort_by_key(|it| (it.entry.started_ns, it.cookie));
    open.into_iter()
        .map(|it| connection(it, infos.get(&it.cookie), names, now_ns))
        .filter(|it| {
            is_asked_for(&filter.service, &it.service)
                && (is_asked_for(&filter.pod, &it.client)
                    || is_asked_for(&filter.pod, &it.backend_pod))
        })
        .collect()
}

fn connection(
    open: &Open,
    info: Option<&SocketInfo>,
    names: Names<'_>,
    now_ns: u64,
) -> api::Connection {
    let SocketEntry {
        service,
        backend_address,
        backend_port,
        started_ns,
        ..
    } = open.entry;
    let dialled = ServiceKey {
        address: service.address,
        port: service.port,
        protocol: open.entry.protocol,
        scope: Scope::CLUSTER,
    };
    let owner = names.service(&dialled).map(|(owner, _)| owner);
    let peer = names.peer(owner, backend_address);
    let tcp = info.and_then(|info| info.tcp);
    api::Connection {
        cookie: open.cookie.0,
        client: open.client.to_string(),
        protocol: protocol(dialled.protocol),
        dialled: socket_address(service.address, service.port),
        service: owner.map(ToString::to_string).unwrap_or_default(),
        backend: socket_address(backend_address, backend_port),
        backend_pod: peer.pod,
        backend_node: peer.node,
        age_seconds: now_ns.saturating_sub(started_ns) as f64 / 1e9,
        state: info
            .map_or("", |info| state(dialled.protocol, info.state))
            .to_owned(),
        handshake_seconds: open.entry.handshake_ns().map(|it| it as f64 / 1e9),
        round_trip_seconds: tcp.map(|tcp| tcp.round_trip.as_secs_f64()),
        send_queue: info.map(|info| info.send_queue),
        receive_queue: info.map(|info| info.receive_queue),
        bytes_sent: tcp.map(|tcp| tcp.sent),
        bytes_received: tcp.map(|tcp| tcp.received),
        retransmits: tcp.map(|tcp| tcp.retransmits),
    }
}

/// A socket's state, as `ss` writes it.
fn state(protocol: u8, state: u8) -> &'static str {
    match (protocol, state) {
        (TCP | UDP, 1) => "ESTAB",
        (UDP, 7) => "UNCONN",
        (TCP, 2) => "SYN-SENT",
        (TCP, 3) => "SYN-RECV",
        (TCP, 4) => "FIN-WAIT-1",
        (TCP, 5) => "FIN-WAIT-2",
        (TCP, 6) => "TIME-WAIT",
        (TCP, 7) => "CLOSED",
        (TCP, 8) => "CLOSE-WAIT",
        (TCP, 9) => "LAST-ACK",
        (TCP, 10) => "LISTEN",
        (TCP, 11) => "CLOSING",
        _ => "unknown",
    }
}
