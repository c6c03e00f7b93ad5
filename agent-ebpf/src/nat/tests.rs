mod handed_over;
mod leaving;
mod properties;

use super::testing::{error, *};
use super::*;
use crate::abi::{FLAG_DIRECT_RETURN, FLAG_LOCAL_ONLY, FLAG_SOURCE_RANGES, Scope, SourceRange};
use crate::packet::{ICMP, testing::*};

const SYN: u8 = TCP_SYN;
const ACK: u8 = TCP_ACK;

fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    packet(from.0, to.0, TCP, &tcp(from.1, to.1, flags))
}

fn datagram(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    packet(from.0, to.0, UDP, &udp(from.1, to.1, b"payload"))
}

fn node() -> World {
    let mut world = World::default();
    world.serve(1, ("0.0.0.0", 30_080), TCP, &[(POD, 8080)]);
    world.serve(2, ("0.0.0.0", 30_053), UDP, &[(POD, 53)]);
    world.serve(3, (BALANCER, 80), TCP, &[(FAR, 8080)]);
    world.serve(4, (BALANCER, 81), TCP, &[]);
    world.serve(5, ("0.0.0.0", 30_081), TCP, &[]);
    world.serve(6, (BALANCER, 90), TCP, &[(POD, 8080)]);
    world
}

/// From whom and to whom a frame is.
fn ports_of(frame: &[u8]) -> (u16, u16) {
    let at = |n: usize| u16::from_be_bytes([frame[34 + n], frame[35 + n]]);
    (at(0), at(2))
}

#[test]
fn a_node_port_leads_to_a_pod_that_sees_its_client_and_answers_as_the_node() {
    let mut node = node();
    for flags in [SYN, ACK] {
        let came = node.pass(segment((CLIENT, 4000), (NODE, 30_080), flags), Side::IN);
        assert_eq!(came, Ok(segment((CLIENT, 4000), (POD, 8080), flags)));
        let left = node.pass(segment((POD, 8080), (CLIENT, 4000), ACK), Side::OUT);
        assert_eq!(left, Ok(segment((NODE, 30_080), (CLIENT, 4000), ACK)));
    }
    assert_eq!(node.rows.borrow().len(), 2);
    let other = segment((CLIENT, 4000), (NODE, 22), SYN);
    assert_eq!(node.pass(other.clone(), Side::IN), Ok(other), "no service");
    let other = segment((CLIENT, 4000), ("203.0.113.9", 30_080), SYN);
    assert_eq!(
        node.pass(other.clone(), Side::IN),
        Ok(other),
        "not this node"
    );
}

#[test]
fn a_host_port_is_answered_whatever_its_number_and_never_given_away() {
    let mut node = node();
    node.serve(7, ("0.0.0.0", HOST_PORT), TCP, &[(POD, 8080)]);
    let came = node.pass(segment((CLIENT, 4000), (NODE, HOST_PORT), SYN), Side::IN);
    assert_eq!(came, Ok(segment((CLIENT, 4000), (POD, 8080), SYN)));
    let left = node.pass(segment((POD, 8080), (CLIENT, 4000), ACK), Side::OUT);
    assert_eq!(left, Ok(segment((NODE, HOST_PORT), (CLIENT, 4000), ACK)));

    node.sender = Sender::Pod;
    let out = node.pass(segment((POD, HOST_PORT), ("192.0.2.9", 80), SYN), Side::OUT);
    let (source, _) = ports_of(&out.unwrap());
    assert_ne!(source, HOST_PORT, "clients of the host port come there");
}

/// A node with a service in the cluster, of a far backend, of the pod itself, and of nobody.
fn cluster() -> World {
    let mut world = node();
    for (n, port, backend) in [
        (20, 80, Some((FAR, 8080))),
        (21, 81, Some((POD, 8080))),
        (22, 82, None),
    ] {
        for (more, protocol) in [(0, TCP), (10, UDP)] {
            let at = (CLUSTER_IP, port);
            world.serve_to(Scope::CLUSTER, n + more, at, protocol, backend.as_slice());
        }
    }
    world
}

const CLUSTER_IP: &str = "10.96.0.1";

#[test]
fn what_a_pod_sends_to_a_service_goes_to_its_backend_and_answers_come_from_the_service() {
    let mut node = cluster();
    for flags in [SYN, ACK] {
        let left = node.pass(
            segment((POD, 4000), (CLUSTER_IP, 80), flags),
            Side::FROM_POD,
        );
        assert_eq!(left, Ok(segment((POD, 4000), (FAR, 8080), flags)));
        let came = node.pass(segment((FAR, 8080), (POD, 4000), ACK), Side::TO_POD);
        assert_eq!(came, Ok(segment((CLUSTER_IP, 80), (POD, 4000), ACK)));
    }
    let asked = node.pass(datagram((POD, 4000), (CLUSTER_IP, 80)), Side::FROM_POD);
    assert_eq!(asked, Ok(datagram((POD, 4000), (FAR, 8080))));
    let about = datagram((POD, 4000), (FAR, 8080));
    let told = node.pass(error("203.0.113.9", POD, about), Side::TO_POD);
    let about = datagram((POD, 4000), (CLUSTER_IP, 80));
    assert_eq!(told, Ok(error("203.0.113.9", POD, about)));

    // What is no service's, or only for clients outside, is left alone; so is what nobody asked for.
    for (to, side) in [
        ((FAR, 8080), Side::FROM_POD),
        ((BALANCER, 80), Side::FROM_POD),
        ((POD, 4000), Side::TO_POD),
    ] {
        let other = segment(("10.244.1.9", 5000), to, SYN);
        assert_eq!(node.pass(other.clone(), side), Ok(other));
    }
}

#[test]
fn a_pod_that_draws_itself_hears_the_service() {
    let mut node = cluster();
    for flags in [SYN, ACK] {
        let back = node.pass(
            segment((POD, 4000), (CLUSTER_IP, 81), flags),
            Side::FROM_POD,
        );
        assert_eq!(back, Ok(segment((CLUSTER_IP, 4000), (POD, 8080), flags)));
        let answer = segment((POD, 8080), (CLUSTER_IP, 4000), ACK);
        let back = node.pass(answer, Side::FROM_POD);
        assert_eq!(back, Ok(segment((CLUSTER_IP, 81), (POD, 4000), ACK)));
    }
    // Each row is the other's, which the sweep goes by.
    for (key, row) in node.rows.borrow().iter() {
        let other = node.rows.borrow()[&key.answers(row)];
        assert_eq!(key.answers(row).answers(&other), *key);
    }
}

#[test]
fn a_pod_is_refused_by_the_node_where_no_backend_could_answer() {
    let mut node = cluster();
    let sent = node.pass(segment((POD, 4000), (CLUSTER_IP, 82), SYN), Side::FROM_POD);
    assert_eq!(sent, Ok(segment((POD, 4000), (NODE, 0), SYN)));
    let refusal = node.pass(segment((NODE, 0), (POD, 4000), TCP_RST), Side::TO_POD);
    assert_eq!(refusal, Ok(segment((CLUSTER_IP, 82), (POD, 4000), TCP_RST)));
    assert_eq!(node.refused.get(), 1);
}

#[test]
fn a_backend_elsewhere_sees_the_node_and_its_answers_find_the_client() {
    let mut node = node();
    for flags in [SYN, ACK] {
        let came = node.pass(segment((CLIENT, 4000), (BALANCER, 80), flags), Side::IN);
        let left = node.pass(came.unwrap(), Side::OUT);
        assert_eq!(left, Ok(segment((NODE, 4000), (FAR, 8080), flags)));
        let answer = node.pass(segment((FAR, 8080), (NODE, 4000), ACK), Side::IN);
        assert_eq!(answer, Ok(segment((FAR, 8080), (CLIENT, 4000), ACK)));
        let answer = node.pass(answer.unwrap(), Side::OUT);
        assert_eq!(answer, Ok(segment((BALANCER, 80), (CLIENT, 4000), ACK)));
    }
    assert_eq!(node.rows.borrow().len(), 4);
    assert_eq!(node.opened.get(), 1, "once, however many rows");
}

#[test]
fn two_services_with_one_backend_never_get_each_others_answers() {
    let mut node = node();
    let first = node
        .pass(segment((CLIENT, 4000), (NODE, 30_080), SYN), Side::IN)
        .unwrap();
    let second = node
        .pass(segment((CLIENT, 4000), (BALANCER, 90), SYN), Side::IN)
        .unwrap();
    let (port, other) = (ports_of(&first).0, ports_of(&second).0);
    assert_eq!(port, 4000);
    assert_ne!(port, other);
    let answer = node.pass(segment((POD, 8080), (CLIENT, port), ACK), Side::OUT);
    assert_eq!(answer, Ok(segment((NODE, 30_080), (CLIENT, 4000), ACK)));
    let answer = node.pass(segment((POD, 8080), (CLIENT, other), ACK), Side::OUT);
    assert_eq!(answer, Ok(segment((BALANCER, 90), (CLIENT, 4000), ACK)));
}

#[test]
fn datagrams_leave_a_backend_that_is_gone_and_connections_stay() {
    let mut node = node();
    let ask = || datagram((CLIENT, 4000), (NODE, 30_053));
    assert_eq!(
        node.pass(ask(), Side::IN),
        Ok(datagram((CLIENT, 4000), (POD, 53)))
    );
    let open = node.pass(segment((CLIENT, 4000), (NODE, 30_080), SYN), Side::IN);
    node.backends.clear();
    node.serve(2, ("0.0.0.0", 30_053), UDP, &[(FAR, 53)]);
    node.backends
        .insert(BackendId(201), node.backends[&BackendId(200)]);
    node.backends.remove(&BackendId(200));
    assert_eq!(
        node.pass(ask(), Side::IN),
        Ok(datagram((CLIENT, 4000), (FAR, 53)))
    );
    let later = node.pass(segment((CLIENT, 4000), (NODE, 30_080), ACK), Side::IN);
    assert_eq!(ports_of(&later.unwrap()), ports_of(&open.unwrap()));
}

#[test]
fn a_connection_of_the_addresses_and_ports_of_one_that_is_over_is_a_new_one() {
    let over = |world: &World| {
        let rows = world.rows.borrow();
        let over = rows
            .values()
            .filter(|row| row.seen & (TCP_FIN | TCP_RST) != 0);
        over.count()
    };
    // A client's, and one that leaves under the node's address; closed by one end, or the other.
    for end in [TCP_FIN | ACK, TCP_RST] {
        for by_server in [false, true] {
            let mut node = node();
            let there = |flags| segment((CLIENT, 4000), (NODE, 30_080), flags);
            let back = |flags| segment((POD, 8080), (CLIENT, 4000), flags);
            node.pass(there(SYN), Side::IN).unwrap();
            match by_server {
                true => node.pass(back(end), Side::OUT).unwrap(),
                false => node.pass(there(end), Side::IN).unwrap(),
            };
            assert_eq!(over(&node), 1);
            node.pass(there(SYN), Side::IN).unwrap();
            assert_eq!((over(&node), node.rows.borrow().len()), (0, 2));

            let mut node = self::node();
            let there = |flags| segment((POD, 4000), ("192.0.2.9", 443), flags);
            let back = |flags| segment(("192.0.2.9", 443), (NODE, 4000), flags);
            node.sender = Sender::Pod;
            node.pass(there(SYN), Side::OUT).unwrap();
            match by_server {
                true => node.pass(back(end), Side::IN).unwrap(),
                false => node.pass(there(end), Side::OUT).unwrap(),
            };
            assert_eq!(over(&node), 1);
            node.pass(there(SYN), Side::OUT).unwrap();
            assert_eq!((over(&node), node.rows.borrow().len()), (0, 2));
        }
    }
}

#[test]
fn backends_of_this_node_only_see_their_clients_at_whatever_link_they_are() {
    let mut node = node();
    node.flag(FLAG_LOCAL_ONLY);
    let dialled = segment((CLIENT, 4000), (BALANCER, 80), SYN);
    let came = node.pass(dialled, Side::IN).unwrap();
    assert_eq!(came, segment((CLIENT, 4000), (FAR, 8080), SYN));
    assert_eq!(node.pass(came.clone(), Side::OUT), Ok(came));
}

#[test]
fn what_no_backend_can_answer_is_the_nodes_to_refuse() {
    let mut node = node();
    let dialled = segment((CLIENT, 4000), (NODE, 30_081), SYN);
    assert_eq!(node.pass(dialled.clone(), Side::IN), Ok(dialled));
    for _ in 0..2 {
        let came = node.pass(segment((CLIENT, 4000), (BALANCER, 81), SYN), Side::IN);
        assert_eq!(came, Ok(segment((CLIENT, 4000), (NODE, 0), SYN)));
        node.sender = Sender::Own;
        let refused = node.pass(segment((NODE, 0), (CLIENT, 4000), TCP_RST), Side::OUT);
        assert_eq!(
            refused,
            Ok(segment((BALANCER, 81), (CLIENT, 4000), TCP_RST))
        );
    }
    assert_eq!(node.refused.get(), 3);
    // When there is a backend, the next attempt reaches it.
    node.sender = Sender::Other;
    node.serve(4, (BALANCER, 81), TCP, &[(POD, 81)]);
    let came = node.pass(segment((CLIENT, 4000), (BALANCER, 81), SYN), Side::IN);
    assert_eq!(came, Ok(segment((CLIENT, 4000), (POD, 81), SYN)));
}

#[test]
fn bytes_are_counted_in_both_directions() {
    let mut node = node();
    let there = segment((CLIENT, 4000), (NODE, 30_080), SYN);
    let back = segment((POD, 8080), (CLIENT, 4000), ACK);
    for _ in 0..3 {
        node.pass(there.clone(), Side::IN).unwrap();
        node.pass(back.clone(), Side::OUT).unwrap();
    }
    let rows = node.rows.borrow();
    let bytes: Vec<u64> = rows.values().map(|row| row.bytes).collect();
    assert_eq!(bytes, [3 * (there.len() as u64 - 14); 2]);
}

#[test]
fn only_the_clients_that_a_service_is_for_are_served() {
    let mut node = node();
    node.flag(FLAG_SOURCE_RANGES);
    let dialled = || segment((CLIENT, 4000), (BALANCER, 80), SYN);
    assert_eq!(node.pass(dialled(), Side::IN), Err(DropReason::SourceRange));
    node.ranges.insert(SourceRange {
        service_id: 3_u32.to_be_bytes(),
        address: address(CLIENT),
    });
    assert!(node.pass(dialled(), Side::IN).is_ok());
}

#[test]
fn errors_reach_whom_they_concern_in_his_own_terms() {
    let mut node = node();
    let came = node
        .pass(segment((CLIENT, 4000), (BALANCER, 80), SYN), Side::IN)
        .unwrap();
    node.pass(came, Side::OUT).unwrap();
    let router = "192.0.2.250";
    // On the way to the backend: by the far backend's network, and by the node itself.
    let about = segment((NODE, 4000), (FAR, 8080), ACK);
    let came = node.pass(error(router, NODE, about), Side::IN);
    let between = || segment((CLIENT, 4000), (FAR, 8080), ACK);
    assert_eq!(came, Ok(error(router, CLIENT, between())));
    let told = error(router, CLIENT, segment((CLIENT, 4000), (BALANCER, 80), ACK));
    assert_eq!(node.pass(came.unwrap(), Side::OUT), Ok(told));
    node.sender = Sender::Own;
    let told = error(NODE, CLIENT, segment((CLIENT, 4000), (BALANCER, 80), ACK));
    assert_eq!(
        node.pass(error(NODE, CLIENT, between()), Side::OUT),
        Ok(told)
    );
    // By the backend: it is the service that says so.
    node.sender = Sender::Other;
    let told = error(
        BALANCER,
        CLIENT,
        segment((CLIENT, 4000), (BALANCER, 80), ACK),
    );
    assert_eq!(
        node.pass(error(FAR, CLIENT, between()), Side::OUT),
        Ok(told)
    );
    // On the way to the client.
    let about = segment((BALANCER, 80), (CLIENT, 4000), ACK);
    let came = node.pass(error(router, BALANCER, about), Side::IN);
    assert_eq!(
        came,
        Ok(error(
            router,
            FAR,
            segment((FAR, 8080), (CLIENT, 4000), ACK)
        ))
    );
    let told = error(router, FAR, segment((FAR, 8080), (NODE, 4000), ACK));
    assert_eq!(node.pass(came.unwrap(), Side::OUT), Ok(told));
    // About others, it stays as it is.
    let others = error(router, NODE, segment((NODE, 22), (CLIENT, 4000), ACK));
    assert_eq!(node.pass(others.clone(), Side::IN), Ok(others));
}

#[test]
fn advice_to_send_to_a_backend_directly_is_dropped() {
    let mut node = node();
    node.pass(segment((CLIENT, 4000), (BALANCER, 80), SYN), Side::IN)
        .unwrap();
    let about = segment((CLIENT, 4000), (FAR, 8080), SYN);
    let advice = packet(
        NODE,
        CLIENT,
        ICMP,
        &icmp(5, 1, [10, 244, 2, 1], &about[14..]),
    );
    assert_eq!(node.pass(advice, Side::OUT), Err(DropReason::Redirect));
}

#[test]
fn an_answers_row_that_gave_way_is_put_back() {
    let mut node = node();
    node.pass(segment((CLIENT, 4000), (NODE, 30_080), SYN), Side::IN)
        .unwrap();
    node.rows.borrow_mut().retain(|key, _| key.side == Side::IN);
    node.now_ns += REFRESH_NS + 1;
    node.pass(segment((CLIENT, 4000), (NODE, 30_080), ACK), Side::IN)
        .unwrap();
    let answer = node.pass(segment((POD, 8080), (CLIENT, 4000), ACK), Side::OUT);
    assert_eq!(answer, Ok(segment((NODE, 30_080), (CLIENT, 4000), ACK)));
    // And the other way round: the flow goes on to the same port.
    node.rows
        .borrow_mut()
        .retain(|key, _| key.side == Side::OUT);
    let came = node.pass(segment((CLIENT, 4000), (NODE, 30_080), ACK), Side::IN);
    assert_eq!(came, Ok(segment((CLIENT, 4000), (POD, 8080), ACK)));
}

#[test]
fn fragments_follow_the_first() {
    let mut node = node();
    let part = |from: &str, to: &str, offset: u8, more: bool, ports: (u16, u16)| {
        let mut frame = packet(from, to, UDP, &udp(ports.0, ports.1, b"payload"));
        frame[14 + 6] = if more { 0x20 } else { 0 };
        frame[14 + 7] = offset;
        frame[24..26].fill(0);
        let checksum = crate::checksum::Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&checksum);
        frame
    };
    let later = || part(CLIENT, NODE, 2, false, (1, 2));
    assert_eq!(
        node.pass(later(), Side::IN),
        Ok(later()),
        "its first was not seen"
    );
    let first = node.pass(part(CLIENT, NODE, 0, true, (4000, 30_053)), Side::IN);
    assert_eq!(first, Ok(part(CLIENT, POD, 0, true, (4000, 53))));
    let came = node.pass(later(), Side::IN).unwrap();
    assert_eq!(came[14..34], part(CLIENT, POD, 2, false, (1, 2))[14..34]);
    assert_eq!(came[34..], later()[34..]);
}

#[test]
fn a_fragment_whose_first_was_not_seen_reaches_nobody_as_it_is() {
    let fragment = |from: &str, to: &str, protocol, offset: u8| {
        let mut ip = ip(from, to, protocol, &[], &[7; 16]);
        (ip[6], ip[7]) = (if offset == 0 { 0x20 } else { 0 }, offset);
        ip[10..12].fill(0);
        let checksum = crate::checksum::Sum::of(&ip[..20]).checksum();
        ip[10..12].copy_from_slice(&checksum);
        framed(&ip)
    };
    let mut node = node();
    let lost = Err(DropReason::Fragment);
    for protocol in [TCP, UDP] {
        let later = |to: &str| fragment(CLIENT, to, protocol, 2);
        assert_eq!(node.pass(later(BALANCER), Side::IN), lost);
        // A pod's own address, the node's, a group's, and other protocols' are not ours to judge.
        for to in [POD, NODE, "224.0.0.251"] {
            assert_eq!(node.pass(later(to), Side::IN), Ok(later(to)), "{to}");
        }
    }
    let other = fragment(CLIENT, BALANCER, 50, 2);
    assert_eq!(node.pass(other.clone(), Side::IN), Ok(other));
    // One whose first has passed as it is passes, too: others' datagrams by this node.
    let first = fragment(CLIENT, "192.0.2.77", UDP, 0);
    assert_eq!(node.pass(first.clone(), Side::IN), Ok(first));
    let later = fragment(CLIENT, "192.0.2.77", UDP, 2);
    assert_eq!(node.pass(later.clone(), Side::IN), Ok(later));
    // A pod's.
    node.sender = Sender::Pod;
    let left = node.pass(fragment(POD, "192.0.2.9", UDP, 2), Side::OUT);
    assert_eq!(left, Err(DropReason::NotMasqueraded));
    let exempt = fragment(POD, FAR, UDP, 2);
    assert_eq!(node.pass(exempt.clone(), Side::OUT), Ok(exempt));
}

#[test]
fn a_full_table_refuses_what_is_new() {
    let mut node = node();
    node.pass(segment((CLIENT, 4000), (NODE, 30_080), SYN), Side::IN)
        .unwrap();
    node.full = true;
    let refused = node.pass(segment((CLIENT, 4001), (NODE, 30_080), SYN), Side::IN);
    assert_eq!(refused, Err(DropReason::TableFull));
    assert!(
        node.pass(segment((CLIENT, 4000), (NODE, 30_080), ACK), Side::IN)
            .is_ok()
    );
}
