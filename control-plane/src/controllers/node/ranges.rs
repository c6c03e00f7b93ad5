//! The cluster's ranges of pod addresses, and how they are cut for the nodes. Pure.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::resources::Family;

/// Upstream's sizes of a node's range.
const NODE_PREFIX_V4: u8 = 24;
const NODE_PREFIX_V6: u8 = 64;

/// The ranges, as `--pod-cidr` names them: the first is of the family that a pod's `podIP` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRanges(Vec<PodRange>);

/// One range, and how long the prefix of each node's part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PodRange {
    all: IpNet,
    node_prefix: u8,
}

/// Why pods cannot have such addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodRangesError {
    #[error("{0:?} is no range of addresses, such as 10.244.0.0/16 or fd00:10:244::/56")]
    NotARange(String),
    #[error("{0} and {1} are of one family; give one range, or one of IPv4 and one of IPv6")]
    OneFamily(IpNet, IpNet),
    #[error("there are {0} ranges; give one, or one of IPv4 and one of IPv6")]
    TooMany(usize),
    #[error("a node's part of the pod range {range} cannot be a /{prefix}: {why}")]
    NodePrefix {
        range: IpNet,
        prefix: u8,
        why: &'static str,
    },
    #[error(
        "the pod range {0} overlaps the service range {1}; pods and services need ranges of their own"
    )]
    Services(IpNet, IpNet),
    #[error(
        "the pod range {0} holds this machine's address {1}; pods need a range that no machine's address is in"
    )]
    Machine(IpNet, IpAddr),
}

impl FromStr for PodRanges {
    type Err = PodRangesError;

    fn from_str(text: &str) -> Result<Self, PodRangesError> {
        let parse = |text: &str| {
            let range = text.trim().parse::<IpNet>();
            range.map_err(|_| PodRangesError::NotARange(text.to_owned()))
        };
        let ranges: Vec<IpNet> = text.split(',').map(parse).collect::<Result<_, _>>()?;
        match *ranges {
            [_] => {}
            [first, second] if family(&first) == family(&second) => {
                return Err(PodRangesError::OneFamily(first, second));
            }
            [_, _] => {}
            _ => return Err(PodRangesError::TooMany(ranges.len())),
        }
        let with_default = |range: IpNet| {
            let wanted = match range {
                IpNet::V4(_) => NODE_PREFIX_V4,
                IpNet::V6(_) => NODE_PREFIX_V6,
            };
            PodRange {
                all: range.trunc(),
                node_prefix: wanted.max(range.prefix_len()),
            }
        };
        Ok(Self(ranges.into_iter().map(with_default).collect()))
    }
}

impl PodRanges {
    /// The ranges that all nodes' parts are cut from.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().map(|range| range.all)
    }

    /// The same ranges with nodes' parts of these prefix lengths, where one is said.
    pub fn cut(mut self, v4: Option<u8>, v6: Option<u8>) -> Result<Self, PodRangesError> {
        for range in &mut self.0 {
            let said = match range.all {
                IpNet::V4(_) => v4,
                IpNet::V6(_) => v6,
            };
            let Some(prefix) = said else { continue };
            let refused = |why| PodRangesError::NodePrefix {
                range: range.all,
                prefix,
                why,
            };
            if prefix < range.all.prefix_len() {
                return Err(refused("it is larger than the range"));
            }
            // The network's own address and the gateway are no pod's, nor is IPv4's broadcast address.
            if prefix + 2 > range.all.max_prefix_len() {
                return Err(refused("it has no room for a pod"));
            }
            range.node_prefix = prefix;
        }
        Ok(self)
    }

    /// Refuses ranges in which services have their addresses.
    pub fn apart_from<'a>(
        &self,
        services: impl IntoIterator<Item = &'a IpNet>,
    ) -> Result<(), PodRangesError> {
        for other in services {
            if let Some(PodRange { all, .. }) = self.0.iter().find(|it| overlap(&it.all, other)) {
                return Err(PodRangesError::Services(*all, *other));
            }
        }
        Ok(())
    }

    /// Refuses ranges in which a machine has its address.
    pub fn without_machine(&self, address: IpAddr) -> Result<(), PodRangesError> {
        match self.0.iter().find(|range| range.all.contains(&address)) {
            Some(range) => Err(PodRangesError::Machine(range.all, address)),
            None => Ok(()),
        }
    }

    /// A free part of each range, in their order; the range of which none is left is the error.
    pub(super) fn first_free(&self, taken: &[IpNet]) -> Result<Vec<IpNet>, IpNet> {
        let free = |range: &PodRange| first_free(range, taken).ok_or(range.all);
        self.0.iter().map(free).collect()
    }
}

fn family(range: &IpNet) -> Family {
    Family::of(range.addr())
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The first part of the range that overlaps none of `taken`.
fn first_free(range: &PodRange, taken: &[IpNet]) -> Option<IpNet> {
    // In their order, so that one look at each part and each obstacle is enough: a range may have 2^64 parts.
    let mut taken: Vec<IpNet> = taken
        .iter()
        .filter(|other| overlap(other, &range.all))
        .copied()
        .collect();
    taken.sort_by_key(|other| other.network());
    let mut obstacles = taken.iter().peekable();
    let mut parts = range.all.subnets(range.node_prefix).ok()?;
    parts.find(|part| {
        while obstacles
            .next_if(|other| other.broadcast() < part.network())
            .is_some()
        {}
        // Obstacles may lie within each other, but only wholly: none that was passed reaches beyond the next.
        !obstacles.peek().is_some_and(|other| overlap(other, part))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ranges(text: &str) -> PodRanges {
        text.parse().unwrap()
    }

    /// The first free part of a cluster with one range.
    fn free(cluster: &str, taken: &[&str]) -> Option<IpNet> {
        let taken: Vec<IpNet> = taken.iter().map(|text| net(text)).collect();
        let mut found = ranges(cluster).first_free(&taken).ok()?;
        assert_eq!(found.len(), 1);
        found.pop()
    }

    #[test]
    fn parts_are_given_in_order_and_gaps_are_filled() {
        let cluster = "10.244.0.0/16";
        assert_eq!(free(cluster, &[]), Some(net("10.244.0.0/24")));
        assert_eq!(
            free(cluster, &["10.244.2.0/24", "10.244.0.0/24"]),
            Some(net("10.244.1.0/24"))
        );
        assert_eq!(
            free(
                cluster,
                &["10.244.0.0/23", "10.244.0.7/32", "10.244.3.0/24"]
            ),
            Some(net("10.244.2.0/24")),
            "a larger one is in the way"
        );
        assert_eq!(free("10.0.0.0/24", &["10.0.0.128/25"]), None);
        assert_eq!(free("fd00::/56", &[]), Some(net("fd00::/64")));
    }

    #[test]
    fn a_cluster_of_both_families_gives_a_part_of_each_in_its_order() {
        let cluster = ranges("fd00:10:244::/48, 10.244.0.0/16");
        let first = cluster.first_free(&[]).unwrap();
        assert_eq!(first, [net("fd00:10:244::/64"), net("10.244.0.0/24")]);
        let second = cluster.first_free(&first).unwrap();
        assert_eq!(second, [net("fd00:10:244:1::/64"), net("10.244.1.0/24")]);

        let small = ranges("10.0.0.0/24,fd00::/48");
        let first = small.first_free(&[]).unwrap();
        assert_eq!(small.first_free(&first), Err(net("10.0.0.0/24")));

        let cut = ranges("10.0.0.0/16,fd00::/48").cut(Some(26), Some(112));
        assert_eq!(
            cut.unwrap().first_free(&[]).unwrap(),
            [net("10.0.0.0/26"), net("fd00::/112")]
        );
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused_in_a_sentence() {
        for (text, why) in [
            ("10.244.0.0", "is no range of addresses"),
            ("10.0.0.0/16,10.1.0.0/16", "are of one family"),
            ("10.0.0.0/16,fd00::/64,fd01::/64", "there are 3 ranges"),
        ] {
            let refused = text.parse::<PodRanges>().unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        for (prefix, why) in [
            (15, "cannot be a /15: it is larger than the range"),
            (31, "cannot be a /31: it has no room for a pod"),
        ] {
            let refused = ranges("10.244.0.0/16").cut(Some(prefix), None).unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
        let pods = ranges("10.0.0.0/8,fd00::/48");
        let services = [net("192.168.0.0/16"), net("fd00:0:0:1::/108")];
        let refused = |result: Result<(), PodRangesError>| result.unwrap_err().to_string();
        assert_eq!(
            refused(pods.without_machine("10.1.2.3".parse().unwrap())),
            "the pod range 10.0.0.0/8 holds this machine's address 10.1.2.3; pods need a range that no machine's address is in"
        );
        assert_eq!(
            refused(pods.apart_from(&services)),
            "the pod range fd00::/48 overlaps the service range fd00:0:0:1::/108; pods and services need ranges of their own"
        );
        assert_eq!(pods.apart_from(&services[..1]), Ok(()));
        assert_eq!(pods.without_machine("192.0.2.1".parse().unwrap()), Ok(()));
    }

    fn taken() -> impl Strategy<Value = IpNet> {
        (any::<u16>(), 20u8..=32).prop_map(|(host, prefix)| {
            let [c, d] = host.to_be_bytes();
            IpNet::new(IpAddr::from([10, 244, c, d]), prefix)
                .unwrap()
                .trunc()
        })
    }

    proptest! {
        #[test]
        fn the_first_part_that_overlaps_nothing_is_given(
            mut taken in prop::collection::vec(taken(), 0..40), rounds in 1usize..20,
        ) {
            let cluster = ranges("10.244.0.0/17");
            for _ in 0..rounds {
                let plain = net("10.244.0.0/17")
                    .subnets(24)
                    .unwrap()
                    .find(|part| !taken.iter().any(|other| overlap(other, part)));
                let given = cluster.first_free(&taken).ok().map(|parts| parts[0]);
                prop_assert_eq!(given, plain);
                taken.extend(given);
            }
        }
    }
}
