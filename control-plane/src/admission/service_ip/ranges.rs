//! Where Services' addresses come from: one range, or one of each family.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::resources::Family;

/// The ranges, as `--service-cidr` names them: the first is where a Service gets its address unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    primary: IpNet,
    secondary: Option<IpNet>,
}

/// Why a text names no ranges.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    #[error("{0:?} is no range of addresses, such as 10.96.0.0/12 or fd00:10:96::/108")]
    NotARange(String),
    #[error("{0} holds no address that a service could have")]
    Empty(IpNet),
    #[error("{0} and {1} are of one family; give one range, or one of IPv4 and one of IPv6")]
    OneFamily(IpNet, IpNet),
    #[error("there are {0} ranges; give one, or one of IPv4 and one of IPv6")]
    TooMany(usize),
}

impl FromStr for Ranges {
    type Err = RangesError;

    fn from_str(text: &str) -> Result<Self, RangesError> {
        let parsed: Vec<IpNet> = text.split(',').map(range).collect::<Result<_, _>>()?;
        match *parsed {
            [primary] => Ok(Self {
                primary,
                secondary: None,
            }),
            [primary, second] if family(&primary) == family(&second) => {
                Err(RangesError::OneFamily(primary, second))
            }
            [primary, second] => Ok(Self {
                primary,
                secondary: Some(second),
            }),
            _ => Err(RangesError::TooMany(parsed.len())),
        }
    }
}

fn range(text: &str) -> Result<IpNet, RangesError> {
    let range: IpNet = text
        .trim()
        .parse()
        .map_err(|_| RangesError::NotARange(text.to_owned()))?;
    match usable(&range) {
        0 => Err(RangesError::Empty(range)),
        _ => Ok(range.trunc()),
    }
}

fn family(range: &IpNet) -> Family {
    Family::of(range.network())
}

/// How many addresses of the range a Service may have: all but the network's own, and IPv4's broadcast. Of a larger range
/// only so many, from its start, are given out.
pub(super) fn usable(range: &IpNet) -> u32 {
    let host_bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let kept_back = match range {
        IpNet::V4(_) => 2,
        IpNet::V6(_) => 1,
    };
    let all = 1_u64.checked_shl(host_bits).unwrap_or(u64::MAX);
    u32::try_from(all.saturating_sub(kept_back)).unwrap_or(u32::MAX)
}

/// The usable address number `at` of the range, from 0.
pub(super) fn nth(range: &IpNet, at: u32) -> IpAddr {
    match range {
        IpNet::V4(range) => IpAddr::V4((u32::from(range.network()) + 1 + at).into()),
        IpNet::V6(range) => IpAddr::V6((u128::from(range.network()) + 1 + u128::from(at)).into()),
    }
}

/// Whether a Service may have `address` out of the range.
pub(super) fn may_give(range: &IpNet, address: IpAddr) -> bool {
    let is_broadcast =
        matches!(range, IpNet::V4(range) if IpAddr::V4(range.broadcast()) == address);
    range.contains(&address) && address != range.network() && !is_broadcast
}

impl Ranges {
    /// The family that a Service gets unless it says otherwise.
    pub fn primary(&self) -> Family {
        family(&self.primary)
    }

    pub fn is_dual(&self) -> bool {
        self.secondary.is_some()
    }

    /// The range of that family, if the cluster has one.
    pub fn of(&self, wanted: Family) -> Option<&IpNet> {
        self.iter().find(|range| family(range) == wanted)
    }

    /// The ranges, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        std::iter::once(&self.primary).chain(&self.secondary)
    }

    pub fn contain(&self, address: IpAddr) -> bool {
        self.iter().any(|range| range.contains(&address))
    }

    /// The first address of the first range: the service `kubernetes`.
    pub fn first_address(&self) -> IpAddr {
        nth(&self.primary, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Result<Ranges, String> {
        text.parse().map_err(|error: RangesError| error.to_string())
    }

    #[test]
    fn one_range_or_one_of_each_family() {
        let single = ranges("10.96.0.0/12").unwrap();
        assert_eq!((single.primary(), single.is_dual()), (Family::V4, false));
        assert_eq!(single.of(Family::V6), None);
        assert_eq!(single.first_address().to_string(), "10.96.0.1");

        let dual = ranges("fd00:10:96::/108, 10.96.0.0/12").unwrap();
        assert_eq!((dual.primary(), dual.is_dual()), (Family::V6, true));
        assert_eq!(dual.of(Family::V4).unwrap().to_string(), "10.96.0.0/12");
        assert_eq!(dual.first_address().to_string(), "fd00:10:96::1");

        for (text, why) in [
            ("10.96.0.0", "is no range of addresses"),
            ("", "is no range of addresses"),
            ("10.96.0.1/32", "holds no address"),
            ("10.0.0.0/24,10.1.0.0/24", "are of one family"),
            ("10.0.0.0/24,fd00::/64,fd01::/64", "there are 3 ranges"),
        ] {
            let refused = ranges(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn a_range_gives_all_but_its_ends() {
        let v4: IpNet = "10.96.0.0/30".parse().unwrap();
        assert_eq!(
            (usable(&v4), nth(&v4, 1).to_string()),
            (2, "10.96.0.2".into())
        );
        let v6: IpNet = "fd00::/126".parse().unwrap();
        assert_eq!(
            (usable(&v6), nth(&v6, 2).to_string()),
            (3, "fd00::3".into())
        );
        assert!(may_give(&v6, nth(&v6, 2)) && !may_give(&v6, v6.network()));
        assert!(!may_give(&v4, v4.broadcast()));
        assert_eq!(usable(&"fd00::/64".parse().unwrap()), u32::MAX);
        assert_eq!(usable(&"::/0".parse().unwrap()), u32::MAX);
    }
}
