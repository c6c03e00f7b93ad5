use proptest::prelude::*;

use super::*;
use crate::packet::testing::*;

fn read(frame: &[u8]) -> Result<(Network, Transport), Malformed> {
    let network = match carried(frame)? {
        Carried::Ipv4 => ipv4(frame, ETHERNET_LENGTH)?,
        Carried::Ipv6 => ipv6(frame, ETHERNET_LENGTH)?,
        _ => return Err(Malformed),
    };
    Ok((network, transport(frame, &network)?))
}

fn ports(source: u16, destination: u16, flags: u8) -> Transport {
    Transport::Ports {
        source: source.to_be_bytes(),
        destination: destination.to_be_bytes(),
        flags,
    }
}

#[test]
fn addresses_ports_and_flags_of_either_family_are_read() {
    for (from, to) in [("192.0.2.1", "10.0.0.2"), ("2001:db8::1", "fd00::2")] {
        let frame = packet(from, to, TCP, &tcp(40_000, 80, TCP_SYN));
        let (network, transport) = read(&frame).unwrap();
        assert_eq!(
            (network.source, network.destination),
            (address(from), address(to))
        );
        assert_eq!((network.part, network.hops), (Part::Whole, 64));
        assert_eq!(network.end as usize, frame.len());
        assert_eq!(transport, ports(40_000, 80, TCP_SYN));
        let frame = packet(from, to, UDP, &udp(5353, 53, b"?"));
        assert_eq!(read(&frame).unwrap().1, ports(5353, 53, 0));
        assert!(is_sound(&frame));
    }
}

#[test]
fn options_and_extension_headers_are_looked_past() {
    let segment = tcp(1, 2, TCP_ACK);
    let frame = framed(&packet_in("192.0.2.1", "10.0.0.2", TCP, &[1; 12], &segment));
    assert_eq!(read(&frame).unwrap().1, ports(1, 2, TCP_ACK));
    // Hop-by-hop of 8 bytes, destination options of 16, an authentication header of 24.
    let mut extensions = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 51, 1];
    extensions.extend([0; 14]);
    extensions.extend([TCP, 4]);
    extensions.extend([0; 22]);
    let frame = framed(&packet_in(
        "2001:db8::1",
        "fd00::2",
        TCP,
        &extensions,
        &segment,
    ));
    let (network, transport) = read(&frame).unwrap();
    assert_eq!(transport, ports(1, 2, TCP_ACK));
    assert_eq!(
        (network.protocol, network.transport_at),
        (TCP, 14 + 40 + 48)
    );
}

#[test]
fn a_long_chain_of_extension_headers_is_malformed() {
    let chain = |headers: usize| {
        let mut extensions = vec![60];
        for n in 1..=headers {
            extensions.extend([if n == headers { UDP } else { 60 }, 0, 0, 0, 0, 0, 0, 0]);
        }
        framed(&packet_in(
            "fd00::1",
            "fd00::2",
            UDP,
            &extensions,
            &udp(1, 2, b""),
        ))
    };
    assert!(read(&chain(MOST_EXTENSIONS as usize)).is_ok());
    assert_eq!(read(&chain(MOST_EXTENSIONS as usize + 1)), Err(Malformed));
}

#[test]
fn later_fragments_have_an_identification_and_no_ports() {
    let mut frame = packet("192.0.2.1", "10.0.0.2", UDP, &udp(1, 2, b"beginning"));
    frame[14 + 6] = 0x20;
    let (network, transport) = read(&frame).unwrap();
    assert_eq!((network.part, network.identification), (Part::First, 7));
    assert_eq!(transport, ports(1, 2, 0));
    frame[14 + 6..14 + 8].copy_from_slice(&[0, 3]);
    let (network, transport) = read(&frame).unwrap();
    assert_eq!((network.part, network.identification), (Part::Later, 7));
    assert_eq!(transport, Transport::Other);

    let fragment = |offset: u16| {
        let [o0, o1] = offset.to_be_bytes();
        let extension = [44, UDP, 0, o0, o1, 1, 2, 3, 4];
        framed(&packet_in(
            "fd00::1",
            "fd00::2",
            UDP,
            &extension,
            &udp(1, 2, b""),
        ))
    };
    let parts = [0, 1, 9].map(|offset| read(&fragment(offset)).unwrap());
    assert_eq!(
        parts.map(|(it, _)| it.part),
        [Part::Whole, Part::First, Part::Later]
    );
    assert_eq!(
        parts.map(|(it, _)| it.identification),
        [0, 0x0102_0304, 0x0102_0304]
    );
    assert_eq!(parts[2].1, Transport::Other);
}

#[test]
fn echoes_and_errors_of_icmp_are_told_apart() {
    let families = [
        ("192.0.2.1", "10.0.0.2", ICMP, [8, 0, 3, 9]),
        ("fd00::1", "fd00::2", ICMPV6, [128, 129, 2, 135]),
    ];
    for (from, to, protocol, [request, reply, error, other]) in families {
        let quoted = packet_in(to, from, UDP, &[], &udp(53, 5353, b"?"));
        let message = |kind| packet(from, to, protocol, &icmp(kind, 0, [9, 8, 0, 1], &quoted));
        let transport = |kind| read(&message(kind)).unwrap().1;
        let echo = |is_request| Transport::Echo {
            identifier: [9, 8],
            is_request,
        };
        assert_eq!(transport(request), echo(true));
        assert_eq!(transport(reply), echo(false));
        assert_eq!(transport(other), Transport::Message { kind: other });
        let frame = message(error);
        let Transport::Error { kind, quoted_at } = transport(error) else {
            panic!("an error");
        };
        assert_eq!(kind, error);
        let inner = match protocol {
            ICMP => quoted_ipv4(&frame[..], quoted_at),
            _ => quoted_ipv6(&frame[..], quoted_at),
        }
        .unwrap();
        assert_eq!(
            (inner.source, inner.destination),
            (address(to), address(from))
        );
        let inner = quoted_transport(&frame[..], &inner).unwrap();
        assert_eq!(inner, ports(53, 5353, 0));
    }
}

#[test]
fn what_stands_behind_the_stated_length_is_not_read() {
    let mut frame = packet("192.0.2.1", "10.0.0.2", UDP, &udp(1, 2, b""));
    frame[14 + 3] -= 1;
    assert_eq!(
        read(&frame),
        Err(Malformed),
        "a header reaches beyond the packet"
    );
    frame[14 + 3] += 1;
    frame.extend([0xee; 30]);
    let (network, _) = read(&frame).unwrap();
    assert_eq!(
        network.end,
        14 + 28,
        "padding of the frame is no part of the packet"
    );
}

#[test]
fn arp_says_who_asks() {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 7];
    message.extend([0; 10]);
    let asks = frame(0x0806, &message);
    assert_eq!(carried(&asks[..]), Ok(Carried::Arp));
    assert_eq!(arp_sender(&asks[..]), Ok(address("10.0.0.7")));
    message[4] = 8;
    assert_eq!(arp_sender(&frame(0x0806, &message)[..]), Err(Malformed));
}

/// Bytes that say when somebody reads beyond them.
struct Watched<'a>(&'a [u8], std::cell::Cell<u32>);

impl Bytes for Watched<'_> {
    fn length(&self) -> u32 {
        self.0.len() as u32
    }

    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let found = self.0.read(at);
        if found.is_some() {
            self.1.set(self.1.get().max(at + N as u32));
        }
        found
    }
}

fn some_packet() -> impl Strategy<Value = Vec<u8>> {
    let transport = prop_oneof![
        any::<(u16, u16, u8)>().prop_map(|(a, b, c)| (TCP, tcp(a, b, c))),
        any::<(u16, u16)>().prop_map(|(a, b)| (UDP, udp(a, b, b"payload"))),
        any::<(u8, [u8; 4])>().prop_map(|(kind, rest)| {
            let quoted = packet_in("10.0.0.1", "10.0.0.2", UDP, &[], &udp(1, 2, b""));
            (ICMP, icmp(kind, 0, rest, &quoted))
        }),
        any::<(u8, [u8; 4])>().prop_map(|(kind, rest)| {
            let quoted = packet_in("fd00::1", "fd00::2", TCP, &[], &tcp(1, 2, 0));
            (ICMPV6, icmp(kind, 0, rest, &quoted))
        }),
    ];
    (transport, any::<bool>(), 0..3_usize).prop_map(|((protocol, transport), v6, options)| {
        let (from, to) = if v6 {
            ("fd00::7", "fd00::8")
        } else {
            ("192.0.2.7", "10.0.0.8")
        };
        let options = match (options, v6) {
            (0, _) => vec![],
            (n, false) => vec![1; 4 * n],
            (n, true) => {
                let mut extensions = vec![60, protocol, (n - 1) as u8];
                extensions.resize(1 + 8 * n, 0);
                extensions
            }
        };
        framed(&packet_in(from, to, protocol, &options, &transport))
    })
}

proptest! {
    #[test]
    fn good_packets_are_read(frame in some_packet()) {
        prop_assert!(is_sound(&frame));
        let (network, _) = read(&frame).unwrap();
        prop_assert_eq!(network.end as usize, frame.len());
    }

    /// Whatever is changed or cut, nothing beyond the packet is read, and what is found lies within it.
    #[test]
    fn mutated_packets_are_read_or_refused(
        mut frame in some_packet(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
        whole: bool,
    ) {
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if !whole {
            frame.truncate(cut.index(frame.len() + 1));
        }
        let watched = Watched(&frame, Default::default());
        for network in [ipv4(&watched, ETHERNET_LENGTH), ipv6(&watched, ETHERNET_LENGTH)].into_iter().flatten() {
            prop_assert!(network.transport_at <= network.end);
            prop_assert!(network.end as usize <= frame.len());
            if transport(&watched, &network).is_ok() {
                prop_assert!(watched.1.get() <= frame.len() as u32);
            }
            let _ = quoted_transport(&watched, &network);
        }
        let _ = (arp_sender(&watched), carried(&watched));
        prop_assert!(watched.1.get() <= frame.len() as u32);
    }

    #[test]
    fn random_bytes_are_read_or_refused(frame in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = read(&frame);
        for at in [0, 14, 60, 119, u32::MAX - 200] {
            let _ = (quoted_ipv4(&frame[..], at), quoted_ipv6(&frame[..], at));
        }
    }
}
