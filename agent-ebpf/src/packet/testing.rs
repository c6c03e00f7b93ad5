//! Packets for tests, made from their parts.

use crate::abi::{Address, TCP, UDP};
use crate::checksum::{Sum, updated};
use crate::packet::{Bytes, ICMP, ICMPV6};

/// An Ethernet frame with this in it.
pub fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frame of an IP packet.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    frame(kind, packet)
}

/// An IPv4 or IPv6 packet, by the family of its addresses. `options` are IPv4's, or extension headers that begin with
/// their own type.
pub fn ip(from: &str, to: &str, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let (from, to) = (address(from), address(to));
    match (from.as_v4(), to.as_v4()) {
        (Some(from), Some(to)) => {
            assert!(options.len().is_multiple_of(4));
            let length = (20 + options.len() + payload.len()) as u16;
            let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
            packet.extend(from.into_iter().chain(to).chain(options.iter().copied()));
            let checksum = Sum::of(&packet).checksum();
            packet[10..12].copy_from_slice(&checksum);
            packet.extend(payload);
            packet
        }
        _ => {
            let extensions = options.get(1..).unwrap_or_default();
            let first = options.first().copied().unwrap_or(protocol);
            let length = (extensions.len() + payload.len()) as u16;
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([first, 64]);
            packet.extend(from.octets().into_iter().chain(to.octets()));
            packet.extend(extensions);
            packet.extend(payload);
            packet
        }
    }
}

pub fn address(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// What a transport's checksum covers besides its own bytes.
fn pseudo(from: Address, to: Address, protocol: u8, length: usize) -> Sum {
    let sum = match (from.as_v4(), to.as_v4()) {
        (Some(from), Some(to)) => Sum::of(&from).plus(Sum::of(&to)),
        _ => Sum::of(&from.octets()).plus(Sum::of(&to.octets())),
    };
    sum.add([0, protocol]).add((length as u16).to_be_bytes())
}

/// A TCP segment or UDP datagram or ICMP message with its checksum, in an IP packet, in a frame.
pub fn packet(from: &str, to: &str, protocol: u8, transport: &[u8]) -> Vec<u8> {
    framed(&packet_in(from, to, protocol, &[], transport))
}

/// The same without a frame, with options or extension headers.
pub fn packet_in(from: &str, to: &str, protocol: u8, options: &[u8], transport: &[u8]) -> Vec<u8> {
    let mut transport = transport.to_vec();
    let at = checksum_at(protocol);
    transport[at..at + 2].fill(0);
    let mut sum = Sum::of(&transport);
    if protocol != ICMP {
        sum = sum.plus(pseudo(
            address(from),
            address(to),
            protocol,
            transport.len(),
        ));
    }
    let checksum = match sum.checksum() {
        [0, 0] if protocol == UDP => [0xff, 0xff],
        checksum => checksum,
    };
    transport[at..at + 2].copy_from_slice(&checksum);
    ip(from, to, protocol, options, &transport)
}

fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        ICMP | ICMPV6 => 2,
        other => panic!("protocol {other} has no checksum"),
    }
}

/// A TCP header with these flags and a few bytes.
pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(b"hello");
    segment
}

/// A UDP datagram.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let words = [source, destination, length, 0].map(u16::to_be_bytes);
    [&words.concat(), payload].concat()
}

/// An ICMP message of either family.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], &rest[..], payload].concat()
}

/// Whether the checksums of a frame's IP header and whole transport are right.
pub fn is_sound(frame: &[u8]) -> bool {
    use crate::packet::{Carried, Part, carried, ipv4, ipv6};
    let network = match carried(frame) {
        Ok(Carried::Ipv4) => ipv4(frame, 14).unwrap(),
        Ok(Carried::Ipv6) => ipv6(frame, 14).unwrap(),
        _ => return true,
    };
    let sums_up = |sum: Sum| sum.folded() == [0xff, 0xff];
    let header = &frame[14..network.transport_at as usize];
    if network.is_ipv4 && !sums_up(Sum::of(header)) {
        return false;
    }
    let transport = &frame[network.transport_at as usize..network.end as usize];
    let known = matches!(network.protocol, TCP | UDP | ICMP | ICMPV6);
    if network.part != Part::Whole || !known {
        return true;
    }
    if network.protocol == UDP {
        match transport.get(6..8) {
            Some([0, 0]) => return network.is_ipv4,
            Some(_) => {}
            // Cut off within its header.
            None => return false,
        }
    }
    let mut sum = Sum::of(transport);
    if network.protocol != ICMP {
        let (from, to) = (network.source, network.destination);
        sum = sum.plus(pseudo(from, to, network.protocol, transport.len()));
    }
    sums_up(sum)
}

impl crate::rewrite::Frame for Vec<u8> {
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Option<()> {
        let place = self.get_mut(at as usize..)?.first_chunk_mut()?;
        *place = *bytes;
        Some(())
    }

    fn adjust_header(&mut self, at: u32, difference: Sum) -> Option<()> {
        let old = self.read(at)?;
        self.write(at, &updated(old, difference))
    }

    fn adjust(&mut self, at: u32, difference: Sum, of: crate::rewrite::Covered) -> Option<()> {
        let old = self.read(at)?;
        self.write(at, &crate::rewrite::adjusted(old, difference, of.is_udp))
    }
}

impl Bytes for Vec<u8> {
    fn length(&self) -> u32 {
        self.len() as u32
    }

    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.as_slice().read(at)
    }
}
