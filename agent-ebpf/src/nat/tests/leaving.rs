//! What leaves under the node's address.

use super::*;

#[test]
fn what_pods_send_to_the_world_has_the_nodes_address() {
    let mut node = node();
    node.sender = Sender::Pod;
    let left = node.pass(segment((POD, 4000), ("192.0.2.9", 443), SYN), Side::OUT);
    assert_eq!(left, Ok(segment((NODE, 4000), ("192.0.2.9", 443), SYN)));
    // The same port of another pod, to the same place: another port of the node.
    let left = node
        .pass(
            segment(("10.244.1.8", 4000), ("192.0.2.9", 443), SYN),
            Side::OUT,
        )
        .unwrap();
    let (port, _) = ports_of(&left);
    assert!(
        (61_000..61_000 + 4_536).contains(&u32::from(port)),
        "{port}"
    );
    let exempt = segment((POD, 4000), (FAR, 80), SYN);
    assert_eq!(node.pass(exempt.clone(), Side::OUT), Ok(exempt));
    node.sender = Sender::Other;
    let answer = node.pass(segment(("192.0.2.9", 443), (NODE, port), ACK), Side::IN);
    assert_eq!(
        answer,
        Ok(segment(("192.0.2.9", 443), ("10.244.1.8", 4000), ACK))
    );
    let answer = node.pass(segment(("192.0.2.9", 443), (NODE, 4000), ACK), Side::IN);
    assert_eq!(answer, Ok(segment(("192.0.2.9", 443), (POD, 4000), ACK)));
}

#[test]
fn ports_of_the_nodes_own_sockets_and_services_are_not_given_away() {
    let mut node = node();
    node.sender = Sender::Pod;
    node.sockets.insert(4000);
    for port in [4000, 80, 30_080] {
        let left = node
            .pass(segment((POD, port), ("192.0.2.9", 443), SYN), Side::OUT)
            .unwrap();
        assert!(ports_of(&left).0 >= 61_000, "{port}");
    }
    node.sockets = (0..=u16::MAX).collect();
    let refused = node.pass(segment((POD, 5000), ("192.0.2.9", 443), SYN), Side::OUT);
    assert_eq!(refused, Err(DropReason::NoPort));
}

#[test]
fn a_socket_of_the_nodes_that_takes_a_given_port_gets_another() {
    let mut node = node();
    node.sender = Sender::Pod;
    node.pass(segment((POD, 40_000), ("192.0.2.9", 443), SYN), Side::OUT)
        .unwrap();
    node.sender = Sender::Own;
    let own = segment((NODE, 40_000), ("192.0.2.9", 443), SYN);
    let left = node.pass(own, Side::OUT).unwrap();
    let (port, _) = ports_of(&left);
    assert_ne!(port, 40_000);
    node.sender = Sender::Other;
    let answer = node.pass(segment(("192.0.2.9", 443), (NODE, port), ACK), Side::IN);
    assert_eq!(answer, Ok(segment(("192.0.2.9", 443), (NODE, 40_000), ACK)));
    node.sender = Sender::Own;
    let free = segment((NODE, 40_001), ("192.0.2.9", 443), SYN);
    assert_eq!(node.pass(free.clone(), Side::OUT), Ok(free));
}

#[test]
fn echoes_find_their_pods() {
    let mut node = node();
    node.sender = Sender::Pod;
    let echo = |from, to, kind, id: u16| {
        let [a, b] = id.to_be_bytes();
        packet(from, to, ICMP, &icmp(kind, 0, [a, b, 0, 1], b"ping"))
    };
    let left = node.pass(echo(POD, "192.0.2.9", 8, 7), Side::OUT);
    assert_eq!(left, Ok(echo(NODE, "192.0.2.9", 8, 7)));
    let left = node
        .pass(echo("10.244.1.8", "192.0.2.9", 8, 7), Side::OUT)
        .unwrap();
    assert_ne!(left, echo(NODE, "192.0.2.9", 8, 7));
    let id = u16::from_be_bytes([left[38], left[39]]);
    node.sender = Sender::Other;
    assert_eq!(
        node.pass(echo("192.0.2.9", NODE, 0, 7), Side::IN),
        Ok(echo("192.0.2.9", POD, 0, 7))
    );
    let answer = node.pass(echo("192.0.2.9", NODE, 0, id), Side::IN);
    assert_eq!(answer, Ok(echo("192.0.2.9", "10.244.1.8", 0, 7)));
    let own = echo("192.0.2.9", NODE, 0, 99);
    assert_eq!(node.pass(own.clone(), Side::IN), Ok(own), "the node's own");
}

#[test]
fn what_cannot_have_the_nodes_address_does_not_leave_with_a_pods() {
    let mut node = node();
    let to_world = "192.0.2.9";
    let message = |from: &str, to: &str, kind, id| {
        packet(from, to, ICMP, &icmp(kind, 0, [0, id, 0, 1], b"a message"))
    };
    let quoting = |to: &str| {
        let about = segment((to, 80), (POD, 4000), ACK);
        packet(POD, to, ICMP, &icmp(3, 3, [0; 4], &about[14..]))
    };
    // SCTP, ESP, GRE, AH; a timestamp's question; an echo without an identifier; an error about nothing that is known.
    let cases = |to: &str| {
        let mut cases: Vec<_> = [132, 50, 47, 51]
            .map(|protocol| framed(&ip(POD, to, protocol, &[], &[1; 16])))
            .into();
        cases.extend([message(POD, to, 13, 1), message(POD, to, 8, 0), quoting(to)]);
        cases
    };
    for frame in cases(to_world) {
        node.sender = Sender::Pod;
        let left = node.pass(frame.clone(), Side::OUT);
        assert_eq!(left, Err(DropReason::NotMasqueraded), "{frame:02x?}");
        // What the node itself sends, or only passes on, is not concerned.
        for sender in [Sender::Own, Sender::Other] {
            node.sender = sender;
            assert_eq!(node.pass(frame.clone(), Side::OUT), Ok(frame.clone()));
        }
    }
    node.sender = Sender::Pod;
    for frame in cases(FAR) {
        assert_eq!(node.pass(frame.clone(), Side::OUT), Ok(frame), "exempt");
    }
    let answer = message(POD, to_world, 0, 7);
    assert_eq!(
        node.pass(answer.clone(), Side::OUT),
        Ok(answer),
        "an echo's"
    );
    // Of a family of which the node has no address there.
    let six = packet("fd00::7", "2001:db8::9", TCP, &tcp(4000, 443, SYN));
    assert_eq!(node.pass(six, Side::OUT), Err(DropReason::NotMasqueraded));
}
