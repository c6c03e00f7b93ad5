//! Keys of `SOURCE_RANGES` as plain values.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use agent_ebpf::abi::{Address, SourceRange};
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;

/// Bits of a service's id, and of an IPv4 address's place in an [`Address`].
const SERVICE_BITS: u32 = 32;
const V4_BITS: u32 = 96;

/// A range of clients that a service serves: the first `bits` of `range` count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourcePrefix {
    pub range: SourceRange,
    pub bits: u32,
}

impl SourcePrefix {
    pub fn new(service_id: u32, clients: IpNet) -> Self {
        let family_bits = match clients.addr() {
            IpAddr::V4(_) => V4_BITS,
            IpAddr::V6(_) => 0,
        };
        Self {
            range: SourceRange {
                service_id: service_id.to_be_bytes(),
                address: clients.network().into(),
            },
            bits: SERVICE_BITS + family_bits + u32::from(clients.prefix_len()),
        }
    }

    /// Every range that a service may have, in their order.
    pub fn all_of(service_id: u32) -> RangeInclusive<Self> {
        let bound = |octet, bits| Self {
            range: SourceRange {
                service_id: service_id.to_be_bytes(),
                address: Address::from([octet; 16]),
            },
            bits,
        };
        bound(0, 0)..=bound(0xff, u32::MAX)
    }

    pub fn service_id(&self) -> u32 {
        u32::from_be_bytes(self.range.service_id)
    }

    pub(super) fn key(&self) -> Key<SourceRange> {
        Key::new(self.bits, self.range)
    }
}

/// As the range of clients that it is.
impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.range.address;
        let family_bits = address.as_v4().map_or(0, |_| V4_BITS);
        let bits = self.bits.saturating_sub(SERVICE_BITS + family_bits);
        write!(f, "{address}/{bits}")
    }
}

impl From<Key<SourceRange>> for SourcePrefix {
    fn from(key: Key<SourceRange>) -> Self {
        Self {
            range: key.data(),
            bits: key.prefix_len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_count_from_the_services_first_bit() {
        let four = SourcePrefix::new(7, "10.1.0.0/16".parse().unwrap());
        assert_eq!((four.bits, four.service_id()), (32 + 96 + 16, 7));
        assert_eq!(four.range.address, Address::v4([10, 1, 0, 0]));
        let all = SourcePrefix::new(7, "0.0.0.0/0".parse().unwrap());
        assert_eq!(all.bits, 32 + 96, "every IPv4 client, and no other");
        let six = SourcePrefix::new(7, "2001:db8::1/32".parse().unwrap());
        assert_eq!(six.bits, 32 + 32);
        assert_eq!(six.range.address.to_string(), "2001:db8::");
        let shown = [four, all, six].map(|prefix| prefix.to_string());
        assert_eq!(shown, ["10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32"]);
        for prefix in [four, all, six] {
            assert!(SourcePrefix::all_of(7).contains(&prefix));
            assert!(!SourcePrefix::all_of(8).contains(&prefix));
        }
    }
}
