//! What the packet programs record of clients outside, and what the table tells of their end: in the kernel.

use agent_ebpf::abi::{
    DropReason, EVENT_BY_OUTSIDER, EVENT_DROPPED, EVENT_NO_BACKEND, EVENT_OPENED, FlowEvent, TCP,
    UDP, maps as names,
};
use agent_ebpf::packet::{TCP_FIN, TCP_RST};
use agent_ebpf::policy::MOST_RECORDS;
use aya::maps::{Map, MapData, RingBuf};

use super::testing::{entry, on_scratch_node, put};
use super::xdp_tests::{ACK, FAMILIES, Family, Node, Packet, SYN, key, node};
use super::{Connections, Hook, Maps, ServiceMaps as _, monotonic_ns, tc_tests};

const SECOND: u64 = 1_000_000_000;

/// What was recorded since the last look.
fn events(node: &Node) -> Vec<FlowEvent> {
    let path = node.dataplane.dir.join(names::EVENTS);
    let data = MapData::from_pin(path).unwrap();
    let mut ring = RingBuf::try_from(Map::RingBuf(data)).unwrap();
    let mut read = Vec::new();
    while let Some(item) = ring.next() {
        // SAFETY: a record is plain bytes, and as long as this.
        read.push(unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() });
    }
    read
}

fn told(event: &FlowEvent) -> (u8, String, String, u8) {
    let (client, port) = event.client().unwrap();
    let socket = |ip: std::net::IpAddr, port| {
        std::net::SocketAddr::new(ip, u16::from_be_bytes(port)).to_string()
    };
    (
        event.kind,
        socket(client.to_ip(), port),
        socket(event.dialled.to_ip(), event.dialled_port),
        event.protocol,
    )
}

fn text(ip: &str, port: u16) -> String {
    std::net::SocketAddr::new(ip.parse().unwrap(), port).to_string()
}

/// A client's packet to a port of its load balancer.
fn asks(family: &Family, port: u16, protocol: u8, flags: u8) -> Vec<u8> {
    Packet::new(
        (family.client, 4000),
        (family.balancer, port),
        protocol,
        flags,
    )
    .bytes()
}

/// The same at the program of the network stack.
fn at_uplink(node: &Node, packet: &[u8]) {
    let programs = &node.dataplane.link_programs;
    programs.with(Hook::UplinkIn, |program| {
        tc_tests::run(program, packet);
    });
}

#[test]
fn a_client_outside_is_recorded_once_at_whichever_program_it_comes_by() {
    on_scratch_node(|scratch| {
        let mut node = node(scratch);
        let family = &FAMILIES[0];
        node.run(&asks(family, 80, UDP, 0));
        assert_eq!(events(&node), [], "nobody watches");
        node.dataplane.maps.set_sampling(1).unwrap();
        for family in &FAMILIES {
            // The first meets XDP, the second the stack's program, as its backend is on this node.
            for port in [80, 81] {
                for flags in [SYN, ACK, ACK] {
                    let packet = asks(family, port, TCP, flags);
                    if port == 80 {
                        node.run(&packet);
                    } else {
                        at_uplink(&node, &packet);
                    }
                }
                let read = events(&node);
                let expected = (
                    EVENT_OPENED,
                    text(family.client, 4000),
                    text(family.balancer, port),
                    TCP,
                );
                assert_eq!(read.iter().map(told).collect::<Vec<_>>(), [expected]);
                let [event] = read[..] else { unreachable!() };
                assert_eq!(event.by, EVENT_BY_OUTSIDER);
                assert_eq!(event.backend_port, 8080_u16.to_be_bytes());
                assert_ne!((event.service_id, event.backend.0), (0, 0));
                assert!(event.time_ns <= monotonic_ns());
            }
        }
    });
}

#[test]
fn who_outside_is_refused_is_recorded_with_the_reason_and_a_flood_of_it_is_not() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        for family in &FAMILIES {
            let packet = asks(family, 82, UDP, 0);
            node.run(&packet);
            assert_eq!(events(&node), [], "it is the stack's");
            at_uplink(&node, &packet);
            node.run(&asks(family, 83, TCP, SYN));
            let expected = |kind, port, protocol| {
                let (client, dialled) = (text(family.client, 4000), text(family.balancer, port));
                (kind, client, dialled, protocol)
            };
            let read = events(&node);
            assert_eq!(
                read.iter().map(told).collect::<Vec<_>>(),
                [
                    expected(EVENT_NO_BACKEND, 82, UDP),
                    expected(EVENT_DROPPED, 83, TCP)
                ]
            );
            assert_eq!(read[1].reason, DropReason::SourceRange as u8);
        }
        let packet = asks(&FAMILIES[0], 83, UDP, 0);
        let sent = 8 * MOST_RECORDS;
        for _ in 0..sent {
            node.run(&packet);
        }
        let lost = node.dataplane.maps.events_lost().unwrap();
        assert_eq!(
            events(&node).len() as u64 + lost,
            sent,
            "the rest is counted"
        );
    });
}

#[test]
fn that_a_clients_connection_is_over_is_told_once() {
    on_scratch_node(|scratch| {
        let node = node(scratch);
        let family = &FAMILIES[0];
        let answers = |port: u16, flags| {
            let (backend, own) = ((family.far, 8080), (family.node, port));
            Packet::new(backend, own, TCP, flags).bytes()
        };
        let asks = |port: u16, flags| {
            Packet::new((family.client, port), (family.balancer, 80), TCP, flags).bytes()
        };
        for port in [4000, 4001, 4002] {
            node.run(&asks(port, SYN));
            node.run(&answers(port, SYN | ACK));
            node.run(&asks(port, ACK));
        }
        // Closed by both, reset by the backend, open.
        node.run(&asks(4000, TCP_FIN | ACK));
        node.run(&answers(4000, TCP_FIN | ACK));
        node.run(&answers(4001, TCP_RST));
        let mut table = Connections::new(Maps::open(&node.dataplane.dir).unwrap());
        let now = monotonic_ns();
        let mut over = |seconds| {
            let over = table.sweep(now + seconds * SECOND).unwrap().over;
            let mut ports: Vec<u16> = over
                .iter()
                .map(|it| u16::from_be_bytes(it.key.source_port))
                .collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(over(1), [0; 0], "they are young");
        assert_eq!(over(15), [4000, 4001]);
        assert_eq!(over(30), [0; 0]);
        assert_eq!(over(150), [0; 0]);
        assert_eq!(over(25 * 3600), [4002]);
        assert_eq!(over(26 * 3600), [0; 0]);
    });
}

#[test]
fn datagrams_leave_a_backend_that_their_service_no_longer_offers() {
    on_scratch_node(|scratch| {
        let mut node = node(scratch);
        let family = &FAMILIES[0];
        let mut table = Connections::new(Maps::open(&node.dataplane.dir).unwrap());
        let mut removed = |seconds| {
            table
                .sweep(monotonic_ns() + seconds * SECOND)
                .unwrap()
                .removed
        };
        node.run(&asks(family, 80, UDP, 0));
        node.run(&asks(family, 80, TCP, SYN));
        assert_eq!(removed(1), 0);
        // The backend stays, as another service's may.
        let other = std::net::SocketAddr::new(family.far.parse().unwrap(), 9090);
        for (protocol, backend) in [(UDP, 900), (TCP, 901)] {
            let (service, maps) = (key(family, 80, protocol), &mut node.dataplane.maps);
            let id = maps.service(&service).unwrap().unwrap().service_id;
            maps.apply_all(&put(service, entry(id, 2, 1, 1), &[(backend, other)]))
                .unwrap();
        }
        assert_eq!(removed(1), 2, "both directions, and not the connection");
        node.run(&asks(family, 80, UDP, 0));
        assert_eq!(removed(1), 0, "it is offered");
    });
}
