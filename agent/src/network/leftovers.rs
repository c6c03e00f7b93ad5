//! What agents have put into the node's network, found again and removed: links of pods, the tunnel,
//! our routes, the gateways.

use std::fmt;

use ipnet::IpNet;
use rtnetlink::packet_route::route::RouteMessage;

use super::NetworkError;
use super::messages;
use super::netlink::Netlink;
use super::ranges::{PodAddresses, gateway};
use super::tunnel::is_tunnel;

/// One thing in the node's network that an agent made.
#[derive(Clone, Debug)]
pub enum Leftover {
    /// The host's end of a pod's veth pair; its route goes with it.
    Link { name: String, pod: PodAddresses },
    /// The tunnel to nodes beyond routers; the routes through it go with it.
    Tunnel { name: String },
    /// A route with our protocol number.
    Route(RouteMessage),
    /// The pods' gateway, on the loopback.
    Gateway { link: u32, address: IpNet },
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Link { name, pod } => write!(f, "link {name} of the pod at {pod}"),
            Leftover::Tunnel { name } => write!(f, "link {name}, the tunnel to other nodes"),
            Leftover::Route(route) => {
                let range = messages::destination(route).map(|range| range.to_string());
                write!(f, "route to {}", range.as_deref().unwrap_or("everything"))?;
                match messages::node_route(route) {
                    Some((_, hop)) => write!(f, " {hop}"),
                    None => Ok(()),
                }
            }
            Leftover::Gateway { address, .. } => write!(f, "address {address} on lo"),
        }
    }
}

/// Finds all of it in this process's network namespace, in the order in which it may go.
pub async fn find() -> Result<Vec<Leftover>, NetworkError> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let loopback = links.iter().find(|link| link.name == "lo");
    let loopback = loopback.map_or(0, |link| link.index);
    let gateways: Vec<IpNet> = netlink
        .unreachable_ranges()
        .await?
        .into_iter()
        .map(|range| gateway(range).into())
        .collect();
    let mut found = Vec::new();
    // The first: only by its range's route is it known as ours, and a clean-up may be interrupted.
    for (link, address) in netlink.addresses().await? {
        if link == loopback && gateways.contains(&address) {
            found.push(Leftover::Gateway { link, address });
        }
    }
    let mut ours = Vec::new();
    for link in &links {
        let name = link.name.clone();
        if let Some(pod) = link.pod() {
            found.push(Leftover::Link { name, pod });
            ours.push(link.index);
        } else if is_tunnel(link) {
            found.push(Leftover::Tunnel { name });
            ours.push(link.index);
        }
    }
    let with_its_link =
        |route: &RouteMessage| messages::link(route).is_some_and(|link| ours.contains(&link));
    let routes = netlink.own_routes().await?;
    let routes = routes.into_iter().filter(|route| !with_its_link(route));
    found.extend(routes.map(Leftover::Route));
    Ok(found)
}

/// Removes one. Does nothing when it is gone.
pub async fn remove(leftover: &Leftover) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    match leftover {
        Leftover::Link { name, .. } | Leftover::Tunnel { name } => {
            netlink.delete_link(name).await?
        }
        Leftover::Route(route) => netlink.delete_route(route.clone()).await?,
        Leftover::Gateway { link, address } => netlink.delete_address(*link, *address).await?,
    }
    Ok(())
}
