use proptest::prelude::*;

use super::*;
use crate::packet::testing::*;
use crate::packet::{
    Carried, ETHERNET_LENGTH, carried, ipv4, ipv6, quoted_ipv4, quoted_ipv6, quoted_transport,
    transport,
};

fn read(frame: &[u8]) -> (Network, Transport) {
    let network = match carried(frame).unwrap() {
        Carried::Ipv4 => ipv4(frame, ETHERNET_LENGTH).unwrap(),
        _ => ipv6(frame, ETHERNET_LENGTH).unwrap(),
    };
    (network, transport(frame, &network).unwrap())
}

fn ends(source: (&str, u16), destination: (&str, u16)) -> Ends {
    Ends {
        source: address(source.0),
        destination: address(destination.0),
        source_port: source.1.to_be_bytes(),
        destination_port: destination.1.to_be_bytes(),
    }
}

/// A packet before and after: the second is as if it had been made so.
#[test]
fn packets_become_what_they_would_have_been_with_the_other_addresses() {
    type Make = fn(u16, u16) -> Vec<u8>;
    let kinds: [(u8, Make); 2] = [
        (TCP, |from, to| tcp(from, to, 2)),
        (UDP, |from, to| udp(from, to, b"odd")),
    ];
    let families = [
        ["198.51.100.2", "203.0.113.1", "10.0.0.1", "10.244.1.7"],
        ["2001:db8::2", "2001:db8::1", "fd00::1", "fd00:244::7"],
    ];
    for [from, to, new_from, new_to] in families {
        for (protocol, make) in kinds {
            let mut frame = packet(from, to, protocol, &make(40_000, 80));
            let (network, transport) = read(&frame);
            let new = ends((new_from, 61_000), (new_to, 8080));
            rewrite(&mut frame, &network, &transport, &new).unwrap();
            assert_eq!(
                frame,
                packet(new_from, new_to, protocol, &make(61_000, 8080))
            );
        }
    }
}

#[test]
fn an_echo_keeps_all_but_its_identifier() {
    for (from, to, protocol, request) in [
        ("10.244.1.7", "192.0.2.9", ICMP, 8),
        ("fd00::7", "fd00::9", ICMPV6, 128),
    ] {
        let mut frame = packet(from, to, protocol, &icmp(request, 0, [0, 7, 0, 1], b"ping"));
        let (network, transport) = read(&frame);
        let new = ends((from, 9), (to, 0));
        rewrite(&mut frame, &network, &transport, &new).unwrap();
        assert_eq!(
            frame,
            packet(from, to, protocol, &icmp(request, 0, [0, 9, 0, 1], b"ping"))
        );
    }
}

#[test]
fn udp_without_a_checksum_stays_so() {
    let mut frame = packet("198.51.100.2", "203.0.113.1", UDP, &udp(1, 2, b""));
    frame[14 + 20 + 6..14 + 20 + 8].fill(0);
    let (network, transport) = read(&frame);
    let new = ends(("198.51.100.2", 1), ("10.244.1.7", 53));
    rewrite(&mut frame, &network, &transport, &new).unwrap();
    assert_eq!(frame[14 + 20 + 6..14 + 20 + 8], [0, 0]);
    assert!(is_sound(&frame));
}

#[test]
fn of_a_later_fragment_only_the_addresses_change() {
    let mut frame = packet("198.51.100.2", "203.0.113.1", UDP, &udp(1, 2, b"end"));
    frame[14 + 6..14 + 8].copy_from_slice(&[0, 9]);
    let payload = frame[34..].to_vec();
    let (network, transport) = read(&frame);
    let new = ends(("198.51.100.2", 1), ("10.244.1.7", 53));
    rewrite(&mut frame, &network, &transport, &new).unwrap();
    assert_eq!(read(&frame).0.destination, address("10.244.1.7"));
    assert_eq!(frame[34..], payload);
}

/// An error of `router` about what `from` sent to `to`, that `to_whom` gets.
fn error(router: &str, to_whom: &str, from: (&str, u16), to: (&str, u16), protocol: u8) -> Vec<u8> {
    let transport = match protocol {
        TCP => tcp(from.1, to.1, 0),
        _ => udp(from.1, to.1, b"?"),
    };
    let quoted = packet_in(from.0, to.0, protocol, &[], &transport);
    match address(router).as_v4() {
        Some(_) => packet(router, to_whom, ICMP, &icmp(3, 4, [0, 0, 5, 0], &quoted)),
        None => packet(router, to_whom, ICMPV6, &icmp(2, 0, [0, 0, 5, 0], &quoted)),
    }
}

fn rewritten(mut frame: Vec<u8>, outer: (&str, &str), new: &Ends) -> Vec<u8> {
    let (network, found) = read(&frame);
    let Transport::Error { quoted_at, .. } = found else {
        panic!("an error");
    };
    let quoted = match network.is_ipv4 {
        true => quoted_ipv4(&frame[..], quoted_at).unwrap(),
        false => quoted_ipv6(&frame[..], quoted_at).unwrap(),
    };
    let transport = quoted_transport(&frame[..], &quoted).unwrap();
    let outer = (address(outer.0), address(outer.1));
    rewrite_error(&mut frame, &network, &outer, &quoted, &transport, new).unwrap();
    frame
}

#[test]
fn an_error_and_what_it_quotes_become_those_of_the_other_addresses() {
    for [router, pod, node, world] in [
        ["198.51.100.9", "10.244.1.7", "203.0.113.1", "192.0.2.50"],
        [
            "2001:db8::9",
            "fd00:244::7",
            "2001:db8::1",
            "2001:db8:5::50",
        ],
    ] {
        for protocol in [TCP, UDP] {
            let seen = error(router, node, (node, 61_000), (world, 443), protocol);
            let wanted = error(router, pod, (pod, 40_000), (world, 443), protocol);
            let new = ends((pod, 40_000), (world, 443));
            assert_eq!(rewritten(seen, (router, pod), &new), wanted);
        }
    }
}

#[test]
fn a_quotation_of_eight_bytes_is_enough() {
    let cut = |frame: Vec<u8>, from: &str, to: &str| {
        let (network, _) = read(&frame);
        let mut message = frame[network.transport_at as usize..].to_vec();
        let quoted = if network.is_ipv4 { 20 } else { 40 };
        message.truncate(8 + quoted + 8);
        packet(from, to, network.protocol, &message)
    };
    let seen = error(
        "198.51.100.9",
        "203.0.113.1",
        ("203.0.113.1", 61_000),
        ("192.0.2.50", 443),
        TCP,
    );
    let seen = cut(seen, "198.51.100.9", "203.0.113.1");
    let new = ends(("10.244.1.7", 40_000), ("192.0.2.50", 443));
    let after = rewritten(seen, ("198.51.100.9", "10.244.1.7"), &new);
    assert!(is_sound(&after));
    let wanted = error(
        "198.51.100.9",
        "10.244.1.7",
        ("10.244.1.7", 40_000),
        ("192.0.2.50", 443),
        TCP,
    );
    let wanted = cut(wanted, "198.51.100.9", "10.244.1.7");
    // All of what is quoted but the length that the packet had.
    assert_eq!(after, wanted);
}

proptest! {
    /// Whatever the addresses and ports: the checksums are right, and the way back leads to the packet that it was.
    #[test]
    fn checksums_stay_right_and_the_way_back_is_the_way(
        v6: bool,
        protocol in prop_oneof![Just(TCP), Just(UDP)],
        old: ([u8; 16], [u8; 16], u16, u16),
        new: ([u8; 16], [u8; 16], u16, u16),
        payload in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let address = |bytes: [u8; 16]| match v6 {
            true => Address::from(std::net::Ipv6Addr::from(bytes)),
            false => Address::v4([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
        let text = |bytes| address(bytes).to_string();
        prop_assume!(!v6 || [old.0, old.1].iter().all(|it| address(*it).as_v4().is_none()));
        let transport = match protocol {
            TCP => [tcp(old.2, old.3, 0), payload].concat(),
            _ => udp(old.2, old.3, &payload),
        };
        let before = packet(&text(old.0), &text(old.1), protocol, &transport);
        let ends = |(from, to, source, destination): ([u8; 16], [u8; 16], u16, u16)| Ends {
            source: address(from),
            destination: address(to),
            source_port: source.to_be_bytes(),
            destination_port: destination.to_be_bytes(),
        };
        let mut frame = before.clone();
        let (network, transport) = read(&frame);
        rewrite(&mut frame, &network, &transport, &ends(new)).unwrap();
        prop_assert!(is_sound(&frame));
        let (network, transport) = read(&frame);
        rewrite(&mut frame, &network, &transport, &ends(old)).unwrap();
        prop_assert!(is_sound(&frame));
        prop_assert_eq!(read(&frame), read(&before));
    }
}
