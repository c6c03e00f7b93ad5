use proptest::prelude::*;

use super::*;
use crate::abi::{TCP, UDP};
use crate::packet::testing::*;
use crate::packet::{ICMPV6, TCP_SYN};

fn pod() -> PodEntry {
    PodEntry {
        ipv4: address("10.244.1.7"),
        ipv6: address("fd00:244::7"),
    }
}

fn verdict(frame: &[u8]) -> Result<bool, DropReason> {
    sent(frame, &pod()).map(|sent| matches!(sent, Sent::Packet(_)))
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let from = |from: &str, to: &str| verdict(&packet(from, to, TCP, &tcp(1, 2, TCP_SYN)));
    assert_eq!(from("10.244.1.7", "8.8.8.8"), Ok(true));
    assert_eq!(from("fd00:244::7", "2001:db8::1"), Ok(true));
    for other in ["10.244.1.8", "0.0.0.0", "127.0.0.1", "169.254.0.1"] {
        assert_eq!(from(other, "8.8.8.8"), Err(DropReason::Spoofed), "{other}");
    }
    for other in [
        "fd00:244::8",
        "::",
        "::1",
        "fe80::1",
        "2001:db8::ffff:10.244.1.7",
    ] {
        assert_eq!(
            from(other, "2001:db8::1"),
            Err(DropReason::Spoofed),
            "{other}"
        );
    }
}

#[test]
fn a_pod_without_an_address_of_a_family_sends_nothing_there() {
    let pod = PodEntry {
        ipv6: PodEntry::NONE,
        ..pod()
    };
    for from in ["::", "fd00:244::7"] {
        let frame = packet(from, "fd00::1", UDP, &udp(1, 2, b""));
        assert_eq!(sent(&frame[..], &pod), Err(DropReason::Spoofed));
    }
}

#[test]
fn an_ipv4_address_in_the_form_of_ipv6_is_no_ipv4_packet() {
    // `::ffff:10.244.1.7` on the wire: its bytes are those of the pod's IPv4 address.
    let mut frame = packet("fd00:244::7", "fd00::1", UDP, &udp(1, 2, b""));
    frame[22..38].copy_from_slice(&pod().ipv4.octets());
    assert_eq!(verdict(&frame), Err(DropReason::Spoofed));
}

#[test]
fn neighbours_are_discovered() {
    let solicits = icmp(135, 0, [0; 4], &[0; 16]);
    for (from, to) in [
        ("fe80::7", "ff02::1:ff00:1"),
        ("::", "ff02::1:ff00:7"),
        ("fe80::7", "fe80::1"),
    ] {
        assert_eq!(verdict(&packet(from, to, ICMPV6, &solicits)), Ok(false));
    }
    for to in ["fd00::1", "ff05::1", "ff0e::1"] {
        assert_eq!(
            verdict(&packet("fe80::7", to, ICMPV6, &solicits)),
            Err(DropReason::Spoofed)
        );
    }
    let arp = |sender: [u8; 4]| {
        let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
        message.extend(sender);
        message.extend([0; 10]);
        verdict(&frame(0x0806, &message))
    };
    assert_eq!(arp([10, 244, 1, 7]), Ok(false));
    assert_eq!(arp([0; 4]), Ok(false));
    assert_eq!(arp([10, 244, 1, 1]), Err(DropReason::Spoofed));
}

#[test]
fn other_frames_and_broken_ones_are_refused_by_name() {
    assert_eq!(verdict(&frame(0x88cc, &[0; 40])), Err(DropReason::NotIp));
    assert_eq!(
        verdict(&frame(0x0800, &[0; 10])),
        Err(DropReason::Malformed)
    );
    assert_eq!(verdict(&[0; 12]), Err(DropReason::Malformed));
}

proptest! {
    /// Whatever the frame: a packet that goes on has the pod's own source address.
    #[test]
    fn nothing_goes_on_from_another_address(
        v6: bool,
        changes in proptest::collection::vec((12..60_usize, any::<u8>()), 0..4),
    ) {
        let (from, to) = if v6 { ("fd00:244::7", "fd00::1") } else { ("10.244.1.7", "8.8.8.8") };
        let mut frame = packet(from, to, UDP, &udp(1, 2, &[0; 30]));
        for (at, byte) in changes {
            frame[at] = byte;
        }
        if let Ok(Sent::Packet(network)) = sent(&frame[..], &pod()) {
            let own = if network.is_ipv4 { pod().ipv4 } else { pod().ipv6 };
            prop_assert_eq!(network.source, own);
        }
    }
}

#[test]
fn nobody_else_sends_from_the_addresses_of_this_nodes_pods() {
    let words = |ip: &str| Address::from(ip.parse::<core::net::IpAddr>().unwrap()).words();
    let own = PodRanges {
        ipv4: words("10.244.1.0")[3],
        ipv4_mask: words("255.255.255.0")[3],
        ipv6: words("fd00:244:1::"),
        ipv6_mask: words("ffff:ffff:ffff:ffff::"),
    };
    let from = |source: &str, to: &str| packet(source, to, UDP, &udp(1, 2, b""));
    for (source, to, forged) in [
        ("10.244.1.7", "10.244.1.9", true),
        ("10.244.2.7", "10.244.1.9", false),
        ("192.0.2.7", "10.244.1.9", false),
        ("fd00:244:1::7", "fd00:244:1::9", true),
        ("fd00:244:2::7", "fd00:244:1::9", false),
    ] {
        let frame = from(source, to);
        assert_eq!(is_foreign_pod(&*frame, &own), forged, "{source}");
        assert!(
            !is_foreign_pod(&*frame, &PodRanges::default()),
            "none known"
        );
    }
    assert!(!is_foreign_pod(&[0_u8; 20][..], &own));
}
