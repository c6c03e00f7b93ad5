//! By which link answers to clients outside leave.

use super::testing::{error, *};
use super::*;
use crate::packet::testing::*;

fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    packet(from.0, to.0, TCP, &tcp(from.1, to.1, flags))
}

fn node() -> World {
    let mut world = World::default();
    world.serve(1, ("0.0.0.0", 30_080), TCP, &[(POD, 8080)]);
    world.serve(2, ("0.0.0.0", 30_053), UDP, &[(POD, 53)]);
    world
}

/// A packet that the node's routes have led to `link`; whether it goes from there to another one, as it is, or leaves.
fn routed(world: &mut World, frame: &[u8], link: u32) -> Result<Vec<u8>, u32> {
    (world.link, world.asked) = (link, None);
    let after = world.pass(frame.to_vec(), Side::OUT).unwrap();
    match world.asked {
        Some((by, flow)) if world.has_way => {
            assert_eq!(after, frame, "as it is");
            assert_eq!(flow.destination, address(CLIENT));
            Err(by)
        }
        _ => Ok(after),
    }
}

fn come(world: &mut World, frame: Vec<u8>, link: u32) {
    world.link = link;
    world.pass(frame, Side::IN).unwrap();
}

fn to_service(flags: u8) -> Vec<u8> {
    segment((CLIENT, 4000), (NODE, 30_080), flags)
}

fn answer() -> Vec<u8> {
    segment((POD, 8080), (CLIENT, 4000), TCP_ACK)
}

fn translated() -> Vec<u8> {
    segment((NODE, 30_080), (CLIENT, 4000), TCP_ACK)
}

#[test]
fn an_answer_leaves_by_its_clients_link_and_is_translated_and_counted_there_alone() {
    let mut world = node();
    come(&mut world, to_service(TCP_SYN), LINK);
    assert_eq!(routed(&mut world, &answer(), LINK), Ok(translated()));
    let before = world.rows.borrow().clone();
    assert_eq!(routed(&mut world, &answer(), OTHER_LINK), Err(LINK));
    assert_eq!(*world.rows.borrow(), before, "nobody was here");
    let asked = world.asked.unwrap().1;
    assert_eq!(asked.source, address(NODE), "rules may go by the source");
    assert_eq!(routed(&mut world, &answer(), LINK), Ok(translated()));
}

#[test]
fn where_no_route_leads_to_the_client_by_its_link_the_nodes_own_routes_hold() {
    let mut world = node();
    come(&mut world, to_service(TCP_SYN), LINK);
    world.has_way = false;
    assert_eq!(routed(&mut world, &answer(), OTHER_LINK), Ok(translated()));
}

#[test]
fn answers_to_other_nodes_pods_behind_a_tunnel_leave_by_that() {
    let mut world = node();
    come(&mut world, to_service(TCP_SYN), LINK);
    world.is_tunnel = true;
    assert_eq!(routed(&mut world, &answer(), OTHER_LINK), Ok(translated()));
    assert_eq!(world.asked, None);
}

#[test]
fn answers_follow_a_client_that_comes_by_another_link() {
    let mut world = node();
    come(&mut world, to_service(TCP_SYN), LINK);
    come(&mut world, to_service(TCP_ACK), OTHER_LINK);
    assert_eq!(routed(&mut world, &answer(), LINK), Err(OTHER_LINK));
    assert_eq!(routed(&mut world, &answer(), OTHER_LINK), Ok(translated()));
    let links: Vec<u32> = world.rows.borrow().values().map(|row| row.link).collect();
    assert_eq!(links, [OTHER_LINK; 2]);
    let bytes = world
        .rows
        .borrow()
        .values()
        .map(|row| row.bytes)
        .sum::<u64>();
    assert_eq!(
        bytes,
        3 * (to_service(TCP_ACK).len() as u64 - 14),
        "what was counted is kept"
    );
}

#[test]
fn datagrams_errors_and_a_pods_own_answers_leave_by_the_clients_link_too() {
    let mut world = node();
    let ask = packet(CLIENT, NODE, UDP, &udp(4000, 30_053, b"payload"));
    come(&mut world, ask, LINK);
    let answer = packet(POD, CLIENT, UDP, &udp(53, 4000, b"payload"));
    assert_eq!(routed(&mut world, &answer, OTHER_LINK), Err(LINK));
    let about = packet(CLIENT, POD, UDP, &udp(4000, 53, b"payload"));
    let told = error(POD, CLIENT, about);
    assert_eq!(routed(&mut world, &told, OTHER_LINK), Err(LINK));
    assert!(routed(&mut world, &told, LINK).is_ok());

    let mut world = World::default();
    world.sender = Sender::Pod;
    world.reach(segment((CLIENT, 4000), (POD, 8443), TCP_SYN));
    let answer = segment((POD, 8443), (CLIENT, 4000), TCP_ACK);
    assert_eq!(routed(&mut world, &answer, OTHER_LINK), Err(LINK));
    assert_eq!(routed(&mut world, &answer, LINK), Ok(answer.clone()));
    world.link = OTHER_LINK;
    world.reach(segment((CLIENT, 4000), (POD, 8443), TCP_ACK));
    assert_eq!(routed(&mut world, &answer, LINK), Err(OTHER_LINK));
}

#[test]
fn what_the_node_begins_leaves_by_its_routes() {
    let mut world = node();
    world.sender = Sender::Pod;
    for link in [LINK, OTHER_LINK] {
        let out = segment((POD, 5000), (CLIENT, 80), TCP_SYN);
        assert!(routed(&mut world, &out, link).is_ok());
    }
    // Its answers may come by either.
    let back = segment((CLIENT, 80), (NODE, 5000), TCP_ACK);
    for link in [LINK, OTHER_LINK] {
        world.link = link;
        let came = world.pass(back.clone(), Side::IN);
        assert_eq!(came, Ok(segment((CLIENT, 80), (POD, 5000), TCP_ACK)));
    }
    assert!(world.rows.borrow().values().all(|row| row.link == LINK));
}
