//! The ranges that a node's pods have their addresses from: one, or one of each family. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A node's ranges, the one of the cluster's primary family first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    first: IpNet,
    second: Option<IpNet>,
}

impl Ranges {
    /// The first range of each family, in the order given; `None` without any.
    pub fn new(ranges: impl IntoIterator<Item = IpNet>) -> Option<Self> {
        let mut ranges = ranges.into_iter().map(|range| range.trunc());
        let first = ranges.next()?;
        let second = ranges.find(|range| range.addr().is_ipv4() != first.addr().is_ipv4());
        Some(Ranges { first, second })
    }

    /// The ranges, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// Whether a pod's IPv6 address comes before its IPv4 address.
    pub fn v6_first(&self) -> bool {
        self.first.addr().is_ipv6()
    }

    /// Whether these are the same ranges, in whichever order.
    pub fn same(&self, other: &Ranges) -> bool {
        let has = |range: IpNet| other.iter().any(|it| it == range);
        self.iter().count() == other.iter().count() && self.iter().all(has)
    }

    /// The node's gateways, one in each range.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.iter().map(gateway).collect()
    }

    /// The gateway of that address's family, if the node has such a range.
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        let mut gateways = self.iter().map(gateway);
        gateways.find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }

    /// The addresses of the pod with that number: the same number in each range. The numbers of pods begin with
    /// [`FIRST_NUMBER`]; `None` beyond the last that every range has an address for.
    pub fn addresses(&self, number: u32) -> Option<PodAddresses> {
        let mut addresses = PodAddresses {
            v6_first: self.v6_first(),
            ..PodAddresses::default()
        };
        for range in self.iter() {
            match range {
                IpNet::V4(range) => {
                    let address = u32::from(range.network()).checked_add(number)?;
                    // The broadcast address is nobody's.
                    let usable = address < u32::from(range.broadcast());
                    addresses.v4 = Some(usable.then_some(Ipv4Addr::from(address))?);
                }
                IpNet::V6(range) => {
                    let address = u128::from(range.network()).checked_add(number.into())?;
                    let usable = address <= u128::from(range.broadcast());
                    addresses.v6 = Some(usable.then_some(Ipv6Addr::from(address))?);
                }
            }
        }
        Some(addresses)
    }

    /// The number of the pod that has these addresses, if they are from these ranges.
    pub fn number(&self, addresses: &PodAddresses) -> Option<u32> {
        self.iter().find_map(|range| match range {
            IpNet::V4(range) => {
                let address = addresses.v4.filter(|address| range.contains(address))?;
                Some(u32::from(address) - u32::from(range.network()))
            }
            IpNet::V6(range) => {
                let address = addresses.v6.filter(|address| range.contains(address))?;
                u32::try_from(u128::from(address) - u128::from(range.network())).ok()
            }
        })
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        match self.second {
            Some(second) => write!(f, " and {second}"),
            None => Ok(()),
        }
    }
}

/// The number of the first pod: behind the network's own address and the gateway.
pub const FIRST_NUMBER: u32 = 2;

/// A node's gateway: the first address of its range.
pub fn gateway(range: IpNet) -> IpAddr {
    match range {
        IpNet::V4(range) => Ipv4Addr::from(u32::from(range.network()).saturating_add(1)).into(),
        IpNet::V6(range) => Ipv6Addr::from(u128::from(range.network()).saturating_add(1)).into(),
    }
}

/// A pod's addresses: at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodAddresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub v6_first: bool,
}

impl PodAddresses {
    /// In the order of the pod's status.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.v4.map(IpAddr::from), self.v6.map(IpAddr::from));
        let ordered = if self.v6_first { [v6, v4] } else { [v4, v6] };
        ordered.into_iter().flatten()
    }
}

impl FromIterator<IpAddr> for PodAddresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut found = PodAddresses::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => found.v4 = found.v4.or(Some(address)),
                IpAddr::V6(address) => {
                    found.v6_first |= found.v4.is_none() && found.v6.is_none();
                    found.v6 = found.v6.or(Some(address));
                }
            }
        }
        found
    }
}

impl fmt::Display for PodAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.iter().map(|address| address.to_string()).collect();
        f.write_str(&texts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(texts: &[&str]) -> Ranges {
        Ranges::new(texts.iter().map(|text| text.parse().unwrap())).unwrap()
    }

    #[test]
    fn one_of_each_family_counts() {
        let dual = ranges(&["fd00:1::/64", "fd00:2::/64", "10.244.1.7/24"]);
        assert_eq!(dual.to_string(), "fd00:1::/64 and 10.244.1.0/24");
        assert_eq!(
            dual.gateways(),
            [
                "fd00:1::1".parse::<IpAddr>().unwrap(),
                "10.244.1.1".parse().unwrap()
            ]
        );
        assert!(dual.same(&ranges(&["10.244.1.0/24", "fd00:1::/64"])));
        assert!(!dual.same(&ranges(&["10.244.1.0/24"])));
        assert_eq!(Ranges::new([]), None);
    }

    #[test]
    fn a_pod_has_the_same_number_in_each_range() {
        let dual = ranges(&["10.244.1.0/24", "fd00:1::/64"]);
        assert_eq!(
            dual.addresses(7).unwrap().to_string(),
            "10.244.1.7 fd00:1::7"
        );
        assert_eq!(dual.addresses(255), None, "the broadcast address");
        let v6 = ranges(&["fd00:1::/64", "10.244.1.0/24"]);
        assert_eq!(v6.addresses(7).unwrap().to_string(), "fd00:1::7 10.244.1.7");
        let alone = ranges(&["fd00:1::/120"]);
        assert_eq!(alone.addresses(255).unwrap().to_string(), "fd00:1::ff");
        assert_eq!(alone.addresses(256), None);
    }

    proptest! {
        #[test]
        fn number_and_addresses_go_together(
            number in FIRST_NUMBER..300, v4 in 20u8..30, v6 in 64u8..126, which in 0..4,
        ) {
            let v4 = format!("10.0.0.0/{v4}").parse().unwrap();
            let v6 = format!("fd00::/{v6}").parse().unwrap();
            let ranges = match which {
                0 => vec![v4],
                1 => vec![v6],
                2 => vec![v4, v6],
                _ => vec![v6, v4],
            };
            let ranges = Ranges::new(ranges).unwrap();
            if let Some(addresses) = ranges.addresses(number) {
                prop_assert_eq!(ranges.number(&addresses), Some(number));
                prop_assert_eq!(addresses.iter().count(), ranges.iter().count());
                for (address, range) in addresses.iter().zip(ranges.iter()) {
                    prop_assert!(range.contains(&address));
                    prop_assert!(!ranges.gateways().contains(&address));
                }
                prop_assert_eq!(addresses.iter().collect::<PodAddresses>(), addresses);
            }
        }
    }
}
