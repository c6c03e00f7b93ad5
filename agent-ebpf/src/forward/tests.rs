use proptest::prelude::*;

use super::*;
use crate::nat::Handover;
use crate::nat::testing::*;
use crate::packet::testing::{address, is_sound, packet, tcp, udp};
use crate::packet::{Carried, TCP_ACK as ACK, TCP_SYN as SYN, carried, ipv4};

fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    packet(from.0, to.0, TCP, &tcp(from.1, to.1, flags))
}

fn ip(text: &str) -> crate::abi::Address {
    crate::packet::testing::address(text)
}

fn node() -> World {
    let mut world = World::default();
    world.serve(1, (BALANCER, 80), TCP, &[(FAR, 8080)]);
    world.serve(2, (BALANCER, 90), TCP, &[(POD, 8080)]);
    world.serve(3, (BALANCER, 81), TCP, &[]);
    world.serve(4, (BALANCER, 53), UDP, &[(FAR, 53)]);
    world
}

/// A frame as it leaves: one hop fewer, with other hardware addresses.
fn left(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..12].copy_from_slice(&HARDWARE);
    let (old, new) = ([frame[22], frame[23]], [frame[22] - 1, frame[23]]);
    let sum = crate::checksum::updated([frame[24], frame[25]], Sum::default().replace(old, new));
    frame[22] -= 1;
    frame[24..26].copy_from_slice(&sum);
    frame
}

#[test]
fn both_ways_take_the_rows_that_the_stacks_programs_take() {
    let there = |flags| segment((CLIENT, 4000), (BALANCER, 80), flags);
    let back = || segment((FAR, 8080), (NODE, 4000), ACK);
    let went = |flags| left(segment((NODE, 4000), (FAR, 8080), flags));
    let came = || left(segment((BALANCER, 80), (CLIENT, 4000), ACK));
    // Begun here, and begun there.
    let mut here = node();
    assert_eq!(here.forward(there(SYN)), (Course::Onward, went(SYN)));
    assert_eq!(here.rows.borrow().len(), 4);
    let mut stack = node();
    let passed = stack.pass(there(SYN), Side::IN).unwrap();
    stack.pass(passed, Side::OUT).unwrap();
    assert_eq!(*here.rows.borrow(), *stack.rows.borrow());
    for mut world in [here, stack] {
        assert_eq!(world.forward(there(ACK)), (Course::Onward, went(ACK)));
        assert_eq!(world.forward(back()), (Course::Onward, came()));
        let passed = world.pass(there(ACK), Side::IN).unwrap();
        let passed = world.pass(passed, Side::OUT);
        assert_eq!(passed, Ok(segment((NODE, 4000), (FAR, 8080), ACK)));
        assert_eq!(world.rows.borrow().len(), 4);
    }
}

#[test]
fn what_cannot_be_sent_on_from_here_is_the_stacks_and_gets_the_same_backend() {
    let mut world = node();
    world.has_road = false;
    let there = segment((CLIENT, 4000), (BALANCER, 80), SYN);
    assert_eq!(world.forward(there.clone()), (Course::Stack, there.clone()));
    let passed = world.pass(there, Side::IN);
    assert_eq!(passed, Ok(segment((CLIENT, 4000), (FAR, 8080), SYN)));
    // The middle of a connection whose node's row is gone is not begun anew with another port.
    world.has_road = true;
    let middle = segment((CLIENT, 4000), (BALANCER, 80), ACK);
    assert_eq!(world.forward(middle.clone()), (Course::Stack, middle));
}

#[test]
fn what_goes_to_the_stack_is_counted_there_alone() {
    let counted = |world: &World| {
        let rows = world.rows.borrow();
        let mut bytes: Vec<u64> = rows.values().map(|row| row.bytes).collect();
        bytes.sort_unstable();
        bytes
    };
    // To a pod of this node, and to another's by a way that is the stack's alone; each begun here, and there.
    for (port, has_road) in [(90, true), (80, false)] {
        let (mut here, mut stack) = (node(), node());
        for flags in [SYN, ACK, ACK] {
            let there = segment((CLIENT, 4000), (BALANCER, port), flags);
            here.has_road = has_road;
            assert_eq!(here.forward(there.clone()), (Course::Stack, there.clone()));
            for world in [&mut here, &mut stack] {
                let came = world.pass(there.clone(), Side::IN).unwrap();
                world.pass(came, Side::OUT).unwrap();
            }
            if flags == SYN {
                // Of the packet that begins it, whoever makes the row counts it.
                let made = |world: &World| counted(world).iter().max().copied().unwrap();
                assert_eq!(made(&here), made(&stack));
            }
        }
        assert_eq!(counted(&here), counted(&stack), "port {port}");
        // Answers, too: those that the stack sends on.
        here.has_road = false;
        let back = segment((FAR, 8080), (NODE, 4000), ACK);
        here.forward(back.clone());
        for world in [&mut here, &mut stack] {
            let came = world.pass(back.clone(), Side::IN).unwrap();
            world.pass(came, Side::OUT).unwrap();
        }
        assert_eq!(counted(&here), counted(&stack), "port {port}");
    }
}

#[test]
fn a_packet_that_is_handed_over_keeps_all_but_a_hop() {
    let mut world = node();
    world.flag(crate::abi::FLAG_DIRECT_RETURN);
    world.handover = Some(Handover::Done);
    for flags in [SYN, ACK] {
        let there = segment((CLIENT, 4000), (BALANCER, 80), flags);
        let went = (Course::Onward, left(there.clone()));
        assert_eq!(world.forward(there), went);
    }
    world.leads_back = true;
    let there = segment((CLIENT, 4000), (BALANCER, 80), ACK);
    assert_eq!(world.forward(there.clone()), (Course::Stack, there));
}

#[test]
fn an_answer_leaves_by_the_link_by_which_its_client_comes() {
    let mut world = node();
    world.link = LINK;
    world.forward(segment((CLIENT, 4000), (BALANCER, 80), SYN));
    assert_eq!(world.asked.unwrap().0, 0, "to the backend by the routes");
    for link in [LINK, OTHER_LINK] {
        // Whichever link leads to the backend.
        world.link = OTHER_LINK;
        world.forward(segment((FAR, 8080), (NODE, 4000), ACK));
        let (by, flow) = world.asked.unwrap();
        assert_eq!(
            (by, flow.source, flow.destination),
            (LINK, ip(BALANCER), ip(CLIENT)),
            "{link}"
        );
    }
    world.link = OTHER_LINK;
    world.forward(segment((CLIENT, 4000), (BALANCER, 80), ACK));
    world.forward(segment((FAR, 8080), (NODE, 4000), ACK));
    assert_eq!(world.asked.unwrap().0, OTHER_LINK, "by which it came last");
}

#[test]
fn what_the_stack_refuses_is_left_to_it_and_counted_once() {
    let mut world = node();
    let there = segment((CLIENT, 4000), (BALANCER, 81), SYN);
    for _ in 0..2 {
        assert_eq!(world.forward(there.clone()).0, Course::Stack);
    }
    world.flag(crate::abi::FLAG_SOURCE_RANGES);
    let refused = world
        .forward(segment((CLIENT, 4001), (BALANCER, 80), SYN))
        .0;
    assert_eq!(refused, Course::Drop(DropReason::SourceRange));
    world.full = true;
    let (mut world, there) = (node(), segment((CLIENT, 4002), (BALANCER, 80), SYN));
    world.full = true;
    let full = Course::Drop(DropReason::TableFull);
    assert_eq!(world.forward(there).0, full);
}

#[test]
fn nobodys_packets_are_the_stacks() {
    for from in ["0.0.0.9", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let there = segment((from, 4000), (BALANCER, 80), SYN);
        assert_eq!(node().forward(there).0, Course::Stack, "{from}");
    }
    for (address, is) in [
        ("::", false),
        ("::1", false),
        ("ff02::1", false),
        ("fe80::1", false),
        ("febf::1", false),
        ("fec0::1", false),
        ("2001:db8::1", true),
        ("::2", false),
    ] {
        assert_eq!(is_unicast(&ip(address)), is, "{address}");
    }
    for (is_for_node, is_forged) in [(false, false), (true, true)] {
        let mut world = node();
        (world.is_for_node, world.is_forged) = (is_for_node, is_forged);
        let there = segment((CLIENT, 4000), (BALANCER, 80), SYN);
        assert_eq!(world.forward(there.clone()), (Course::Stack, there));
    }
}

proptest! {
    /// Whatever comes: it is the stack's, unchanged; or dropped; or leaves with right checksums, from the service or the
    /// node and to a client or backend that there is.
    #[test]
    fn no_mutation_makes_a_stranger_or_a_wrong_checksum(
        kind in 0..4_u8,
        changes in proptest::collection::vec((12..80_usize, any::<u8>()), 0..4),
        repair: bool,
    ) {
        let mut world = node();
        world.forward(segment((CLIENT, 4000), (BALANCER, 80), SYN));
        world.forward(packet(CLIENT, BALANCER, UDP, &udp(4000, 53, b"?")));
        let mut frame = match kind {
            0 => segment((CLIENT, 4000), (BALANCER, 80), ACK),
            1 => segment((FAR, 8080), (NODE, 4000), ACK),
            2 => packet(CLIENT, BALANCER, UDP, &udp(4000, 53, b"?")),
            _ => packet(FAR, NODE, UDP, &udp(53, 4000, b"!")),
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if repair {
            let sum = Sum::of(&frame[14..34]).replace([frame[24], frame[25]], [0, 0]).checksum();
            frame[24..26].copy_from_slice(&sum);
        }
        let before = frame.clone();
        let readable = |frame: &[u8]| matches!(carried(frame), Ok(Carried::Ipv4)) && ipv4(frame, 14).is_ok();
        let was_sound = readable(&frame) && is_sound(&frame);
        match world.forward(frame) {
            (Course::Stack, after) => prop_assert_eq!(after, before),
            (Course::Drop(_), _) => {}
            (Course::Onward, after) => {
                prop_assert_eq!(&after[..12], &HARDWARE);
                prop_assert!(!was_sound || is_sound(&after));
                let network = ipv4(&after[..], 14).unwrap();
                let ends = (network.source, network.destination);
                let (own, far) = (address(NODE), address(FAR));
                prop_assert!(ends == (own, far) || network.source == address(BALANCER), "{:?}", ends);
            }
        }
    }
}
