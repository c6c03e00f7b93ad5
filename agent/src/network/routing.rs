//! Keeps the routes to the other nodes' pods. Level-triggered: each pass reads the view and the routing table afresh.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use tracing::{info, warn};

use super::monitor::Monitor;
use super::netlink::{Netlink, NetlinkError};
use super::routes::{Refusal, RouteOp, diff, wanted};
use crate::cluster::{Change, Changes, Cluster, Name};

/// A pass without a change, should one have gone unheard.
const RESYNC: Duration = Duration::from_secs(60);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the routes until the process ends. The routes stay then: the kernel goes on serving without the agent.
pub async fn run(cluster: Cluster, own: String, node_ip: Ipv4Addr) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    let mut monitor = Monitor::open()?;
    let mut changes = cluster.subscribe();
    let mut warned = BTreeMap::new();
    loop {
        let pause = match pass(&netlink, &cluster, &own, node_ip).await {
            Ok(refused) => {
                for (node, why) in refused
                    .iter()
                    .filter(|(node, why)| warned.get(*node) != Some(*why))
                {
                    warn!(%node, %why, "no route to this node's pods");
                }
                warned = refused;
                RESYNC
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

/// One pass; returns the nodes whose pods get no route, and why.
pub async fn pass(
    netlink: &Netlink,
    cluster: &Cluster,
    own: &str,
    node_ip: Ipv4Addr,
) -> Result<BTreeMap<Name, Refusal>, NetlinkError> {
    let link = networks_of_uplink(netlink, node_ip).await?;
    let present = netlink.node_routes().await?;
    let (ops, refused) = {
        let view = cluster.view();
        let wanted = wanted(&view, own, &link);
        (diff(&present, &wanted.routes, view.synced), wanted.refused)
    };
    let mut first_error = None;
    for op in ops {
        // One route that the kernel refuses must not keep the others from being set.
        match perform(netlink, op).await {
            Ok(()) => info!(?op, "changed a route to another node's pods"),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(refused), Err)
}

async fn perform(netlink: &Netlink, op: RouteOp) -> Result<(), NetlinkError> {
    match op {
        RouteOp::Replace(range, next_hop) => netlink.put_node_route(range, next_hop).await,
        RouteOp::Delete(range) => netlink.delete_node_route(range).await,
    }
}

/// The networks that the link with the node's address is directly connected to.
async fn networks_of_uplink(
    netlink: &Netlink,
    node_ip: Ipv4Addr,
) -> Result<Vec<Ipv4Net>, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let uplink = addresses
        .iter()
        .find(|(_, address)| address.addr() == node_ip)
        .map(|(index, _)| *index);
    let on_uplink = addresses
        .into_iter()
        .filter(|(index, _)| Some(*index) == uplink);
    Ok(on_uplink.map(|(_, address)| address.trunc()).collect())
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
