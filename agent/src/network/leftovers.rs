//! What agents have put into the node's network, found again and removed: links of pods, our routes, the gateway.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::RouteMessage;

use super::NetworkError;
use super::addresses::{gateway, recorded_address};
use super::messages;
use super::netlink::Netlink;

/// One thing in the node's network that an agent made.
#[derive(Clone, Debug)]
pub enum Leftover {
    /// The host's end of a pod's veth pair; its route goes with it.
    Link { name: String, pod: Ipv4Addr },
    /// A route with our protocol number.
    Route(RouteMessage),
    /// The pods' gateway, on the loopback.
    Gateway { link: u32, address: Ipv4Net },
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Link { name, pod } => write!(f, "link {name} of the pod at {pod}"),
            Leftover::Route(route) => {
                let range = messages::destination(route).map(|range| range.to_string());
                write!(f, "route to {}", range.as_deref().unwrap_or("everything"))?;
                match messages::node_route(route) {
                    Some((_, next_hop)) => write!(f, " via {next_hop}"),
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
    let gateways: Vec<Ipv4Net> = netlink
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
    let mut pods = Vec::new();
    for link in &links {
        if let Some(pod) = recorded_address(&link.name, &link.mac) {
            let name = link.name.clone();
            found.push(Leftover::Link { name, pod });
            pods.push(link.index);
        }
    }
    let with_its_link = |route: &RouteMessage| {
        messages::host_route(route).is_some_and(|(_, link)| pods.contains(&link))
    };
    let routes = netlink.own_routes().await?;
    let routes = routes.into_iter().filter(|route| !with_its_link(route));
    found.extend(routes.map(Leftover::Route));
    Ok(found)
}

/// Removes one. Does nothing when it is gone.
pub async fn remove(leftover: &Leftover) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    match leftover {
        Leftover::Link { name, .. } => netlink.delete_link(name).await?,
        Leftover::Route(route) => netlink.delete_route(route.clone()).await?,
        Leftover::Gateway { link, address } => netlink.delete_address(*link, *address).await?,
    }
    Ok(())
}
