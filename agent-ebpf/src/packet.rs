//! What a packet's headers say. Pure: over a trait that reads bytes, which is a slice here and a socket buffer in the kernel.
//!
//! ```text
//! Ethernet ── IPv4, options ─────────────┬── TCP, UDP: ports
//!          ├─ IPv6, extension headers ───┤── ICMP: an echo's identifier, or the packet that an error is about
//!          └─ ARP                        └── else: no ports
//! ```
//!
//! Nothing beyond the packet is read, nor beyond the length that the IP header states. What does not fit is malformed.

use crate::abi::{Address, Port, TCP, UDP};

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_ICMPV6`.
pub const ICMPV6: u8 = 58;

/// Bytes of an Ethernet header.
pub const ETHERNET_LENGTH: u32 = 14;
/// Extension headers of IPv6 that are looked past. Packets with more are taken as malformed.
pub const MOST_EXTENSIONS: u32 = 6;

/// The bytes of a packet.
pub trait Bytes {
    /// How many there are.
    fn length(&self) -> u32;
    /// `N` of them from `at` on; `None` when the packet ends before.
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
    /// The same, for what every packet has. A program reads it where it lies, which is faster and more to verify.
    #[inline(always)]
    fn near<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.read(at)
    }
}

impl Bytes for [u8] {
    fn length(&self) -> u32 {
        self.len() as u32
    }

    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.get(at as usize..)?.first_chunk().copied()
    }
}

/// The packet contradicts itself, or ends before its headers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Ipv4,
    Ipv6,
    Arp,
    Other,
}

/// Reads the type of an Ethernet frame.
#[inline(always)]
pub fn carried(bytes: &(impl Bytes + ?Sized)) -> Result<Carried, Malformed> {
    match bytes.near(12) {
        Some([0x08, 0x00]) => Ok(Carried::Ipv4),
        Some([0x86, 0xdd]) => Ok(Carried::Ipv6),
        Some([0x08, 0x06]) => Ok(Carried::Arp),
        Some(_) => Ok(Carried::Other),
        None => Err(Malformed),
    }
}

/// Whose address an ARP message over Ethernet says the sender's is: its IPv4 address.
#[inline(always)]
pub fn arp_sender(bytes: &(impl Bytes + ?Sized)) -> Result<Address, Malformed> {
    let header: [u8; 18] = bytes.read(ETHERNET_LENGTH).ok_or(Malformed)?;
    match header {
        [0, 1, 0x08, 0, 6, 4, _, _, _, _, _, _, _, _, a, b, c, d] => Ok(Address::v4([a, b, c, d])),
        _ => Err(Malformed),
    }
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The one that has the transport header.
    First,
    /// One without: its ports are those of the first with the same identification.
    Later,
}

/// The network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub source: Address,
    pub destination: Address,
    /// Where the header begins, in bytes from the start of the frame.
    pub at: u32,
    /// Where the transport header begins, or the rest of a later fragment.
    pub transport_at: u32,
    /// Where the packet ends, by its own account.
    pub end: u32,
    /// What a fragment's siblings have in common; 0 for what is whole.
    pub identification: u32,
    pub part: Part,
    /// Of the transport header.
    pub protocol: u8,
    /// Routers that it may still pass.
    pub hops: u8,
    pub is_ipv4: bool,
}

/// Reads an IPv4 header that begins at `at`. What it states as the packet's length has to be there.
#[inline(always)]
pub fn ipv4(bytes: &(impl Bytes + ?Sized), at: u32) -> Result<Network, Malformed> {
    let mut network = of_ipv4(&bytes.near(at).ok_or(Malformed)?, at)?;
    network.end = end(bytes, at, network.end - at)?;
    if network.end < network.transport_at {
        return Err(Malformed);
    }
    Ok(network)
}

/// The same for a header within an ICMP error, which quotes the beginning of a packet only.
#[inline(always)]
pub fn quoted_ipv4(bytes: &(impl Bytes + ?Sized), at: u32) -> Result<Network, Malformed> {
    of_ipv4(&bytes.read(at).ok_or(Malformed)?, at)
}

#[inline(always)]
fn of_ipv4(header: &[u8; 20], at: u32) -> Result<Network, Malformed> {
    let [first, _, l0, l1, i0, i1, f0, f1, hops, protocol, ..] = *header;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let own = u32::from(first & 15) * 4;
    if first >> 4 != 4 || own < 20 {
        return Err(Malformed);
    }
    let (offset, more) = (u16::from_be_bytes([f0 & 0x1f, f1]), f0 & 0x20 != 0);
    let part = part(offset, more);
    Ok(Network {
        source: Address::v4([s0, s1, s2, s3]),
        destination: Address::v4([d0, d1, d2, d3]),
        at,
        transport_at: at + own,
        end: at + u32::from(u16::from_be_bytes([l0, l1])),
        identification: match part {
            Part::Whole => 0,
            Part::First | Part::Later => u32::from(u16::from_be_bytes([i0, i1])),
        },
        part,
        protocol,
        hops,
        is_ipv4: true,
    })
}

/// Reads an IPv6 header that begins at `at`, and looks past its extension headers.
#[inline(always)]
pub fn ipv6(bytes: &(impl Bytes + ?Sized), at: u32) -> Result<Network, Malformed> {
    let mut network = of_ipv6(
        bytes.near(at).ok_or(Malformed)?,
        bytes.near::<16>(at + 8).ok_or(Malformed)?,
        bytes.near::<16>(at + 24).ok_or(Malformed)?,
        at,
    )?;
    behind_extensions(bytes, &mut network)?;
    let stated = network.end - at;
    network.end = end(bytes, at, if stated == 40 { 0 } else { stated })?;
    if network.end < network.transport_at {
        return Err(Malformed);
    }
    Ok(network)
}

/// The same for a header within an ICMPv6 error.
#[inline(always)]
pub fn quoted_ipv6(bytes: &(impl Bytes + ?Sized), at: u32) -> Result<Network, Malformed> {
    let mut network = of_ipv6(
        bytes.read(at).ok_or(Malformed)?,
        bytes.read::<16>(at + 8).ok_or(Malformed)?,
        bytes.read::<16>(at + 24).ok_or(Malformed)?,
        at,
    )?;
    behind_extensions(bytes, &mut network)?;
    Ok(network)
}

#[inline(always)]
fn of_ipv6(
    first: [u8; 8],
    source: [u8; 16],
    destination: [u8; 16],
    at: u32,
) -> Result<Network, Malformed> {
    let [first, _, _, _, l0, l1, next, hops] = first;
    if first >> 4 != 6 {
        return Err(Malformed);
    }
    Ok(Network {
        source: source.into(),
        destination: destination.into(),
        at,
        transport_at: at + 40,
        end: at + 40 + u32::from(u16::from_be_bytes([l0, l1])),
        identification: 0,
        part: Part::Whole,
        protocol: next,
        hops,
        is_ipv4: false,
    })
}

#[inline(always)]
fn behind_extensions(
    bytes: &(impl Bytes + ?Sized),
    network: &mut Network,
) -> Result<(), Malformed> {
    for _ in 0..=MOST_EXTENSIONS {
        if !extension(bytes, network)? {
            return Ok(());
        }
    }
    Err(Malformed)
}

/// Looks past one extension header; false when there is none, or nothing can be read behind it.
#[inline(always)]
fn extension(bytes: &(impl Bytes + ?Sized), network: &mut Network) -> Result<bool, Malformed> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let length = match network.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {
            let header: [u8; 8] = bytes.read(network.transport_at).ok_or(Malformed)?;
            let [next, length, o0, o1, i0, i1, i2, i3] = header;
            let length = match network.protocol {
                FRAGMENT => {
                    let field = u16::from_be_bytes([o0, o1]);
                    network.part = part(field >> 3, field & 1 == 1);
                    if network.part != Part::Whole {
                        network.identification = u32::from_be_bytes([i0, i1, i2, i3]);
                    }
                    8
                }
                AUTHENTICATION => u32::from(length) * 4 + 8,
                _ => u32::from(length) * 8 + 8,
            };
            network.protocol = next;
            length
        }
        _ => return Ok(false),
    };
    network.transport_at += length;
    Ok(network.part != Part::Later)
}

#[inline(always)]
const fn part(offset: u16, more: bool) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    }
}

/// Where a packet ends that begins at `at` and states its length. Packets larger than the field can say, which the kernel
/// makes before a device cuts them, say 0.
#[inline(always)]
fn end(bytes: &(impl Bytes + ?Sized), at: u32, stated: u32) -> Result<u32, Malformed> {
    match stated {
        0 => Ok(bytes.length()),
        _ if at + stated <= bytes.length() => Ok(at + stated),
        _ => Err(Malformed),
    }
}

/// The transport header, as far as it tells one conversation from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP or UDP; of UDP, `flags` is 0.
    Ports {
        source: Port,
        destination: Port,
        /// `TCP_*` bits.
        flags: u8,
    },
    /// An echo of ICMP or ICMPv6. Its identifier stands for the port of who asks.
    Echo { identifier: Port, is_request: bool },
    /// An error of ICMP or ICMPv6 about the packet whose network header begins at `quoted_at`.
    Error { kind: u8, quoted_at: u32 },
    /// Another message of ICMP or ICMPv6, which belongs to no conversation.
    Message { kind: u8 },
    /// A protocol without ports, or a later fragment.
    Other,
}

pub const TCP_FIN: u8 = 1 << 0;
pub const TCP_SYN: u8 = 1 << 1;
pub const TCP_RST: u8 = 1 << 2;
pub const TCP_ACK: u8 = 1 << 4;

/// Reads the transport header behind `network`. All of it has to be there.
#[inline(always)]
pub fn transport(bytes: &(impl Bytes + ?Sized), network: &Network) -> Result<Transport, Malformed> {
    let at = network.transport_at;
    let needed = match network.protocol {
        _ if network.part == Part::Later => return Ok(Transport::Other),
        TCP => 20,
        UDP | ICMP | ICMPV6 => 8,
        _ => return Ok(Transport::Other),
    };
    if at + needed > network.end {
        return Err(Malformed);
    }
    let mut found = of_transport(bytes.near(at).ok_or(Malformed)?, network);
    if let Transport::Ports { flags, .. } = &mut found
        && network.protocol == TCP
    {
        [*flags] = bytes.near(at + 13).ok_or(Malformed)?;
    }
    Ok(found)
}

/// The same for a header within an ICMP error, of which the first eight bytes have to be there. Of TCP it gives no flags.
#[inline(always)]
pub fn quoted_transport(
    bytes: &(impl Bytes + ?Sized),
    network: &Network,
) -> Result<Transport, Malformed> {
    let known = matches!(network.protocol, TCP | UDP | ICMP | ICMPV6);
    if network.part == Part::Later || !known {
        return Ok(Transport::Other);
    }
    let first = bytes.read(network.transport_at).ok_or(Malformed)?;
    Ok(of_transport(first, network))
}

/// Of a protocol that is known.
#[inline(always)]
fn of_transport(first: [u8; 8], network: &Network) -> Transport {
    let [a, b, c, d, i0, i1, _, _] = first;
    if matches!(network.protocol, TCP | UDP) {
        return Transport::Ports {
            source: [a, b],
            destination: [c, d],
            flags: 0,
        };
    }
    let echo = |is_request| Transport::Echo {
        identifier: [i0, i1],
        is_request,
    };
    let error = Transport::Error {
        kind: a,
        quoted_at: network.transport_at + 8,
    };
    match (network.protocol == ICMP, network.is_ipv4, a) {
        (true, true, 8) | (false, false, 128) => echo(true),
        (true, true, 0) | (false, false, 129) => echo(false),
        (true, true, 3 | 4 | 5 | 11 | 12) | (false, false, 1..=4) => error,
        _ => Transport::Message { kind: a },
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
