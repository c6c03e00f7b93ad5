use agent_ebpf::abi::{Address, BackendId, Connection, FlowKey, SocketKey, UDP};
use agent_ebpf::packet::{TCP_ACK, TCP_RST, TCP_SYN};
use proptest::prelude::*;

use super::super::testing::{World, dialled as address};
use super::*;
use crate::cluster::ObjectKey;

/// An event of a socket that dialled `shop/web` and was sent to `web-2`.
fn event(kind: u8) -> FlowEvent {
    let dialled = address(1, 80);
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"curl");
    FlowEvent {
        time_ns: 1_000_000_000,
        cookie: SocketKey(7),
        netns_cookie: 3,
        duration_ns: 250_000,
        bytes_sent: 10,
        bytes_received: 20,
        dialled: dialled.address,
        backend_address: Address::v4([10, 244, 0, 2]),
        dialled_port: dialled.port,
        backend_port: 8080_u16.to_be_bytes(),
        service_id: 1,
        backend: BackendId(2),
        pid: 42,
        kind,
        protocol: TCP,
        by: EVENT_BY_SOCKET,
        reason: 0,
        client_port: [0; 2],
        pad: [0; 2],
        comm,
    }
}

fn named(event: &FlowEvent) -> api::Flow {
    let world = World::new();
    let view = world.cluster.view();
    let names = Names {
        view: &view,
        state: &world.state,
    };
    let clock = Clock {
        monotonic_ns: 3_000_000_000,
        wall: Timestamp::from_second(100).unwrap(),
    };
    let client = Client::Pod(ObjectKey::new("shop", "front-1"));
    flow(event, &client, names, clock)
}

#[test]
fn a_flow_has_names_on_both_sides_and_the_peoples_time() {
    let flow = named(&event(EVENT_ESTABLISHED));
    assert_eq!(flow.time, "1970-01-01T00:01:38Z", "two seconds ago");
    assert_eq!(
        (flow.verdict.as_str(), flow.seconds),
        ("established", Some(0.000_25))
    );
    assert_eq!(
        (flow.client.as_str(), flow.process.as_str(), flow.pid),
        ("shop/front-1", "curl", 42)
    );
    assert_eq!(
        (flow.service.as_str(), flow.port_name.as_str()),
        ("shop/web", "http")
    );
    assert_eq!(
        (flow.dialled.as_str(), flow.backend.as_str()),
        ("10.96.0.1:80", "10.244.0.2:8080")
    );
    assert_eq!(
        (flow.backend_pod.as_str(), flow.backend_node.as_str()),
        ("shop/web-2", "b")
    );
    assert_eq!(flow.bytes_sent, None, "only at the end are they known");
}

#[test]
fn a_refusal_has_no_backend() {
    let flow = named(&event(EVENT_NO_BACKEND));
    assert_eq!(flow.verdict, "no-backend");
    assert_eq!(
        (
            flow.backend.as_str(),
            flow.backend_pod.as_str(),
            flow.seconds
        ),
        ("", "", None)
    );
    assert_eq!(flow.service, "shop/web");
}

#[test]
fn what_is_over_tells_what_it_carried_if_anybody_counted() {
    let tcp = named(&event(EVENT_CLOSED));
    assert_eq!((tcp.bytes_sent, tcp.bytes_received), (Some(10), Some(20)));
    let udp = named(&FlowEvent {
        protocol: UDP,
        ..event(EVENT_CLOSED)
    });
    assert_eq!((udp.bytes_sent, udp.seconds), (None, Some(0.000_25)));
}

/// A connection of a client outside to `shop/web`, of which packets with these flags were seen.
fn outside(protocol: u8, seen: u8, answered: u8) -> Outside {
    let dialled = address(1, 80);
    let key = FlowKey {
        source: Address::v4([198, 51, 100, 2]),
        destination: dialled.address,
        source_port: 4000_u16.to_be_bytes(),
        destination_port: dialled.port,
        protocol,
        side: Side::IN,
        ..FlowKey::EMPTY
    };
    let row = Connection {
        destination: Address::v4([10, 244, 0, 2]),
        destination_port: 8080_u16.to_be_bytes(),
        seen,
        bytes: 700,
        since_ns: 1_000_000_000,
        last_seen_ns: 1_500_000_000,
        ..Connection::EMPTY
    };
    let answers = Connection {
        seen: answered,
        bytes: 900,
        last_seen_ns: 2_000_000_000,
        ..row
    };
    Outside {
        key,
        row,
        answers: Some(answers),
    }
}

#[test]
fn the_end_of_a_connection_from_outside_has_its_clients_address_and_what_it_carried() {
    let both = TCP_SYN | TCP_ACK;
    let event = ended(&outside(TCP, both, both));
    assert_eq!(
        event.client(),
        Some((Address::v4([198, 51, 100, 2]), 4000_u16.to_be_bytes()))
    );
    let flow = named(&event);
    assert_eq!((flow.verdict.as_str(), flow.seconds), ("closed", Some(1.0)));
    assert_eq!(
        (flow.bytes_sent, flow.bytes_received),
        (Some(700), Some(900))
    );
    assert_eq!(flow.time, "1970-01-01T00:01:39Z", "its last packet");
    assert_eq!((flow.process.as_str(), flow.pid), ("", 0));
    let verdict = |protocol, seen, answered| ended(&outside(protocol, seen, answered)).kind;
    assert_eq!(verdict(TCP, TCP_SYN, TCP_RST | TCP_ACK), EVENT_FAILED);
    assert_eq!(verdict(UDP, 0, 0), EVENT_CLOSED);
}

#[test]
fn what_was_dropped_says_why() {
    let dropped = FlowEvent {
        by: EVENT_BY_OUTSIDER,
        reason: DropReason::SourceRange as u8,
        ..event(EVENT_DROPPED)
    };
    let flow = named(&dropped);
    assert_eq!(
        (flow.verdict.as_str(), flow.reason.as_str()),
        ("dropped", "source-range")
    );
    assert_eq!((flow.backend.as_str(), flow.process.as_str()), ("", ""));
}

#[test]
fn each_filter_takes_what_it_names() {
    let flow = named(&event(EVENT_ESTABLISHED));
    let asked = |field: &str, value: &str| {
        let mut request = api::WatchFlowsRequest::default();
        let field = match field {
            "service" => &mut request.service,
            "pod" => &mut request.pod,
            "node" => &mut request.node,
            "verdict" => &mut request.verdict,
            _ => &mut request.protocol,
        };
        *field = value.to_owned();
        wanted(&request, &flow)
    };
    for (field, value) in [
        ("service", "shop/web"),
        ("pod", "shop/front-1"),
        ("pod", "shop/web-2"),
        ("node", "b"),
        ("verdict", "established"),
        ("protocol", "tcp"),
    ] {
        assert!(asked(field, value), "{field} {value}");
    }
    for (field, value) in [
        ("service", "web"),
        ("pod", "shop/web-1"),
        ("node", "a"),
        ("verdict", "failed"),
        ("protocol", "udp"),
    ] {
        assert!(!asked(field, value), "{field} {value}");
    }
}

#[test]
fn who_wants_one_in_ten_gets_about_one_in_ten() {
    let taken = (0..100_000)
        .filter(|cookie| is_drawn(*cookie, 10, 1))
        .count();
    assert!((9_000..11_000).contains(&taken), "{taken}");
}

proptest! {
    #[test]
    fn who_wants_what_the_kernel_draws_gets_all_of_it(cookie: u64, every in 1_u32..) {
        prop_assert!(is_drawn(cookie, every, every));
    }
}
