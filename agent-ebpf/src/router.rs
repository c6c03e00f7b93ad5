//! What a router does to a packet, for packets that programs hand on in the kernel's stead. Pure.

use crate::abi::Address;
use crate::abi::pods::PodTarget;
use crate::checksum::{Sum, updated};
use crate::flow::stir;
use crate::packet::{Bytes, Network};
use crate::policy::Packet;

/// Memory to work in: a program's stack is too small for it, and its steps share it.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub network: Network,
    /// What policies look at, where there are some.
    pub packet: Packet,
    /// The pod of this node that the packet can be handed to, where there is one.
    pub target: PodTarget,
}

/// By which link the node would answer a sender, as the routes said when it was last asked. A packet is spared the question for
/// as long as the kernel's coarse clock stands still, some milliseconds: routes that change meanwhile might as well have changed
/// behind the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReversePath {
    pub source: Address,
    pub destination: Address,
    /// To which the destination is bound.
    pub pod: u32,
    /// The answer; 0 where it is not simply a link.
    pub link: u32,
    /// Of the coarse clock.
    pub asked_ns: u64,
}

/// How many of them a CPU remembers.
pub const REVERSE_PATHS: u32 = 64;

impl ReversePath {
    /// Where that of a packet stands.
    #[inline(always)]
    pub fn place(network: &Network) -> u32 {
        let (source, destination) = (network.source.words(), network.destination.words());
        stir(u32::from_be(source[3]), u32::from_be(destination[3])) % REVERSE_PATHS
    }

    /// Whether it answers for a packet to the pod at the link `pod`, now.
    #[inline(always)]
    pub fn holds(&self, network: &Network, pod: u32, now_ns: u64) -> bool {
        self.asked_ns == now_ns
            && self.pod == pod
            && self.source == network.source
            && self.destination == network.destination
    }
}

/// Bytes of an IPv4 and of an IPv6 header that say no more than they have to.
const PLAIN_IPV4: u32 = 20;
const PLAIN_IPV6: u32 = 40;

/// Whether a router would only pass the packet on with one hop less. All else is the kernel's: options and extension
/// headers that routers may have to look at, lifetimes that end here, addresses that no router knows.
#[inline(always)]
pub fn is_plain(network: &Network) -> bool {
    let header = match network.is_ipv4 {
        true => PLAIN_IPV4,
        false => PLAIN_IPV6,
    };
    let known = network.is_ipv4 || is_routed(&network.source) && is_routed(&network.destination);
    network.transport_at - network.at == header && network.hops > 1 && known
}

/// Whether an address is one machine's, somewhere else.
#[inline(always)]
pub fn is_unicast(address: &Address) -> bool {
    match address.as_v4() {
        Some([first, ..]) => !matches!(first, 0 | 127 | 224..),
        None => is_routed(address),
    }
}

/// Whether routers know an IPv6 address that stands in a packet: not a link's own, nor a group, nor what stands for an IPv4
/// address or none.
#[inline(always)]
pub(crate) fn is_routed(address: &Address) -> bool {
    let words = address.words();
    let [first, second, ..] = words[0].to_ne_bytes();
    let is_scoped = first == 0xff || first == 0xfe && second & 0x80 != 0;
    !is_scoped && words[0] | words[1] != 0
}

/// Bytes 8 to 11 of an IPv4 header as they are one hop later: lifetime, protocol, checksum.
#[inline(always)]
pub fn one_hop_later(bytes: &(impl Bytes + ?Sized), network: &Network) -> Option<[u8; 4]> {
    let old: [u8; 2] = bytes.near(network.at + 10)?;
    let hops = network.hops - 1;
    let change = Sum::default().replace([network.hops, network.protocol], [hops, network.protocol]);
    let [a, b] = updated(old, change);
    Some([hops, network.protocol, a, b])
}

#[cfg(test)]
mod tests;
