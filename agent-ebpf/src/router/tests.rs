use proptest::prelude::*;

use super::*;
use crate::abi::{TCP, UDP};
use crate::packet::testing::*;
use crate::packet::{ETHERNET_LENGTH, ipv4, ipv6};

fn network(packet: &[u8]) -> Network {
    let frame = framed(packet);
    let read = match packet[0] >> 4 {
        4 => ipv4(&frame[..], ETHERNET_LENGTH),
        _ => ipv6(&frame[..], ETHERNET_LENGTH),
    };
    read.unwrap()
}

fn plain(from: &str, to: &str, options: &[u8]) -> bool {
    is_plain(&network(&packet_in(
        from,
        to,
        UDP,
        options,
        &udp(1, 2, b"hello"),
    )))
}

#[test]
fn a_packet_that_asks_for_nothing_is_plain() {
    assert!(plain("10.244.1.7", "10.244.1.8", &[]));
    assert!(plain("fd00::7", "fd00::8", &[]));
}

#[test]
fn options_and_extension_headers_are_the_kernels() {
    // Router alert; a hop-by-hop header, and a fragment.
    assert!(!plain("10.244.1.7", "10.244.1.8", &[0x94, 4, 0, 0]));
    let hop_by_hop = [0, UDP, 0, 1, 4, 0, 0, 0, 0];
    let fragment = [44, UDP, 0, 0, 1, 0, 0, 0, 9];
    for extension in [hop_by_hop, fragment] {
        assert!(!plain("fd00::7", "fd00::8", &extension));
    }
}

#[test]
fn a_lifetime_that_ends_here_is_the_kernels_to_tell_of() {
    for (from, to) in [("10.244.1.7", "10.244.1.8"), ("fd00::7", "fd00::8")] {
        let packet = packet_in(from, to, TCP, &[], &tcp(1, 2, 0));
        let mut network = network(&packet);
        for (hops, expected) in [(0, false), (1, false), (2, true), (255, true)] {
            network.hops = hops;
            assert_eq!(is_plain(&network), expected, "{from}: {hops}");
        }
    }
}

#[test]
fn ipv6_addresses_that_no_router_knows_are_the_kernels() {
    for other in ["fe80::1", "ff02::1", "::", "::1", "::ffff:10.244.1.7"] {
        let (mut from, mut to) = (
            network(&packet_in("fd00::7", "fd00::8", UDP, &[], &udp(1, 2, b""))),
            network(&packet_in("fd00::7", "fd00::8", UDP, &[], &udp(1, 2, b""))),
        );
        let address = match other.parse().unwrap() {
            std::net::IpAddr::V6(ip) => Address::from(ip),
            std::net::IpAddr::V4(ip) => Address::from(ip),
        };
        from.source = address;
        to.destination = address;
        assert!(!is_plain(&from), "from {other}");
        assert!(!is_plain(&to), "to {other}");
    }
}

proptest! {
    #[test]
    fn one_hop_less_leaves_the_checksum_as_right_as_it_was(
        hops in 2_u8..,
        service in any::<u8>(),
        identification in any::<u16>(),
        error in any::<u16>(),
    ) {
        let mut packet = packet_in("10.244.1.7", "10.244.1.8", TCP, &[], &tcp(1, 2, 0));
        packet[1] = service;
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        packet[8] = hops;
        packet[10..12].fill(0);
        // Wrong by `error`: a router's work must not put it right.
        let checksum = Sum::of(&packet[..20]).add(error.to_be_bytes()).checksum();
        packet[10..12].copy_from_slice(&checksum);
        let before = Sum::of(&packet[..20]).folded();
        let later = one_hop_later(&framed(&packet)[..], &network(&packet)).unwrap();
        prop_assert_eq!(&later[..2], &[hops - 1, TCP]);
        packet[8..12].copy_from_slice(&later);
        let zero = |sum: [u8; 2]| if sum == [0; 2] { [0xff; 2] } else { sum };
        prop_assert_eq!(zero(Sum::of(&packet[..20]).folded()), zero(before));
    }
}

#[test]
fn an_answer_about_a_sender_holds_for_that_packets_ends_and_that_moment_only() {
    let of = |from, to| network(&packet_in(from, to, UDP, &[], &udp(1, 2, b"hello")));
    for (from, to, other) in [
        ("10.244.2.7", "10.244.1.8", "10.244.2.9"),
        ("fd00:2::7", "fd00:1::8", "fd00:2::9"),
    ] {
        let asked = of(from, to);
        let path = ReversePath {
            source: asked.source,
            destination: asked.destination,
            pod: 5,
            link: 2,
            asked_ns: 4_000_000,
        };
        assert!(path.holds(&asked, 5, 4_000_000));
        assert!(!path.holds(&asked, 5, 8_000_000), "the clock went on");
        assert!(
            !path.holds(&asked, 6, 4_000_000),
            "another pod has the address"
        );
        assert!(!path.holds(&of(other, to), 5, 4_000_000));
        assert!(!path.holds(&of(from, other), 5, 4_000_000));
        assert!(ReversePath::place(&asked) < REVERSE_PATHS);
    }
}
