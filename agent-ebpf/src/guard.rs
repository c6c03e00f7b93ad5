//! From which addresses a pod may send, and other machines may not. Pure.

use crate::abi::{Address, DropReason, PodEntry, PodRanges};
use crate::packet::{Bytes, Carried, ETHERNET_LENGTH, Network, arp_sender, carried, ipv4, ipv6};

/// What of a pod's frame goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A packet from an address of the pod's own.
    Packet(Network),
    /// What stays on the link between pod and node: ARP, and IPv6 between link-local addresses.
    OnLink,
}

/// Reads a frame that `pod` sends. Strict reverse-path checks of the kernel are IPv4's only, and anybody's to switch off.
#[inline(always)]
pub fn sent(bytes: &(impl Bytes + ?Sized), pod: &PodEntry) -> Result<Sent, DropReason> {
    let malformed = |_| DropReason::Malformed;
    match carried(bytes).map_err(malformed)? {
        Carried::Ipv4 => {
            let network = ipv4(bytes, ETHERNET_LENGTH).map_err(malformed)?;
            from_own(network, &pod.ipv4)
        }
        Carried::Ipv6 => {
            let network = ipv6(bytes, ETHERNET_LENGTH).map_err(malformed)?;
            if stays_on_link(&network) {
                return Ok(Sent::OnLink);
            }
            from_own(network, &pod.ipv6)
        }
        Carried::Arp => {
            let sender = arp_sender(bytes).map_err(malformed)?;
            // A probe whether an address is free has none itself yet.
            if sender == pod.ipv4 || sender == Address::v4([0; 4]) {
                Ok(Sent::OnLink)
            } else {
                Err(DropReason::Spoofed)
            }
        }
        Carried::Other => Err(DropReason::NotIp),
    }
}

/// Whether a frame that comes from another machine says that it is from a pod of this node. The kernel's reverse-path checks
/// would tell, but are off on most machines and unknown to IPv6.
#[inline(always)]
pub fn is_foreign_pod(bytes: &(impl Bytes + ?Sized), own: &PodRanges) -> bool {
    match carried(bytes) {
        Ok(Carried::Ipv4) => {
            let source: Option<[u8; 4]> = bytes.near(ETHERNET_LENGTH + 12);
            let within = |source| u32::from_ne_bytes(source) & own.ipv4_mask == own.ipv4;
            own.ipv4_mask != 0 && source.is_some_and(within)
        }
        Ok(Carried::Ipv6) => {
            let mut differs = u32::from(own.ipv6_mask[0] == 0);
            for n in 0..4 {
                let Some(word) = bytes.near(ETHERNET_LENGTH + 8 + 4 * n as u32) else {
                    return false;
                };
                differs |= u32::from_ne_bytes(word) & own.ipv6_mask[n] ^ own.ipv6[n];
            }
            differs == 0
        }
        _ => false,
    }
}

/// An address that the pod does not have stands as `::`, from which only what stays on the link comes.
#[inline(always)]
fn from_own(network: Network, own: &Address) -> Result<Sent, DropReason> {
    if network.source == *own && network.source != PodEntry::NONE {
        Ok(Sent::Packet(network))
    } else {
        Err(DropReason::Spoofed)
    }
}

/// Whether no router passes the packet on: neighbour discovery and the like, which links' own addresses are for.
#[inline(always)]
fn stays_on_link(network: &Network) -> bool {
    let first = |address: &Address| address.words()[0].to_ne_bytes();
    let link_local =
        |address: &Address| matches!(first(address), [0xfe, b, ..] if b & 0xc0 == 0x80);
    let [ff, scope, ..] = first(&network.destination);
    let multicast = ff == 0xff && scope & 15 <= 2;
    let from = link_local(&network.source) || network.source == PodEntry::NONE;
    from && (multicast || link_local(&network.destination))
}

#[cfg(test)]
mod tests;
