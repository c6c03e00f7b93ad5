use proptest::prelude::*;

use super::*;
use crate::abi::{Side, UDP};
use crate::nat::REFRESH_NS;
use crate::nat::testing::*;
use crate::packet::testing::*;
use crate::packet::{ICMP, TCP_ACK as ACK, TCP_SYN as SYN};

/// Who has a route to the pod's address, and somebody of the cluster.
const CALLER: (&str, u16) = ("198.51.100.9", 4000);
const EXEMPT: (&str, u16) = ("10.244.2.7", 4000);
const SERVER: (&str, u16) = (POD, 8443);

fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    packet(from.0, to.0, TCP, &tcp(from.1, to.1, flags))
}

fn datagram(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    packet(from.0, to.0, UDP, &udp(from.1, to.1, b"payload"))
}

fn node() -> World {
    let mut world = World::default();
    world.sender = Sender::Pod;
    world
}

/// What a segment of the pod's is when it leaves the node.
fn left(node: &mut World, from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    node.pass(segment(from, to, flags), Side::OUT).unwrap()
}

#[test]
fn who_reaches_a_pod_by_tcp_is_answered_by_the_pod() {
    let mut node = node();
    node.reach(segment(CALLER, SERVER, SYN));
    for flags in [SYN | ACK, ACK, TCP_FIN | ACK, TCP_RST | ACK] {
        let answer = left(&mut node, SERVER, CALLER, flags);
        assert_eq!(answer, segment(SERVER, CALLER, flags));
        node.reach(segment(CALLER, SERVER, ACK));
    }
    assert_eq!(node.rows.borrow().len(), 2, "however many packets");
}

#[test]
fn what_refuses_a_caller_comes_from_the_pod_too() {
    let mut node = node();
    node.reach(segment(CALLER, SERVER, SYN));
    let refusal = left(&mut node, SERVER, CALLER, TCP_RST | ACK);
    assert_eq!(refusal, segment(SERVER, CALLER, TCP_RST | ACK));
}

#[test]
fn who_reaches_a_pod_by_udp_is_answered_by_the_pod() {
    let mut node = node();
    let unasked = node.pass(datagram(SERVER, ("198.51.100.9", 5000)), Side::OUT);
    assert_eq!(unasked, Ok(datagram((NODE, 8443), ("198.51.100.9", 5000))));
    node.reach(datagram(CALLER, SERVER));
    for _ in 0..2 {
        let answer = node.pass(datagram(SERVER, CALLER), Side::OUT);
        assert_eq!(answer, Ok(datagram(SERVER, CALLER)));
    }
}

#[test]
fn an_echo_is_answered_by_the_pod_without_a_row() {
    let mut node = node();
    let echo = |from, to, kind| packet(from, to, ICMP, &icmp(kind, 0, [0, 7, 0, 1], b"ping"));
    node.reach(echo(CALLER.0, POD, 8));
    let answer = node.pass(echo(POD, CALLER.0, 0), Side::OUT);
    assert_eq!(answer, Ok(echo(POD, CALLER.0, 0)));
    assert!(node.rows.borrow().is_empty());
}

#[test]
fn what_tells_of_no_caller_leaves_no_rows() {
    let mut node = node();
    for frame in [
        segment(EXEMPT, SERVER, SYN),
        datagram(EXEMPT, SERVER),
        segment(CALLER, SERVER, ACK),
        segment(CALLER, SERVER, SYN | ACK),
        segment(CALLER, SERVER, TCP_RST),
    ] {
        node.reach(frame);
    }
    assert!(node.rows.borrow().is_empty());
}

#[test]
fn what_a_pod_opens_has_the_nodes_address_whoever_reached_it_before() {
    let mut node = node();
    node.reach(segment(CALLER, SERVER, SYN));
    for flags in [SYN, ACK] {
        let sent = left(&mut node, SERVER, CALLER, flags);
        assert_eq!(sent, segment((NODE, 8443), CALLER, flags));
    }
}

#[test]
fn nobody_takes_the_nodes_address_from_what_a_pod_has_opened() {
    let mut node = node();
    for (ask, reach) in [
        (segment(SERVER, CALLER, SYN), segment(CALLER, SERVER, SYN)),
        (datagram(SERVER, CALLER), datagram(CALLER, SERVER)),
    ] {
        let first = node.pass(ask.clone(), Side::OUT);
        let rows = node.rows.borrow().len();
        node.reach(reach);
        assert_eq!(node.rows.borrow().len(), rows);
        assert_eq!(node.pass(ask, Side::OUT), first);
    }
}

#[test]
fn a_connection_of_a_pods_that_lost_its_rows_gets_them_back() {
    let mut node = node();
    let before = left(&mut node, SERVER, CALLER, SYN);
    node.rows.borrow_mut().clear();
    let after = left(&mut node, SERVER, CALLER, ACK);
    assert_eq!(after[26..38], before[26..38], "addresses and ports");
}

#[test]
fn the_answers_row_is_put_back_when_it_gave_way() {
    let mut node = node();
    node.reach(segment(CALLER, SERVER, SYN));
    node.rows.borrow_mut().retain(|key, _| key.side == Side::IN);
    node.now_ns += REFRESH_NS + 1;
    node.reach(segment(CALLER, SERVER, ACK));
    let answer = left(&mut node, SERVER, CALLER, ACK);
    assert_eq!(answer, segment(SERVER, CALLER, ACK));
}

#[test]
fn a_caller_that_comes_again_has_rows_that_are_not_over() {
    let mut node = node();
    node.reach(segment(CALLER, SERVER, SYN));
    node.reach(segment(CALLER, SERVER, TCP_RST));
    left(&mut node, SERVER, CALLER, TCP_FIN | ACK);
    node.reach(segment(CALLER, SERVER, SYN));
    let rows = node.rows.borrow();
    assert_eq!(rows.len(), 2);
    let over = |row: &Connection| row.seen & (TCP_FIN | TCP_RST) != 0;
    assert!(!rows.values().any(over));
}

#[test]
fn before_the_stack_such_packets_are_the_stacks() {
    let mut node = node();
    node.reach(datagram(CALLER, SERVER));
    let (course, frame) = node.forward(datagram(CALLER, SERVER));
    assert_eq!(course, crate::forward::Course::Stack);
    assert_eq!(frame, datagram(CALLER, SERVER));
}

#[test]
fn a_full_table_keeps_nothing_from_the_pod() {
    let mut node = node();
    node.full = true;
    node.reach(segment(CALLER, SERVER, SYN));
    assert!(node.rows.borrow().is_empty());
}

proptest! {
    /// Whoever spoke first, on whatever port, an answer comes from where the question went.
    #[test]
    fn an_answer_comes_from_where_the_question_went(
        talks in proptest::collection::btree_map((1..4_u8, 1..4_u16, 1..4_u16, any::<bool>()), any::<bool>(), 1..40),
    ) {
        let mut node = node();
        let mut open = Vec::new();
        for ((host, port, own, is_tcp), pod_begins) in talks {
            let host = format!("198.51.100.{host}");
            let frame = |from: (&str, u16), to: (&str, u16), flags| match is_tcp {
                true => segment(from, to, flags),
                false => datagram(from, to),
            };
            let (world, pod) = ((&*host, 4000 + port), (POD, 8000 + own));
            if pod_begins {
                let left = node.pass(frame(pod, world, SYN), Side::OUT).unwrap();
                prop_assert_eq!(&left[26..30], &[203, 0, 113, 1]);
                let own = u16::from_be_bytes([left[34], left[35]]);
                let answer = node.pass(frame(world, (NODE, own), SYN | ACK), Side::IN);
                prop_assert_eq!(answer, Ok(frame(world, pod, SYN | ACK)));
            } else {
                node.reach(frame(world, pod, SYN));
            }
            open.push((host.clone(), 4000 + port, 8000 + own, is_tcp, pod_begins));
        }
        for (host, port, own, is_tcp, pod_begins) in open {
            let frame = match is_tcp {
                true => segment((POD, own), (&host, port), ACK),
                false => datagram((POD, own), (&host, port)),
            };
            let left = node.pass(frame.clone(), Side::OUT).unwrap();
            prop_assert_eq!(left == frame, !pod_begins);
        }
    }
}
