//! Which routes lead to the other nodes' pods. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::ranges::Ranges;
use crate::cluster::{Name, Node, View};

/// Routes to other nodes' pods.
pub type Routes = BTreeMap<IpNet, Hop>;

/// The least MTU of a link that carries IPv6, in bytes.
pub const LEAST_MTU_V6: u32 = 1280;

/// How packets get to another node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// By a node's address that is on this node's link.
    Direct(IpAddr),
    Tunnel(Tunnel),
}

/// In VXLAN, to a node's address beyond a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub remote: IpAddr,
    pub vni: u32,
    /// What this node itself speaks from.
    pub source: Option<IpAddr>,
    /// Of a packet before it is wrapped, in bytes.
    pub mtu: u32,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hop::Direct(next_hop) => write!(f, "via {next_hop}"),
            Hop::Tunnel(tunnel) => write!(f, "by VXLAN to {}", tunnel.remote),
        }
    }
}

/// One change of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteOp {
    /// Adds the route or turns the one that is there to another hop, in one step.
    Replace(IpNet, Hop),
    Delete(IpNet),
}

/// What leads from this node to others, and what must not be led away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// One for each address of the node, the primary one first.
    pub uplinks: Vec<Uplink>,
    /// The pods' gateways that this node has at the moment.
    pub gateways: Vec<IpAddr>,
    /// The tunnel's VXLAN network identifier.
    pub vni: u32,
}

/// The link that has one of the node's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub address: IpAddr,
    /// What is on the link without any router between, of the address's family.
    pub networks: Vec<IpNet>,
    /// In bytes.
    pub mtu: u32,
}

impl Uplink {
    /// The MTU of what is wrapped to leave by this link.
    pub fn tunnel_mtu(&self) -> u32 {
        // The inner Ethernet header, VXLAN, UDP and IP.
        let overhead = match self.address {
            IpAddr::V4(_) => 14 + 8 + 8 + 20,
            IpAddr::V6(_) => 14 + 8 + 8 + 40,
        };
        self.mtu.saturating_sub(overhead)
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

/// How each range of each other node is reached, or why not.
pub type Peers = BTreeMap<Name, BTreeMap<IpNet, Result<Hop, Refusal>>>;

/// Why there is no route to a node's pods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Such a route would take away traffic that is not its pods'.
    #[error(
        "its pod range {0} overlaps {1}, which is this node's own pods' or link's; give the cluster a --pod-cidr that no machine's address is in"
    )]
    Overlap(IpNet, IpNet),
    #[error(
        "its pod range {0} is also that of node {1}; one of the two has to be deleted and join again"
    )]
    Taken(IpNet, Name),
    #[error("it has not told its address yet")]
    NoAddress,
    #[error("it has no address of a family that this node has one of; see --node-ip")]
    NoCommonFamily,
    #[error(
        "what fits through the tunnel to it, {0} bytes, is less than the 1280 that IPv6 needs: raise the MTU of the nodes' links"
    )]
    Narrow(u32),
    /// The kernel did not take the route.
    #[error("{0}")]
    Failed(String),
}

/// The routes that node `own` needs, by node.
pub fn wanted(view: &View, own: &str, underlay: &Underlay) -> Peers {
    let own_ranges = view
        .nodes
        .get(own)
        .into_iter()
        .flat_map(|node| ranges(node));
    let networks = underlay
        .uplinks
        .iter()
        .flat_map(|uplink| uplink.networks.iter().copied());
    let reserved: Vec<IpNet> = own_ranges.chain(networks).collect();
    let mut owners: BTreeMap<IpNet, &Name> = BTreeMap::new();
    let mut peers = Peers::new();
    for (name, node) in view.nodes.iter().filter(|(name, _)| &***name != own) {
        for range in ranges(node) {
            let overlaps = |other: &&IpNet| other.contains(&range) || range.contains(*other);
            let hop = match (reserved.iter().find(overlaps), owners.get(&range)) {
                (Some(other), _) => Err(Refusal::Overlap(range, *other)),
                (None, Some(other)) => Err(Refusal::Taken(range, (*other).clone())),
                (None, None) => hop(node, range, underlay),
            };
            if hop.is_ok() {
                owners.insert(range, name);
            }
            peers.entry(name.clone()).or_default().insert(range, hop);
        }
    }
    peers
}

/// Why this node is cut off from the others' pods, if it is. What is wrong with one of them is no reason to leave this one
/// alone; that the kernel takes no route, or that there is none at all, is.
pub fn cut_off(peers: &Peers) -> Option<String> {
    let ranges = || {
        peers
            .iter()
            .flat_map(|(node, ranges)| ranges.values().map(move |hop| (node, hop)))
    };
    let refused = || ranges().filter_map(|(node, hop)| Some((node, hop.as_ref().err()?)));
    let failed = refused().find(|(_, why)| matches!(why, Refusal::Failed(_)));
    let all = ranges().count() > 0 && ranges().all(|(_, hop)| hop.is_err());
    let (node, why) = failed.or_else(|| refused().next().filter(|_| all))?;
    Some(format!("no route to the pods of node {node}: {why}"))
}

/// The routes alone.
pub fn routes(peers: &Peers) -> Routes {
    let ranges = peers.values().flatten();
    ranges
        .filter_map(|(range, hop)| Some((*range, *hop.as_ref().ok()?)))
        .collect()
}

/// Direct where an address of the peer's is on a link of ours, else wrapped. IPv4 goes by an IPv6 next hop, too; the reverse
/// the kernel does not have.
fn hop(peer: &Node, range: IpNet, underlay: &Underlay) -> Result<Hop, Refusal> {
    let of_family = |is_v4: bool| {
        let addresses = peer.internal_ips.iter().copied();
        addresses.filter(move |address| address.is_ipv4() == is_v4)
    };
    let on_link = |address: &IpAddr| underlay.uplinks.iter().any(|uplink| uplink.holds(*address));
    let range_is_v4 = range.addr().is_ipv4();
    let direct = of_family(range_is_v4).find(on_link);
    let by_v6 = || {
        range_is_v4
            .then(|| of_family(false).find(on_link))
            .flatten()
    };
    if let Some(next_hop) = direct.or_else(by_v6) {
        return Ok(Hop::Direct(next_hop));
    }
    let mut ways = underlay.uplinks.iter().filter_map(|uplink| {
        let remote = of_family(uplink.address.is_ipv4()).next()?;
        Some((uplink, remote))
    });
    let Some((uplink, remote)) = ways.next() else {
        return Err(match peer.internal_ips.is_empty() {
            true => Refusal::NoAddress,
            false => Refusal::NoCommonFamily,
        });
    };
    let mtu = uplink.tunnel_mtu();
    if !range_is_v4 && mtu < LEAST_MTU_V6 {
        return Err(Refusal::Narrow(mtu));
    }
    let mut gateways = underlay.gateways.iter().copied();
    Ok(Hop::Tunnel(Tunnel {
        remote,
        vni: underlay.vni,
        source: gateways.find(|gateway| gateway.is_ipv4() == range_is_v4),
        mtu,
    }))
}

pub(super) fn ranges(node: &Node) -> impl Iterator<Item = IpNet> + use<> {
    let ranges = Ranges::new(node.pod_cidrs.iter().copied());
    ranges.into_iter().flat_map(|ranges| ranges.iter())
}

/// The steps from `present` to `wanted`. While the view is not `synced`, a node that is missing from it may exist all the
/// same, so its route stays.
pub fn diff(present: &Routes, wanted: &Routes, synced: bool) -> Vec<RouteOp> {
    let replaced = wanted
        .iter()
        .filter(|(range, hop)| present.get(*range) != Some(*hop))
        .map(|(range, hop)| RouteOp::Replace(*range, *hop));
    let deleted = present
        .keys()
        .filter(|range| synced && !wanted.contains_key(*range))
        .map(|range| RouteOp::Delete(*range));
    replaced.chain(deleted).collect()
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
