use super::*;
use crate::abi::UDP;
use crate::packet::testing::{address, framed, icmp, ip, packet, tcp, udp};
use crate::packet::{ETHERNET_LENGTH, ICMP, TCP_RST, ipv4, ipv6};

const A: &str = "10.244.1.7";
const B: &str = "10.244.2.9";

/// What is written over.
const NOTHING: Packet = Packet {
    source: Conversation::NONE.source,
    destination: Conversation::NONE.destination,
    source_port: [7; 2],
    destination_port: [7; 2],
    identification: 7,
    about: Conversation::NONE,
    kind: Kind::Neighbours,
    protocol: 7,
    opens: true,
    is_first_fragment: true,
    from_node: true,
};

fn seen(frame: &[u8]) -> Packet {
    let network = match frame[12..14] {
        [0x08, 0x00] => ipv4(frame, ETHERNET_LENGTH),
        _ => ipv6(frame, ETHERNET_LENGTH),
    };
    let mut packet = NOTHING;
    look(frame, &network.unwrap(), false, &mut packet).unwrap();
    packet
}

fn port(number: u16) -> [u8; 2] {
    number.to_be_bytes()
}

#[test]
fn a_connection_is_opened_by_a_syn_alone() {
    for (flags, opens) in [
        (TCP_SYN, true),
        (TCP_SYN | TCP_ACK, false),
        (TCP_ACK, false),
        (TCP_RST, false),
    ] {
        let found = seen(&packet(A, B, TCP, &tcp(4000, 80, flags)));
        assert_eq!(found.opens, opens, "{flags}");
        assert_eq!(found.kind, Kind::Ports);
        assert_eq!(
            (found.source_port, found.destination_port),
            (port(4000), port(80))
        );
        assert_eq!((found.source, found.destination), (address(A), address(B)));
    }
    let found = seen(&packet("fd00::7", "fd00::9", UDP, &udp(5, 53, b"?")));
    assert_eq!((found.opens, found.destination_port), (false, port(53)));
}

#[test]
fn sctp_has_ports_and_other_protocols_none() {
    let sctp = [0x0f, 0xa0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0];
    let sctp = seen(&framed(&ip(A, B, SCTP, &[], &sctp)));
    assert_eq!(
        (sctp.source_port, sctp.destination_port),
        (port(4000), port(80))
    );
    let gre = seen(&framed(&ip(A, B, 47, &[], &[1; 8])));
    assert_eq!((gre.source_port, gre.destination_port), ([0; 2], [0; 2]));
}

#[test]
fn an_echo_and_its_reply_are_one_conversation() {
    let asked = seen(&packet(A, B, ICMP, &icmp(8, 0, [0, 7, 0, 1], b"")));
    let answered = seen(&packet(B, A, ICMP, &icmp(0, 0, [0, 7, 0, 1], b"")));
    assert_eq!(asked.source_port, answered.destination_port);
    assert_eq!(asked.destination_port, answered.source_port);
    assert_eq!(asked.source_port, port(7));
}

#[test]
fn an_error_tells_which_conversation_it_is_about() {
    let quoted = ip(A, B, UDP, &[], &udp(4000, 53, b"?"));
    let found = seen(&packet(
        "192.0.2.1",
        A,
        ICMP,
        &icmp(3, 3, [0; 4], &quoted[..28]),
    ));
    assert_eq!(found.kind, Kind::Error);
    assert_eq!(
        found.about,
        Conversation {
            source: address(A),
            destination: address(B),
            source_port: port(4000),
            destination_port: port(53),
            protocol: UDP,
        }
    );
    let quoted = ip("fd00::7", "fd00::9", TCP, &[], &tcp(4000, 80, TCP_SYN));
    let body = [&[1, 4, 0, 0, 0, 0, 0, 0], &quoted[..48]].concat();
    let found = seen(&packet("fd00::1", "fd00::7", ICMPV6, &body));
    assert_eq!(found.kind, Kind::Error);
    assert_eq!(found.about.destination_port, port(80));
    // One that quotes nothing that can be read is about nothing.
    let found = seen(&packet("192.0.2.1", A, ICMP, &icmp(3, 3, [0; 4], &[0; 8])));
    assert_eq!((found.kind, found.about), (Kind::Error, Conversation::NONE));
}

#[test]
fn neighbours_may_find_each_other() {
    let message = |to, kind, hops| {
        let mut frame = packet("fe80::1", to, ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        frame[ETHERNET_LENGTH as usize + 7] = hops;
        seen(&frame).kind
    };
    for kind in [133, 134, 135, 136, 137] {
        for to in ["fe80::2", "ff02::1:ff00:2"] {
            assert_eq!(message(to, kind, 255), Kind::Neighbours, "{kind} {to}");
        }
        assert_eq!(message("fe80::2", kind, 254), Kind::Ports, "it was routed");
        assert_eq!(message("2001:db8::2", kind, 255), Kind::Ports, "it will be");
    }
    let report = seen(&packet(
        "fe80::1",
        "ff02::16",
        ICMPV6,
        &[143, 0, 0, 0, 0, 0, 0, 0],
    ));
    assert_eq!(report.kind, Kind::Ports);
}

#[test]
fn fragments_know_what_they_belong_to() {
    let mut first = packet(A, B, UDP, &udp(4000, 53, &[0; 24]));
    first[18..20].copy_from_slice(&[0x12, 0x34]);
    first[20] = 0x20;
    let first = seen(&first);
    assert!(first.is_first_fragment);
    assert_eq!(
        (first.identification, first.destination_port),
        (0x1234, port(53))
    );
    let mut later = packet(A, B, UDP, &[0; 16]);
    later[18..20].copy_from_slice(&[0x12, 0x34]);
    later[21] = 4;
    let later = seen(&later);
    assert_eq!(later.kind, Kind::LaterFragment);
    assert_eq!(
        (later.identification, later.destination_port),
        (0x1234, [0; 2])
    );
}
