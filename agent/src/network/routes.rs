//! Which routes lead to the other nodes' pods. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::cluster::{Name, Node, View};

/// Routes to other nodes' pods: range → next hop, which is a node's InternalIP.
pub type Routes = BTreeMap<Ipv4Net, Ipv4Addr>;

/// One change of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteOp {
    /// Adds the route or turns the one that is there to another next hop, in one step.
    Replace(Ipv4Net, Ipv4Addr),
    Delete(Ipv4Net),
}

/// What the cluster's nodes ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: Routes,
    /// Nodes whose pods get no route, and why.
    pub refused: BTreeMap<Name, Refusal>,
}

/// Why there is no route to a node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it shares no link with this node")]
    NoCommonLink,
    /// Such a route would take away traffic that is not its pods'.
    #[error("its pod range {0} overlaps this node's own pods or link")]
    Overlap(Ipv4Net),
}

/// The routes that node `own` needs when its uplink is directly connected to the networks `link`.
pub fn wanted(view: &View, own: &str, link: &[Ipv4Net]) -> Wanted {
    let mut wanted = Wanted::default();
    let reserved: Vec<Ipv4Net> = view
        .nodes
        .get(own)
        .into_iter()
        .flat_map(|node| ranges(node))
        .chain(link.iter().copied())
        .collect();
    for (name, node) in view.nodes.iter().filter(|(name, _)| &***name != own) {
        let next_hop = node.internal_ips.iter().find_map(|address| match address {
            IpAddr::V4(address) if link.iter().any(|network| network.contains(address)) => {
                Some(*address)
            }
            _ => None,
        });
        for range in ranges(node) {
            let overlaps = |other: &Ipv4Net| other.contains(&range) || range.contains(other);
            let route = match next_hop {
                _ if reserved.iter().any(overlaps) => Err(Refusal::Overlap(range)),
                Some(next_hop) => Ok(next_hop),
                None => Err(Refusal::NoCommonLink),
            };
            match route {
                Ok(next_hop) => {
                    wanted.routes.insert(range, next_hop);
                }
                Err(refusal) => {
                    wanted.refused.insert(name.clone(), refusal);
                }
            }
        }
    }
    wanted
}

fn ranges(node: &Node) -> impl Iterator<Item = Ipv4Net> {
    node.pod_cidrs.iter().filter_map(|range| match range {
        IpNet::V4(range) => Some(range.trunc()),
        IpNet::V6(_) => None,
    })
}

/// The steps from `present` to `wanted`. While the view is not `synced`, a node that is missing from it may exist all the
/// same, so its route stays.
pub fn diff(present: &Routes, wanted: &Routes, synced: bool) -> Vec<RouteOp> {
    let replaced = wanted
        .iter()
        .filter(|(range, next_hop)| present.get(*range) != Some(*next_hop))
        .map(|(range, next_hop)| RouteOp::Replace(*range, *next_hop));
    let deleted = present
        .keys()
        .filter(|range| synced && !wanted.contains_key(*range))
        .map(|range| RouteOp::Delete(*range));
    replaced.chain(deleted).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn view(nodes: &[(&str, &[&str], &[&str])]) -> View {
        let mut view = View {
            synced: true,
            ..View::default()
        };
        for (name, ranges, addresses) in nodes {
            let node = Node {
                pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
                internal_ips: addresses
                    .iter()
                    .map(|address| address.parse().unwrap())
                    .collect(),
                zone: None,
            };
            view.nodes.insert((*name).into(), Arc::new(node));
        }
        view
    }

    fn link() -> [Ipv4Net; 1] {
        ["192.0.2.0/24".parse().unwrap()]
    }

    #[test]
    fn every_other_node_on_the_link_gets_a_route_by_its_internal_address() {
        let view = view(&[
            ("own", &["10.244.0.0/24"], &["192.0.2.1"]),
            (
                "peer",
                &["10.244.1.0/24", "fd00::/64"],
                &["2001:db8::2", "198.51.100.2", "192.0.2.2"],
            ),
            ("far", &["10.244.2.0/24"], &["198.51.100.3"]),
            ("new", &[], &["198.51.100.4"]),
            ("double", &["10.244.0.0/25"], &["192.0.2.5"]),
            ("greedy", &["0.0.0.0/0"], &["192.0.2.6"]),
        ]);
        let wanted = wanted(&view, "own", &link());
        let peer = (
            "10.244.1.0/24".parse().unwrap(),
            "192.0.2.2".parse().unwrap(),
        );
        assert_eq!(wanted.routes, Routes::from([peer]));
        let overlap = |range: &str| Refusal::Overlap(range.parse().unwrap());
        let refused = [
            ("far".into(), Refusal::NoCommonLink),
            ("double".into(), overlap("10.244.0.0/25")),
            ("greedy".into(), overlap("0.0.0.0/0")),
        ];
        assert_eq!(wanted.refused, BTreeMap::from(refused));
    }

    #[test]
    fn nothing_is_deleted_before_the_view_is_complete() {
        let range = "10.244.1.0/24".parse().unwrap();
        let present = Routes::from([(range, "192.0.2.2".parse().unwrap())]);
        assert_eq!(diff(&present, &Routes::new(), false), []);
        assert_eq!(
            diff(&present, &Routes::new(), true),
            [RouteOp::Delete(range)]
        );
    }

    fn routes() -> impl Strategy<Value = Routes> {
        let route = (0u8..8, 0u8..3).prop_map(|(range, hop)| {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 244, range, 0), 24).unwrap();
            (range, Ipv4Addr::new(192, 0, 2, hop))
        });
        prop::collection::btree_map(
            route.clone().prop_map(|(range, _)| range),
            route.prop_map(|(_, hop)| hop),
            0..8,
        )
    }

    proptest! {
        #[test]
        fn the_steps_lead_to_what_is_wanted_and_then_there_are_none(
            present in routes(), wanted in routes(), synced: bool,
        ) {
            let mut table = present.clone();
            for op in diff(&present, &wanted, synced) {
                match op {
                    RouteOp::Replace(range, hop) => { table.insert(range, hop); }
                    RouteOp::Delete(range) => { prop_assert!(table.remove(&range).is_some()); }
                }
            }
            for (range, hop) in &wanted {
                prop_assert_eq!(table.get(range), Some(hop));
            }
            if synced {
                prop_assert_eq!(&table, &wanted);
            } else {
                prop_assert!(present.keys().all(|range| table.contains_key(range)));
            }
            prop_assert_eq!(diff(&table, &wanted, synced), []);
        }
    }
}
