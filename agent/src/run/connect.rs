//! Connects the node's pods: waits for the node's ranges, makes the node their router and name server, and keeps the routes
//! to the other nodes'.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::{Node, Parts, RESOLV_CONF, RunError, outcome, unfailing};
use crate::chain::chain;
use crate::cluster::Cluster;
use crate::dns::forward::Forwarder;
use crate::dns::server::DnsServer;
use crate::events::{Events, Kind, Subject};
use crate::network::pods::{Settings, VethNetwork, adopted_ranges};
use crate::network::ranges::Ranges;
use crate::network::routes::{Peers, cut_off};
use crate::network::{LinkGuard, NetworkError, routing};
use crate::node::registration::pod_ranges;
use crate::node::status::{Health, Part};

const DNS_PORT: u16 = 53;
/// How long the API server may take to tell the pod ranges when an earlier agent knew them.
const RANGE_PATIENCE: Duration = Duration::from_secs(5);
/// Until the next look at a node whose pods cannot be connected as it is set up.
const RETRY: Duration = Duration::from_secs(10);

/// Waits for the node's pod ranges, then makes the node its pods' router and name server. `None` when a part of the agent
/// ended meanwhile.
pub(super) async fn connect(
    node: &Node,
    guard: Arc<dyn LinkGuard>,
    health: &watch::Sender<Health>,
    events: &Events,
    parts: &mut Parts,
) -> Result<Option<VethNetwork>, RunError> {
    let set_up = set_up(node, health, events);
    let (servers, network) = tokio::select! {
        ready = set_up => ready?,
        ended = parts.join_next() => return outcome(ended).map(|()| None),
    };
    let network = network.guarded_by(guard).await?;
    for server in servers {
        parts.spawn(unfailing(server.run()));
    }
    health.send_modify(|health| health.network = Part::Up);
    info!(gateways = ?network.gateways(), "pods can be connected");
    Ok(Some(network))
}

/// Name servers at the gateways of the ranges. They have their sockets before anything is changed on the node.
fn name_servers(node: &Node, ranges: &Ranges) -> Result<Vec<DnsServer>, RunError> {
    let gateways = ranges.gateways();
    let servers = gateways.iter().map(|gateway| {
        DnsServer::bind(
            SocketAddr::new(*gateway, DNS_PORT),
            &node.config.cluster_domain,
            node.cluster.clone(),
            Forwarder::new(RESOLV_CONF.into(), gateways.clone()),
        )
    });
    Ok(servers.collect::<Result<_, _>>()?)
}

/// Sets the network up. What only people can mend is told to them, and tried again with the ranges that the node has then:
/// services are served meanwhile.
async fn set_up(
    node: &Node,
    health: &watch::Sender<Health>,
    events: &Events,
) -> Result<(Vec<DnsServer>, VethNetwork), RunError> {
    loop {
        let ranges = known_ranges(&node.cluster, &node.name).await?;
        let servers = name_servers(node, &ranges)?;
        let settings = Settings {
            ranges,
            node_ips: node.addresses.clone(),
            mtu: node.config.pod_mtu,
        };
        let error = match VethNetwork::set_up(settings).await {
            Ok(network) => return Ok((servers, network)),
            Err(
                error @ (NetworkError::Overlap { .. }
                | NetworkError::NoIpv6
                | NetworkError::MtuTooLarge { .. }
                | NetworkError::MtuTooSmall(_)),
            ) => chain(&error),
            Err(other) => return Err(other.into()),
        };
        let down = Part::Down(error.clone());
        let is_news = health.send_if_modified(|health| {
            let is_news = health.network != down;
            health.network = down;
            is_news
        });
        if is_news {
            warn!(error, "pods cannot be connected");
            events.send(
                Subject::node(&node.name),
                None,
                Kind::Warning,
                "PodNetworkRefused",
                error,
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The node's pod ranges: what the API says, or without an answer what an earlier agent set up.
async fn known_ranges(cluster: &Cluster, node: &str) -> Result<Ranges, RunError> {
    match tokio::time::timeout(RANGE_PATIENCE, pod_ranges(cluster, node)).await {
        Ok(ranges) => Ok(ranges),
        Err(_) => match adopted_ranges().await? {
            Some(ranges) => Ok(ranges),
            None => Ok(pod_ranges(cluster, node).await),
        },
    }
}

/// Compares the ranges that the network was set up with to those that the API says, once it does.
pub(super) fn confirm_ranges(
    node: &Node,
    network: Arc<VethNetwork>,
) -> impl Future<Output = ()> + use<> {
    let (cluster, name) = (node.cluster.clone(), node.name.clone());
    async move {
        network.confirm(pod_ranges(&cluster, &name).await);
        std::future::pending().await
    }
}

/// Keeps the routes to the other nodes' pods, and tells people which cannot be.
pub(super) fn keep_routes(
    node: &Node,
    events: Events,
    peers: watch::Sender<Peers>,
) -> impl Future<Output = Result<(), RunError>> + use<> {
    let settings = routing::Settings {
        own: node.name.clone(),
        node_ips: node.addresses.clone(),
        port: node.config.vxlan_port,
        vni: node.config.vxlan_id,
    };
    let (cluster, subject) = (node.cluster.clone(), Subject::node(&node.name));
    async move {
        let tell = |peer: &crate::cluster::Name, why: &crate::network::routes::Refusal| {
            let message = format!("no route to the pods of node {peer}: {why}");
            let subject = subject.clone();
            events.send(subject, None, Kind::Warning, "NoRouteToPods", message);
        };
        Ok(routing::run(cluster, settings, peers, tell).await?)
    }
}

/// Tells the node's status whether the other nodes' pods are reached.
pub(super) async fn tell_routes(mut peers: watch::Receiver<Peers>, health: watch::Sender<Health>) {
    // Ends with who keeps the routes, and the agent with that.
    while peers.changed().await.is_ok() {
        let routes = match cut_off(&peers.borrow_and_update()) {
            None => Part::Up,
            Some(why) => Part::Down(why),
        };
        health.send_if_modified(|health| {
            let differs = health.routes.as_ref() != Some(&routes);
            health.routes = Some(routes);
            differs
        });
    }
    std::future::pending().await
}
