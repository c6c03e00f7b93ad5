//! Keeps the routes to the other nodes' pods. Level-triggered: each pass reads the view and the routing table afresh.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{info, warn};

use super::monitor::Monitor;
use super::netlink::{Netlink, NetlinkError};
use super::ranges::Ranges;
use super::routes::{Hop, Peers, Refusal, RouteOp, Underlay, Uplink, diff, routes, wanted};
use super::tunnel;
use crate::cluster::{Change, Changes, Cluster, Name};

/// A pass without a change, should one have gone unheard.
const RESYNC: Duration = Duration::from_secs(60);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// What the routes depend on besides the cluster and the kernel.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node.
    pub own: Name,
    /// Its addresses, at most one of each family, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// UDP port of the tunnel.
    pub port: u16,
    /// The tunnel's VXLAN network identifier.
    pub vni: u32,
}

/// Keeps the routes until the process ends. The routes stay then: the kernel goes on serving without the agent. What is
/// reached how is told through `peers`, and each new refusal to `tell`.
pub async fn run(
    cluster: Cluster,
    settings: Settings,
    peers: watch::Sender<Peers>,
    tell: impl Fn(&Name, &Refusal),
) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    let mut monitor = Monitor::open()?;
    let mut changes = cluster.subscribe();
    loop {
        let pause = match pass(&netlink, &cluster, &settings).await {
            Ok(now) => {
                let failed = refusals(&now).any(|(_, why)| matches!(why, Refusal::Failed(_)));
                let before = peers.send_replace(now);
                let new: Vec<(Name, Refusal)> = refusals(&peers.borrow())
                    .filter(|new| !refusals(&before).any(|old| old == *new))
                    .map(|(node, why)| (node.clone(), why.clone()))
                    .collect();
                for (node, why) in new {
                    warn!(%node, %why, "no route to this node's pods");
                    tell(&node, &why);
                }
                if failed { RETRY } else { RESYNC }
            }
            Err(error) => {
                warn!(%error, "routes to other nodes are not up to date; trying again");
                RETRY
            }
        };
        // Each arm may be dropped: a change stays pending until it is taken, and the next pass reads everything.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node_change(&mut changes) => {}
            // The kernel drops routes with the address or the link that they need.
            () = monitor.changed() => {}
        }
    }
}

fn refusals(peers: &Peers) -> impl Iterator<Item = (&Name, &Refusal)> {
    peers.iter().flat_map(|(node, ranges)| {
        let refused = ranges.values().filter_map(|hop| hop.as_ref().err());
        refused.map(move |why| (node, why))
    })
}

/// One pass; returns how the other nodes' pods are reached, and why some are not.
pub async fn pass(
    netlink: &Netlink,
    cluster: &Cluster,
    settings: &Settings,
) -> Result<Peers, NetlinkError> {
    let underlay = underlay(netlink, cluster, settings).await?;
    let present = netlink.node_routes().await?;
    let (mut peers, synced) = {
        let view = cluster.view();
        (wanted(&view, &settings.own, &underlay), view.synced)
    };
    let link = match tunnel_link(netlink, &peers, settings, synced).await {
        Ok(link) => link,
        Err(error) => {
            let error = error.to_string();
            fail(&mut peers, |_, hop| matches!(hop, Hop::Tunnel(_)), &error);
            0
        }
    };
    let neighbours = tunnel::neighbours(&peers);
    let known = match link {
        0 => BTreeMap::new(),
        link => netlink.neighbours(link).await?,
    };
    for (gateway, mac) in &neighbours {
        if known.get(gateway).map(Vec::as_slice) != Some(mac) {
            netlink.put_neighbour(link, *gateway, *mac).await?;
        }
    }
    // Those whose route cannot be made now keep the one that they have.
    let refused = peers.values().flatten();
    let failing: Vec<IpNet> = refused
        .filter(|(_, hop)| matches!(hop, Err(Refusal::Failed(_))))
        .map(|(range, _)| *range)
        .collect();
    for op in diff(&present, &routes(&peers), synced) {
        // One route that the kernel refuses must not keep the others from being set.
        let done = match op {
            RouteOp::Delete(range) if failing.contains(&range) => continue,
            RouteOp::Replace(range, hop) => netlink.put_node_route(range, &hop, link).await,
            RouteOp::Delete(range) => netlink.delete_node_route(range).await,
        };
        match (done, op) {
            (Ok(()), RouteOp::Replace(range, hop)) => {
                info!(%range, %hop, "routed another node's pods")
            }
            (Ok(()), RouteOp::Delete(range)) => info!(%range, "unrouted another node's pods"),
            (Err(error), RouteOp::Replace(refused, _)) => {
                fail(&mut peers, |range, _| *range == refused, &error.to_string());
            }
            (Err(error), RouteOp::Delete(_)) => return Err(error),
        }
    }
    for gateway in known
        .keys()
        .filter(|it| synced && !neighbours.contains_key(*it))
    {
        netlink.delete_neighbour(link, *gateway).await?;
    }
    Ok(peers)
}

/// Makes refusals of those hops.
fn fail(peers: &mut Peers, which: impl Fn(&IpNet, &Hop) -> bool, why: &str) {
    for (range, hop) in peers.values_mut().flatten() {
        if hop.as_ref().is_ok_and(|hop| which(range, hop)) {
            *hop = Err(Refusal::Failed(why.to_owned()));
        }
    }
}

/// The index of the tunnel's link. It is there as long as a node needs it; while not all nodes are known, one may.
async fn tunnel_link(
    netlink: &Netlink,
    peers: &Peers,
    settings: &Settings,
    synced: bool,
) -> Result<u32, NetlinkError> {
    let hops = peers.values().flat_map(|ranges| ranges.values());
    let mtu = hops
        .filter_map(|hop| match hop {
            Ok(Hop::Tunnel(tunnel)) => Some(tunnel.mtu),
            _ => None,
        })
        .max();
    match mtu {
        Some(mtu) => tunnel::ensure(netlink, &settings.own, settings.port, mtu).await,
        None if synced => tunnel::remove(netlink).await.map(|()| 0),
        None => Ok(0),
    }
}

/// Reads what leads away from the node.
async fn underlay(
    netlink: &Netlink,
    cluster: &Cluster,
    settings: &Settings,
) -> Result<Underlay, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let links = netlink.links().await?;
    // A prefix that a router announces need not be the prefix of an address.
    let v6 = match settings.node_ips.iter().any(IpAddr::is_ipv6) {
        true => netlink.v6_networks().await?,
        false => Vec::new(),
    };
    let uplink = |address: &IpAddr| {
        let (index, _) = addresses.iter().find(|(_, it)| it.addr() == *address)?;
        let link = links.iter().find(|link| link.index == *index)?;
        let on_link = addresses.iter().chain(&v6);
        let networks = on_link
            .filter(|(link, network)| {
                link == index && network.addr().is_ipv4() == address.is_ipv4()
            })
            .map(|(_, network)| network.trunc())
            .filter(|network| !is_link_local(network));
        let mut networks: Vec<IpNet> = networks.collect();
        networks.sort_unstable();
        networks.dedup();
        Some(Uplink {
            address: *address,
            networks,
            mtu: link.mtu,
        })
    };
    let own = cluster.view().nodes.get(&*settings.own).cloned();
    let gateways = own
        .and_then(|own| Ranges::new(own.pod_cidrs.iter().copied()))
        .map(|ranges| ranges.gateways())
        .unwrap_or_default()
        .into_iter()
        .filter(|gateway| addresses.iter().any(|(_, it)| it.addr() == *gateway));
    Ok(Underlay {
        uplinks: settings.node_ips.iter().filter_map(uplink).collect(),
        gateways: gateways.collect(),
        vni: settings.vni,
    })
}

fn is_link_local(network: &IpNet) -> bool {
    matches!(network, IpNet::V6(network) if network.addr().is_unicast_link_local())
}

/// Waits for a change that may alter the routes.
async fn node_change(changes: &mut Changes) {
    loop {
        let pending = changes.next().await;
        if pending
            .keys()
            .any(|change| matches!(change, Change::Node(_) | Change::Synced))
        {
            return;
        }
    }
}
