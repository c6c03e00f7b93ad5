//! Connections as they stand: rows of `SOCKETS`, with what the kernel knows of each socket, and rows of `CONNECTIONS`, whose
//! clients have no socket here. Under the cluster's names. Pure.

use std::collections::HashMap;

use agent_ebpf::abi::{CONNECTION_DIRECT, Scope, ServiceKey, SocketEntry, SocketKey, TCP, UDP};

use super::clients::Client;
use super::names::{Names, is_asked_for, protocol, socket_address};
use crate::dataplane::{Outside, SocketInfo};
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

/// Those of `open` that `filter` asks for, oldest first: of clients outside, and of pods whose sockets nobody sees.
pub fn outside(
    open: &[Outside],
    names: Names<'_>,
    now_ns: u64,
    filter: &api::ListConnectionsRequest,
) -> Vec<api::Connection> {
    let mut open: Vec<&Outside> = open.iter().collect();
    open.sort_by_key(|it| (it.row.since_ns, it.key));
    open.into_iter()
        .map(|it| translated(it, names, now_ns))
        .filter(|it| {
            is_asked_for(&filter.service, &it.service) && is_asked_for(&filter.pod, &it.backend_pod)
        })
        .collect()
}

fn translated(open: &Outside, names: Names<'_>, now_ns: u64) -> api::Connection {
    let Outside { key, row, answers } = open;
    let dialled = key.dialled();
    let owner = names.service(&dialled).map(|(owner, _)| owner);
    let peer = names.peer(owner, row.destination);
    // Of those that the backend's node answers itself nothing comes back by this one.
    let answers = answers.filter(|_| row.kind & CONNECTION_DIRECT == 0);
    let state = match (key.protocol, open.was_answered()) {
        (_, true) => "ESTAB",
        (TCP, false) => "SYN-SENT",
        (_, false) => "UNREPLIED",
    };
    api::Connection {
        client: socket_address(key.source, key.source_port),
        protocol: protocol(key.protocol),
        dialled: socket_address(key.destination, key.destination_port),
        service: owner.map(ToString::to_string).unwrap_or_default(),
        backend: socket_address(row.destination, row.destination_port),
        backend_pod: peer.pod,
        backend_node: peer.node,
        age_seconds: now_ns.saturating_sub(row.since_ns) as f64 / 1e9,
        state: state.to_owned(),
        bytes_sent: Some(row.bytes),
        bytes_received: answers.map(|answers| answers.bytes),
        ..api::Connection::default()
    }
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

#[cfg(test)]
mod tests {
    use agent_ebpf::abi::{CONNECTION_SERVICE, Connection, FlowKey, Side};
    use agent_ebpf::nat::SEEN;
    use agent_ebpf::packet::{TCP_ACK, TCP_SYN};

    use super::super::testing::World;
    use super::*;
    use crate::cluster::Exposed;

    #[test]
    fn a_client_outside_has_an_address_and_the_service_its_names() {
        let world = World::with(|web| {
            web.ports[0].node_port = Some(30_080);
            web.exposed = Some(Box::new(Exposed {
                node_ports: true,
                ..Exposed::default()
            }));
        });
        let view = world.cluster.view();
        let names = Names {
            view: &view,
            state: &world.state,
        };
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
        let key = FlowKey {
            source: ip("198.51.100.2"),
            destination: ip("203.0.113.1"),
            source_port: 4000_u16.to_be_bytes(),
            destination_port: 30_080_u16.to_be_bytes(),
            protocol: TCP,
            side: Side::IN,
            ..FlowKey::EMPTY
        };
        let row = Connection {
            source: key.source,
            source_port: key.source_port,
            destination: ip("10.244.0.2"),
            destination_port: 8080_u16.to_be_bytes(),
            kind: CONNECTION_SERVICE,
            seen: TCP_SYN | TCP_ACK | SEEN,
            bytes: 700,
            since_ns: 1_000_000_000,
            ..Connection::EMPTY
        };
        let answers = Connection { bytes: 900, ..row };
        let listed = |row: Connection, answers: Option<Connection>, service: &str| {
            let filter = api::ListConnectionsRequest {
                service: service.to_owned(),
                pod: String::new(),
            };
            outside(
                &[Outside { key, row, answers }],
                names,
                3_000_000_000,
                &filter,
            )
        };
        assert!(listed(row, Some(answers), "shop/idle").is_empty());
        let found = &listed(row, Some(answers), "shop/web")[0];
        let texts = [
            &found.client,
            &found.dialled,
            &found.service,
            &found.backend,
            &found.backend_pod,
            &found.backend_node,
            &found.state,
        ];
        let expected = [
            "198.51.100.2:4000",
            "203.0.113.1:30080",
            "shop/web",
            "10.244.0.2:8080",
            "shop/web-2",
            "b",
            "ESTAB",
        ];
        assert_eq!(texts, expected);
        let numbers = (found.bytes_sent, found.bytes_received, found.age_seconds);
        assert_eq!(numbers, (Some(700), Some(900), 2.0));
        // Nothing has come back yet, or does not come by this node.
        let silent = Connection {
            seen: 0,
            bytes: 0,
            ..answers
        };
        assert_eq!(listed(row, Some(silent), "")[0].state, "SYN-SENT");
        let direct = Connection {
            kind: CONNECTION_SERVICE | CONNECTION_DIRECT,
            ..row
        };
        let direct = &listed(direct, Some(silent), "")[0];
        assert_eq!((&*direct.state, direct.bytes_received), ("ESTAB", None));
    }
}
