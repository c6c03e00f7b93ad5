//! What holds of any flows and any packets, of either family.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::packet::ICMPV6;

proptest! {
    /// However many flows there are, of either family: each has a place of its own on the wire, and its answers find it and
    /// nobody else.
    #[test]
    fn every_answer_finds_its_flow(
        flows in proptest::collection::btree_set((any::<bool>(), 0..6_u8, 1..5_u16, 0..3_usize), 1..60),
        from_outside in proptest::collection::btree_set((any::<bool>(), 0..3_u8, 1..5_u16, 0..3_usize), 0..30),
    ) {
        let mut node = dual();
        let worlds = |of: &Family| [(of.worlds[0], 443), (of.worlds[0], 80), (of.worlds[1], 443)];
        let mut wire = BTreeSet::new();
        let mut sent = Vec::new();
        node.sender = Sender::Pod;
        for (six, pod, port, to) in flows {
            let of = family(six);
            let (pod, port) = (format!("{}{pod}", of.pods), 4000 + port);
            let left = node.pass(segment((&pod, port), worlds(of)[to], SYN), Side::OUT).unwrap();
            prop_assert!(is_sound(&left));
            let own = of.ports(&left).0;
            prop_assert!(wire.insert((six, own, to)));
            sent.push((six, pod, port, to, own));
        }
        node.sender = Sender::Other;
        let mut between = BTreeSet::new();
        for (six, client, port, to) in from_outside {
            let of = family(six);
            let services = [(of.node, 30_080), (of.balancer, 80), (of.balancer, 90)];
            let (client, port) = (format!("{}{client}", of.clients), 5000 + port);
            let came = node.pass(segment((&client, port), services[to], SYN), Side::IN).unwrap();
            prop_assert!(is_sound(&came));
            let own = of.ports(&came).0;
            let backend = if to == 1 { of.far } else { of.pod };
            prop_assert!(between.insert((client.clone(), own, backend)));
            let answer = node.pass(segment((backend, 8080), (&client, own), ACK), Side::OUT);
            prop_assert_eq!(answer, Ok(segment(services[to], (&client, port), ACK)));
        }
        for (six, pod, port, to, own) in sent {
            let of = family(six);
            let from = worlds(of)[to];
            let answer = node.pass(segment(from, (of.node, own), ACK), Side::IN);
            prop_assert_eq!(answer, Ok(segment(from, (&pod, port), ACK)));
        }
    }

    /// Whatever comes, it is passed on or dropped, and what is passed on still has the right checksums.
    #[test]
    fn mutated_packets_break_nothing(
        kind in 0..3_u8,
        six in any::<bool>(),
        changes in proptest::collection::vec((12..100_usize, any::<u8>()), 0..4),
        side in prop_oneof![Just(Side::IN), Just(Side::OUT)],
    ) {
        let mut node = dual();
        let of = family(six);
        let (client, own) = ((of.client, 4000), (of.node, 30_080));
        node.pass(segment(client, own, SYN), Side::IN).unwrap();
        let mut frame = match kind {
            0 => segment(client, own, ACK),
            1 => segment((of.pod, 8080), client, ACK),
            _ => {
                let about = segment(own, client, ACK);
                let (protocol, kind) = if six { (ICMPV6, 1) } else { (ICMP, 3) };
                packet(of.worlds[1], of.node, protocol, &icmp(kind, 4, [0; 4], &about[14..]))
            }
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        let readable = |frame: &[u8]| match carried(frame) {
            Ok(Carried::Ipv4) => ipv4(frame, 14).is_ok(),
            Ok(Carried::Ipv6) => ipv6(frame, 14).is_ok(),
            _ => false,
        };
        let was_sound = readable(&frame) && is_sound(&frame);
        if let Ok(after) = node.pass(frame, side) && was_sound {
            prop_assert!(is_sound(&after));
        }
    }
}

/// Who is who in one family.
struct Family {
    node: &'static str,
    client: &'static str,
    clients: &'static str,
    pod: &'static str,
    pods: &'static str,
    far: &'static str,
    balancer: &'static str,
    worlds: [&'static str; 2],
    header: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        node: NODE,
        client: CLIENT,
        clients: "198.51.100.",
        pod: POD,
        pods: "10.244.1.",
        far: FAR,
        balancer: BALANCER,
        worlds: ["192.0.2.9", "192.0.2.10"],
        header: 20,
    },
    Family {
        node: NODE_V6,
        client: CLIENT_V6,
        clients: "2001:db8:2::",
        pod: POD_V6,
        pods: "fd00:10:244:1::",
        far: FAR_V6,
        balancer: BALANCER_V6,
        worlds: ["2001:db8:9::9", "2001:db8:9::10"],
        header: 40,
    },
];

const fn family(is_ipv6: bool) -> &'static Family {
    &FAMILIES[is_ipv6 as usize]
}

impl Family {
    /// From which port and to which one a frame is.
    fn ports(&self, frame: &[u8]) -> (u16, u16) {
        let at = |n: usize| {
            u16::from_be_bytes([frame[14 + self.header + n], frame[15 + self.header + n]])
        };
        (at(0), at(2))
    }
}

/// A node of both families.
fn dual() -> World {
    let mut world = node();
    world.own_ipv6 = Some(address(NODE_V6));
    world.serve(11, ("::", 30_080), TCP, &[(POD_V6, 8080)]);
    world.serve(13, (BALANCER_V6, 80), TCP, &[(FAR_V6, 8080)]);
    world.serve(16, (BALANCER_V6, 90), TCP, &[(POD_V6, 8080)]);
    world
}
