//! What another node is to translate.

use super::*;

#[test]
fn a_backends_node_is_handed_the_packets_of_a_service_that_it_answers_for() {
    let mut node = node();
    node.flag(FLAG_DIRECT_RETURN);
    node.handover = Some(Handover::Done);
    for flags in [SYN, ACK] {
        let there = segment((CLIENT, 4000), (BALANCER, 80), flags);
        assert_eq!(node.pass(there.clone(), Side::IN), Ok(there));
    }
    // What a router says of an answer that the other node sent is for that node.
    let about = segment((BALANCER, 80), (CLIENT, 4000), ACK);
    let told = error("192.0.2.250", BALANCER, about);
    assert_eq!(node.pass(told.clone(), Side::IN), Ok(told));
    // A pod of this node gets its own, and answers as the service.
    let near = segment((CLIENT, 4000), (BALANCER, 90), SYN);
    let came = node.pass(near, Side::IN).unwrap();
    let (port, _) = ports_of(&came);
    assert_eq!(came, segment((CLIENT, port), (POD, 8080), SYN));
    let left = node.pass(segment((POD, 8080), (CLIENT, port), ACK), Side::OUT);
    assert_eq!(left, Ok(segment((BALANCER, 90), (CLIENT, 4000), ACK)));
}

#[test]
fn who_cannot_be_handed_a_connection_that_begins_is_reached_like_others() {
    let mut node = node();
    node.flag(FLAG_DIRECT_RETURN);
    node.handover = Some(Handover::Impossible);
    let came = node.pass(segment((CLIENT, 4000), (BALANCER, 80), SYN), Side::IN);
    let left = node.pass(came.unwrap(), Side::OUT);
    assert_eq!(left, Ok(segment((NODE, 4000), (FAR, 8080), SYN)));
    // And so it stays, also when it could be.
    node.handover = Some(Handover::Done);
    let came = node.pass(segment((CLIENT, 4000), (BALANCER, 80), ACK), Side::IN);
    assert_eq!(came, Ok(segment((CLIENT, 4000), (FAR, 8080), ACK)));
}

#[test]
fn an_open_connection_of_a_node_that_is_gone_reaches_nobody_else() {
    let mut node = node();
    node.flag(FLAG_DIRECT_RETURN);
    node.handover = Some(Handover::Done);
    let there = |flags| segment((CLIENT, 4000), (BALANCER, 80), flags);
    node.pass(there(SYN), Side::IN).unwrap();
    node.handover = Some(Handover::Impossible);
    assert_eq!(node.pass(there(ACK), Side::IN), Err(DropReason::NoWay));
    // What is too large for the way is the stack's to tell of.
    node.handover = Some(Handover::TooLarge);
    let came = node.pass(there(ACK), Side::IN);
    assert_eq!(came, Ok(segment((CLIENT, 4000), (FAR, 8080), ACK)));
}

#[test]
fn open_connections_of_an_address_that_came_from_another_node_stay_that_nodes() {
    let mut node = node();
    node.former = Some(address(FORMER));
    node.handover = Some(Handover::Done);
    // New ones are this node's.
    let of = |port, flags| segment((CLIENT, port), (BALANCER, 80), flags);
    for flags in [SYN, ACK] {
        let came = node.pass(of(4000, flags), Side::IN);
        assert_eq!(came, Ok(segment((CLIENT, 4000), (FAR, 8080), flags)));
    }
    assert_eq!(node.handed_to, None);
    // Also those to a backend that is here: there, the other has answered for it.
    for port in [80, 90] {
        let open = segment((CLIENT, 4001), (BALANCER, port), ACK);
        for _ in 0..2 {
            assert_eq!(node.pass(open.clone(), Side::IN), Ok(open.clone()));
            assert_eq!(node.handed_to.take(), Some(address(FORMER)));
        }
    }
    // A client that begins anew from the same port is not handed over.
    assert_ne!(node.pass(of(4001, SYN), Side::IN), Ok(of(4001, SYN)));
    // Nor is what is no service's, or a node port's.
    let other = segment((CLIENT, 4002), (NODE, 30_080), ACK);
    assert!(
        node.pass(other.clone(), Side::IN)
            .is_ok_and(|it| it != other)
    );
    assert_eq!(node.handed_to, None);
}

#[test]
fn what_the_former_node_does_not_take_is_answered_here() {
    let mut node = node();
    node.former = Some(address(FORMER));
    node.handover = Some(Handover::Impossible);
    let open = segment((CLIENT, 4000), (BALANCER, 80), ACK);
    let here = segment((CLIENT, 4000), (FAR, 8080), ACK);
    for _ in 0..2 {
        assert_eq!(node.pass(open.clone(), Side::IN), Ok(here.clone()));
    }
    node.handover = Some(Handover::Done);
    assert_eq!(node.pass(open, Side::IN), Ok(here), "and so it stays");
}

#[test]
fn a_former_node_that_does_not_say_where_it_is_is_given_up() {
    let mut node = node();
    node.former = Some(address(FORMER));
    let open = segment((CLIENT, 4000), (BALANCER, 80), ACK);
    let mut at = |seconds: u64, handover, is_handed| {
        node.now_ns = seconds * 1_000_000_000;
        node.handover = Some(handover);
        let came = node.pass(open.clone(), Side::IN).unwrap();
        assert_eq!(came == open, is_handed, "{seconds}");
    };
    at(100, Handover::Done, true);
    at(101, Handover::Asked, true);
    // Nobody has sent anything for long: it is asked once.
    at(900, Handover::Done, true);
    at(1900, Handover::Asked, true);
    at(1902, Handover::Asked, true);
    at(1909, Handover::Asked, false);
    at(1910, Handover::Done, false);
}

#[test]
fn node_ports_are_answered_by_the_backends_node_if_the_service_asks_for_it() {
    let mut node = node();
    node.serve(7, ("0.0.0.0", 30_090), TCP, &[(FAR, 8080)]);
    node.handover = Some(Handover::Done);
    let dialled = |port, to| segment((CLIENT, port), to, SYN);
    let came = node.pass(dialled(4000, (NODE, 30_090)), Side::IN);
    assert_eq!(came, Ok(dialled(4000, (FAR, 8080))), "it does not");
    // Another node's port is that node's, unless it hands the packet over.
    let others = dialled(4000, (FORMER, 30_080));
    assert_eq!(node.pass(others.clone(), Side::IN), Ok(others));
    node.flag(FLAG_DIRECT_RETURN);
    let there = dialled(4001, (NODE, 30_090));
    assert_eq!(node.pass(there.clone(), Side::IN), Ok(there));
    // To a pod of this node, which answers as the node that was dialled.
    let came = node.pass(dialled(4001, (FORMER, 30_080)), Side::IN);
    assert_eq!(came, Ok(dialled(4001, (POD, 8080))));
    let left = node.pass(segment((POD, 8080), (CLIENT, 4001), ACK), Side::OUT);
    assert_eq!(left, Ok(segment((FORMER, 30_080), (CLIENT, 4001), ACK)));
    // Never on to a third.
    let on = dialled(4002, (FORMER, 30_090));
    assert_eq!(node.pass(on.clone(), Side::IN), Ok(on));
}
