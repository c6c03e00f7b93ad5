//! Rows of network links.

use super::Address;

/// Key of `PODS`: index of a network link in the node's namespace.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

impl LinkIndex {
    /// No link has it. Its row of `PODS` holds the addresses at which the node refuses what pods dial.
    pub const NONE: Self = Self(0);
}

/// Value of `PODS`: the pod at the other end of a link.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodEntry {
    /// Its IPv4 address; [`PodEntry::NONE`] without.
    pub ipv4: Address,
    /// Its IPv6 address; [`PodEntry::NONE`] without.
    pub ipv6: Address,
}

impl PodEntry {
    /// Stands for an address that the pod does not have.
    pub const NONE: Address = Address::from_words([0; 4]);
}

/// Value of `UPLINKS`, keyed by [`LinkIndex`]: the addresses that the node's packets have on a link.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UplinkEntry {
    /// What leaves here and was not sent by the node gets this source; [`PodEntry::NONE`] without.
    pub ipv4: Address,
    /// The same of IPv6.
    pub ipv6: Address,
}

/// Value of `XDP_LINKS`, keyed by [`LinkIndex`]: a link that runs the XDP program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XdpLink {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// [`XDP_LINK_TAKES`], or 0.
    pub flags: u16,
}

/// The link sends what came in by another one.
pub const XDP_LINK_TAKES: u16 = 1 << 0;

/// The one row of `POD_RANGES`: the ranges that this node's pods have their addresses from, each as its first address and a
/// mask. Without a range of a family its mask is all zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodRanges {
    /// IPv4, in network order.
    pub ipv4: u32,
    pub ipv4_mask: u32,
    /// IPv6, in network order.
    pub ipv6: [u32; 4],
    pub ipv6_mask: [u32; 4],
}

impl PodRanges {
    /// Whether an address is within.
    #[inline(always)]
    pub fn has(&self, address: &Address) -> bool {
        let words = address.words();
        if address.as_v4().is_some() {
            return self.ipv4_mask != 0 && words[3] & self.ipv4_mask == self.ipv4;
        }
        let differs = |n: usize| words[n] & self.ipv6_mask[n] ^ self.ipv6[n];
        self.ipv6_mask[0] != 0 && differs(0) | differs(1) | differs(2) | differs(3) == 0
    }
}

/// Entries of `TRANSLATING`: that of a link is its index modulo this.
pub const TRANSLATING_LINKS: u32 = 1 << 12;
