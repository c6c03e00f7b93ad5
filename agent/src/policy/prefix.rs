//! Prefixes of addresses, and which of several covers another. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use agent_ebpf::abi::Address;
use agent_ebpf::policy::covers;
use ipnet::IpNet;

/// Addresses that begin with the first `bits` of `address`; its other bits are 0. An IPv4 prefix has 96 bits more than
/// people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    pub address: Address,
    pub bits: u32,
}

impl Prefix {
    /// All of IPv4. It stands within IPv6's addresses, but no IPv6 range means it.
    pub fn all_of_v4() -> Self {
        Self {
            address: Ipv4Addr::UNSPECIFIED.into(),
            bits: 96,
        }
    }

    pub fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits && covers(&self.address, self.bits, &other.address)
    }

    pub fn is_v4(&self) -> bool {
        Self::all_of_v4().covers(self)
    }

    /// Its first `bits`.
    fn cut(&self, bits: u32) -> Self {
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let address = u128::from_be_bytes(self.address.octets()) & mask;
        Self {
            address: address.to_be_bytes().into(),
            bits,
        }
    }
}

impl From<IpAddr> for Prefix {
    fn from(ip: IpAddr) -> Self {
        Self {
            address: ip.into(),
            bits: 128,
        }
    }
}

impl From<IpNet> for Prefix {
    fn from(range: IpNet) -> Self {
        let more = if range.addr().is_ipv4() { 96 } else { 0 };
        Self {
            address: range.network().into(),
            bits: more + u32::from(range.prefix_len()),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.is_v4() {
            self.bits - 96
        } else {
            self.bits
        };
        write!(f, "{}/{bits}", self.address)
    }
}

/// The lengths that prefixes have: few, so that the longest that covers another is found by a look for each.
#[derive(Clone, Debug, Default)]
pub struct Lengths(BTreeSet<u32>);

impl Lengths {
    pub fn of<V>(map: &BTreeMap<Prefix, V>) -> Self {
        Self(map.keys().map(|prefix| prefix.bits).collect())
    }

    /// The value of the longest prefix in `map` that covers `of`, and is shorter than `below` bits.
    pub fn covering<'a, V>(
        &self,
        map: &'a BTreeMap<Prefix, V>,
        of: &Prefix,
        below: u32,
    ) -> Option<&'a V> {
        self.all_covering(map, of, 0..below.min(of.bits + 1)).next()
    }

    /// The values of all prefixes in `map` that cover `of`, of these lengths, which are none longer than `of`: the longest
    /// first.
    pub fn all_covering<'a, V>(
        &self,
        map: &'a BTreeMap<Prefix, V>,
        of: &Prefix,
        lengths: Range<u32>,
    ) -> impl Iterator<Item = &'a V> {
        let of = *of;
        let lengths = self.0.range(lengths).rev();
        lengths.filter_map(move |bits| map.get(&of.cut(*bits)))
    }
}
