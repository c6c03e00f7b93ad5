//! The pools that load balancers' addresses come from, as the ConfigMap `kube-system/kernelet-load-balancer` names them. Pure.
//!
//! Each key is a pool, its value ranges of addresses, with commas or white space between them:
//!
//! ```yaml
//! data:
//!   office: 192.0.2.0/28, 2001:db8::/120
//!   spare: |
//!     192.0.2.100-192.0.2.110   # only for services that ask for it
//!     auto-assign=false
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::resources::Family;
use crate::resources::validate::is_plain;

/// A pool's addresses go to services that ask for none only where this is not said.
const MANUAL: &str = "auto-assign=false";
const AUTOMATIC: &str = "auto-assign=true";

/// Addresses from one to another, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    first: IpAddr,
    last: IpAddr,
}

/// Where load balancers' addresses come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pools(Vec<Pool>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) spans: Vec<Span>,
    /// Whether it serves those who ask for no pool and no address.
    pub(super) auto_assign: bool,
}

/// Why a pool is refused. The others are used all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PoolError {
    #[error(
        "pool {pool}: {text:?} is no range of addresses, such as 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 2001:db8::/120"
    )]
    NotARange { pool: String, text: String },
    #[error("pool {pool}: it names no addresses")]
    Empty { pool: String },
    #[error("pool {pool}: {span} holds addresses at which no other machine can be reached")]
    Special { pool: String, span: Span },
    #[error(
        "pool {pool}: {span} overlaps {range}, which is the cluster's own for pods or services"
    )]
    Cluster {
        pool: String,
        span: Span,
        range: IpNet,
    },
    #[error("pool {pool}: {span} overlaps {other_span} of pool {other}")]
    Overlap {
        pool: String,
        span: Span,
        other: String,
        other_span: Span,
    },
}

impl Span {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        // Addresses of the two families never compare as between each other.
        self.first <= address && address <= self.last
    }

    pub(super) fn first(&self) -> IpAddr {
        self.first
    }

    pub(super) fn family(&self) -> Family {
        Family::of(self.first)
    }

    fn overlaps(&self, other: &Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// All addresses, the lowest first.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            next: Some(self.first),
            last: self.last,
        }
    }

    fn parse(text: &str) -> Option<Span> {
        if let Some((first, last)) = text.split_once('-') {
            let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
            let one_family = first.is_ipv4() == last.is_ipv4();
            return (one_family && first <= last).then_some(Span { first, last });
        }
        if let Ok(address) = text.parse() {
            return Some(Span {
                first: address,
                last: address,
            });
        }
        Some(inside(&text.parse().ok()?))
    }
}

/// The addresses of a [`Span`], one after the other.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    next: Option<IpAddr>,
    last: IpAddr,
}

impl Iterator for Addresses {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        let address = self.next?;
        self.next = (address != self.last).then(|| match address {
            IpAddr::V4(address) => IpAddr::V4((u32::from(address) + 1).into()),
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) + 1).into()),
        });
        Some(address)
    }
}

/// A network without the addresses that mean something else in a network: its first one, and IPv4's last.
fn inside(network: &IpNet) -> Span {
    let host_bits = network.max_prefix_len() - network.prefix_len();
    let (first, last) = (network.network(), network.broadcast());
    if host_bits < 2 {
        return Span { first, last };
    }
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Span {
            first: IpAddr::V4((u32::from(first) + 1).into()),
            last: IpAddr::V4((u32::from(last) - 1).into()),
        },
        (IpAddr::V6(first), _) => Span {
            first: IpAddr::V6((u128::from(first) + 1).into()),
            last,
        },
        _ => Span { first, last },
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Pool {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.spans.iter().any(|span| span.contains(address))
    }
}

impl Pools {
    /// The pools that make sense, and what is wrong with the others. `cluster` are the ranges that pods and services have.
    ///
    /// Of two that overlap the one whose name comes first is kept.
    pub(super) fn parse(
        data: &BTreeMap<String, String>,
        cluster: &[IpNet],
    ) -> (Pools, Vec<PoolError>) {
        let mut pools = Pools::default();
        let mut errors = Vec::new();
        for (name, text) in data {
            match pools.pool(name, text, cluster) {
                Ok(pool) => pools.0.push(pool),
                Err(error) => errors.push(error),
            }
        }
        (pools, errors)
    }

    fn pool(&self, name: &str, text: &str, cluster: &[IpNet]) -> Result<Pool, PoolError> {
        let mut pool = Pool {
            name: name.to_owned(),
            spans: Vec::new(),
            auto_assign: true,
        };
        for word in words(text) {
            match word {
                MANUAL => pool.auto_assign = false,
                AUTOMATIC => pool.auto_assign = true,
                text => {
                    let span = Span::parse(text).ok_or_else(|| PoolError::NotARange {
                        pool: name.to_owned(),
                        text: text.to_owned(),
                    })?;
                    self.admit(&pool, span, cluster)?;
                    pool.spans.push(span);
                }
            }
        }
        if pool.spans.is_empty() {
            let pool = name.to_owned();
            return Err(PoolError::Empty { pool });
        }
        Ok(pool)
    }

    /// Whether the range may stand beside all others.
    fn admit(&self, pool: &Pool, span: Span, cluster: &[IpNet]) -> Result<(), PoolError> {
        let name = || pool.name.clone();
        // The special ranges are aligned: one that begins and ends outside of them could only hold one whole.
        let is_special = !is_plain(span.first)
            || !is_plain(span.last)
            || SPECIAL.iter().any(|text| {
                text.parse::<IpAddr>()
                    .is_ok_and(|address| span.contains(address))
            });
        if is_special {
            return Err(PoolError::Special { pool: name(), span });
        }
        let whole = |range: &IpNet| Span {
            first: range.network(),
            last: range.broadcast(),
        };
        if let Some(range) = cluster.iter().find(|range| whole(range).overlaps(&span)) {
            return Err(PoolError::Cluster {
                pool: name(),
                span,
                range: *range,
            });
        }
        let all = self.0.iter().chain([pool]);
        let mut spans = all.flat_map(|pool| pool.spans.iter().map(move |span| (pool, span)));
        match spans.find(|(_, other)| other.overlaps(&span)) {
            None => Ok(()),
            Some((other, other_span)) => Err(PoolError::Overlap {
                pool: name(),
                span,
                other: other.name.clone(),
                other_span: *other_span,
            }),
        }
    }

    pub(super) fn named(&self, name: &str) -> Option<&Pool> {
        self.0.iter().find(|pool| pool.name == name)
    }

    /// The pools for those who ask for none.
    pub(super) fn automatic(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter().filter(|pool| pool.auto_assign)
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|pool| pool.contains(address))
    }
}

/// One address of each range that is special.
const SPECIAL: [&str; 6] = [
    "127.0.0.1",
    "169.254.0.1",
    "224.0.0.1",
    "::1",
    "fe80::1",
    "ff02::1",
];

/// What stands between commas and white space, without comments.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .flat_map(|line| line.split(|c: char| c == ',' || c.is_whitespace()))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[(&str, &str)]) -> (Pools, Vec<String>) {
        let data = data
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let cluster = ["10.244.0.0/16", "10.96.0.0/12", "fd00:10:96::/108"];
        let cluster = cluster.map(|range| range.parse().unwrap());
        let (pools, errors) = Pools::parse(&data.collect(), &cluster);
        (pools, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_pool_names_ranges_in_three_forms() {
        let (pools, errors) = parse(&[
            (
                "office",
                "192.0.2.0/29, 2001:db8::/126\n198.51.100.7 # one\n",
            ),
            (
                "spare",
                "203.0.113.10-203.0.113.12\n auto-assign=false\n# nothing",
            ),
        ]);
        assert!(errors.is_empty(), "{errors:?}");
        let texts: Vec<String> = pools.0[0].spans.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "192.0.2.1-192.0.2.6",
                "2001:db8::1-2001:db8::3",
                "198.51.100.7"
            ]
        );
        let automatic: Vec<_> = pools.automatic().map(|pool| &*pool.name).collect();
        assert_eq!(automatic, ["office"]);
        let spare = pools.named("spare").unwrap();
        let all: Vec<String> = spare.spans[0]
            .addresses()
            .map(|it| it.to_string())
            .collect();
        assert_eq!(all, ["203.0.113.10", "203.0.113.11", "203.0.113.12"]);
        assert!(pools.contain("192.0.2.6".parse().unwrap()));
        assert!(!pools.contain("192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn nonsense_is_refused_in_one_sentence_and_the_rest_is_used() {
        let good = ("a-good", "192.0.2.0/28");
        for (text, why) in [
            ("192.0.2.0/33", "pool b: \"192.0.2.0/33\" is no range"),
            ("192.0.2.9-192.0.2.3", "pool b: \"192.0.2.9-192.0.2.3\" is"),
            ("192.0.2.9-2001:db8::1", "is no range of addresses"),
            ("auto-assign=maybe", "\"auto-assign=maybe\" is no range"),
            ("auto-assign=false", "pool b: it names no addresses"),
            ("", "pool b: it names no addresses"),
            ("127.0.0.0/8", "no other machine can be reached"),
            ("0.0.0.0/0", "no other machine can be reached"),
            ("100.0.0.0-200.0.0.0", "no other machine can be reached"),
            ("fe80::/64", "no other machine can be reached"),
            (
                "10.244.3.0/28",
                "overlaps 10.244.0.0/16, which is the cluster's",
            ),
            ("10.0.0.0/8", "which is the cluster's own"),
            ("fd00:10:96::5", "overlaps fd00:10:96::/108"),
            (
                "192.0.2.14",
                "192.0.2.14 overlaps 192.0.2.1-192.0.2.14 of pool a-good",
            ),
            (
                "198.51.100.1 198.51.100.0-198.51.100.3",
                "198.51.100.0-198.51.100.3 overlaps 198.51.100.1 of pool b",
            ),
        ] {
            let (pools, errors) = parse(&[good, ("b", text)]);
            assert_eq!(errors.len(), 1, "{text}");
            assert!(errors[0].contains(why), "{text}: {}", errors[0]);
            assert_eq!(pools.0.len(), 1, "{text}");
        }
    }
}
