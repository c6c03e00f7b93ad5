//! Other addresses and ports for a packet, with the checksums that follow. Pure, over [`Frame`].
//!
//! An ICMP error quotes the packet that it is about. Who gets it knows that packet by its own addresses and ports, so
//! those are translated, too.

use crate::abi::{Address, Port, TCP, UDP};
use crate::checksum::{Sum, updated};
use crate::packet::{Bytes, ICMP, ICMPV6, Network, Part, Transport};

/// Bytes of a packet that can be changed.
pub trait Frame: Bytes {
    /// Replaces bytes from `at` on. `None` when that cannot be done; the packet is then of no use any more.
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> Option<()>;
    /// Makes up in the IPv4 header's checksum at `at` for a change of that header.
    fn adjust_header(&mut self, at: u32, difference: Sum) -> Option<()>;
    /// Makes up in a transport's checksum at `at` for a change of what it covers.
    fn adjust(&mut self, at: u32, difference: Sum, of: Covered) -> Option<()>;
}

/// What a transport's checksum covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The change is in the addresses, not in the transport's own bytes.
    pub addresses: bool,
    pub is_ipv4: bool,
    /// UDP, of which a checksum of zero is none.
    pub is_udp: bool,
}

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
}

/// What other addresses add to a sum over a packet's. Of an IPv4 address the first twelve bytes never change.
#[inline(always)]
fn difference(network: &Network, source: &Address, destination: &Address) -> Sum {
    let mut sum = 0;
    for (old, new) in [
        (&network.source, source),
        (&network.destination, destination),
    ] {
        let (old, new) = (old.words(), new.words());
        for n in 0..4 {
            sum += u64::from(!old[n]) + u64::from(new[n]);
        }
    }
    Sum::of_native(sum)
}

/// Gives the packet other addresses and ports. A later fragment has no ports.
#[inline(always)]
pub fn rewrite(
    frame: &mut impl Frame,
    network: &Network,
    transport: &Transport,
    new: &Ends,
) -> Option<()> {
    let (addresses, ports) = match *transport {
        Transport::Ports {
            source,
            destination,
            ..
        } if follows(network) => {
            let sum = write_ends(frame, network, new)?;
            (sum, ports_difference((source, destination), new))
        }
        _ => {
            let sum = write_addresses(frame, network, &new.source, &new.destination)?;
            if network.part == Part::Later {
                return Some(());
            }
            (sum, write_ports(frame, network, transport, new)?)
        }
    };
    let at = network.transport_at + checksum_offset(network.protocol)?;
    let of = |addresses| Covered {
        addresses,
        is_ipv4: network.is_ipv4,
        is_udp: network.protocol == UDP,
    };
    if network.protocol != ICMP {
        frame.adjust(at, addresses, of(true))?;
    }
    // Mostly one end changes, and keeps its port.
    if ports == Sum::default() {
        return Some(());
    }
    frame.adjust(at, ports, of(false))
}

/// Whether the transport's header stands right behind the addresses.
#[inline(always)]
const fn follows(network: &Network) -> bool {
    let header = if network.is_ipv4 { 20 } else { 40 };
    network.transport_at - network.at == header
}

/// Writes addresses and ports that stand together, which takes half the time, with the header's checksum; gives what the
/// addresses add to a sum.
#[inline(always)]
fn write_ends(frame: &mut impl Frame, network: &Network, new: &Ends) -> Option<Sum> {
    let sum = difference(network, &new.source, &new.destination);
    let ([p, q], [r, s]) = (new.source_port, new.destination_port);
    if network.is_ipv4 {
        let [x, y] = updated(frame.near(network.at + 10)?, sum);
        let ([.., from], [.., to]) = (new.source.words(), new.destination.words());
        let ([a, b, c, d], [e, f, g, h]) = (from.to_ne_bytes(), to.to_ne_bytes());
        frame.write(network.at + 10, &[x, y, a, b, c, d, e, f, g, h, p, q, r, s])?;
    } else {
        let mut ends = [0; 36];
        ends[..16].copy_from_slice(&new.source.octets());
        ends[16..32].copy_from_slice(&new.destination.octets());
        ends[32..].copy_from_slice(&[p, q, r, s]);
        frame.write(network.at + 8, &ends)?;
    }
    Some(sum)
}

/// What other ports add to a sum: nothing at all if they are the same.
#[inline(always)]
fn ports_difference(old: (Port, Port), new: &Ends) -> Sum {
    if old == (new.source_port, new.destination_port) {
        return Sum::default();
    }
    Sum::default()
        .replace(old.0, new.source_port)
        .replace(old.1, new.destination_port)
}

/// Gives an ICMP error other addresses, and the packet that it quotes other addresses and ports.
#[inline(always)]
pub fn rewrite_error(
    frame: &mut impl Frame,
    network: &Network,
    outer: &(Address, Address),
    quoted: &Network,
    transport: &Transport,
    new: &Ends,
) -> Option<()> {
    let outer = write_addresses(frame, network, &outer.0, &outer.1)?;
    let at = quoted.at + if quoted.is_ipv4 { 12 } else { 8 };
    let inner = write_only(frame, quoted, at, &new.source, &new.destination)?;
    let mut content = inner;
    if quoted.is_ipv4 {
        content = content.plus(patch(frame, quoted.at + 10, inner)?);
    }
    let ports = write_ports(frame, quoted, transport, new)?;
    content = content.plus(ports);
    // The quotation may end before the checksum of what it quotes.
    let inner_at = quoted.transport_at + checksum_offset(quoted.protocol)?;
    if inner_at + 2 <= network.end
        && let Some(checksum) = frame.read(inner_at)
        && (quoted.protocol != UDP || checksum != [0; 2])
    {
        let change = match quoted.protocol {
            ICMP => ports,
            _ => ports.plus(inner),
        };
        content = content.plus(patch(frame, inner_at, change)?);
    }
    let of = |addresses| Covered {
        addresses,
        is_ipv4: network.is_ipv4,
        is_udp: false,
    };
    let at = network.transport_at + 2;
    if network.protocol == ICMPV6 {
        frame.adjust(at, outer, of(true))?;
    }
    frame.adjust(at, content, of(false))
}

/// Replaces the checksum at `at`, which is content to whoever quotes it; gives what that adds to a sum.
#[inline(always)]
fn patch(frame: &mut impl Frame, at: u32, change: Sum) -> Option<Sum> {
    let old = frame.read(at)?;
    let new = updated(old, change);
    frame.write(at, &new)?;
    Some(Sum::default().replace(old, new))
}

/// Replaces the addresses of a packet and its header's checksum; gives what that adds to a sum over addresses.
#[inline(always)]
fn write_addresses(
    frame: &mut impl Frame,
    network: &Network,
    source: &Address,
    destination: &Address,
) -> Option<Sum> {
    let at = network.at + if network.is_ipv4 { 12 } else { 8 };
    let sum = write_only(frame, network, at, source, destination)?;
    if network.is_ipv4 {
        frame.adjust_header(network.at + 10, sum)?;
    }
    Some(sum)
}

#[inline(always)]
fn write_only(
    frame: &mut impl Frame,
    network: &Network,
    at: u32,
    source: &Address,
    destination: &Address,
) -> Option<Sum> {
    if network.is_ipv4 {
        let ([.., from], [.., to]) = (source.words(), destination.words());
        let ([a, b, c, d], [e, f, g, h]) = (from.to_ne_bytes(), to.to_ne_bytes());
        frame.write(at, &[a, b, c, d, e, f, g, h])?;
    } else {
        frame.write(at, &source.octets())?;
        frame.write(at + 16, &destination.octets())?;
    }
    Some(difference(network, source, destination))
}

/// Replaces the ports, or an echo's identifier; gives what that adds to a sum.
#[inline(always)]
fn write_ports(
    frame: &mut impl Frame,
    network: &Network,
    transport: &Transport,
    new: &Ends,
) -> Option<Sum> {
    let at = network.transport_at;
    match *transport {
        Transport::Ports {
            source,
            destination,
            ..
        } => {
            let ([a, b], [c, d]) = (new.source_port, new.destination_port);
            frame.write(at, &[a, b, c, d])?;
            Some(ports_difference((source, destination), new))
        }
        Transport::Echo {
            identifier,
            is_request,
        } => {
            let own = match is_request {
                true => new.source_port,
                false => new.destination_port,
            };
            frame.write(at + 4, &own)?;
            Some(Sum::default().replace(identifier, own))
        }
        _ => None,
    }
}

/// A transport's checksum after what it covers changed; of UDP, zero says that there is none.
#[inline(always)]
pub fn adjusted(old: [u8; 2], difference: Sum, is_udp: bool) -> [u8; 2] {
    if is_udp && old == [0; 2] {
        return old;
    }
    match updated(old, difference) {
        [0, 0] if is_udp => [0xff; 2],
        new => new,
    }
}

/// Takes one from the routers that the packet may still pass.
#[inline(always)]
pub fn spend_hop(frame: &mut impl Frame, network: &Network) -> Option<()> {
    let left = network.hops.checked_sub(1)?;
    if !network.is_ipv4 {
        return frame.write(network.at + 7, &[left]);
    }
    frame.write(network.at + 8, &[left])?;
    let (old, new) = ([network.hops, network.protocol], [left, network.protocol]);
    frame.adjust_header(network.at + 10, Sum::default().replace(old, new))
}

/// Where a protocol has its checksum.
#[inline(always)]
pub(crate) const fn checksum_offset(protocol: u8) -> Option<u32> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
