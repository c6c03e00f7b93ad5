//! Reads what the kernel tells of links and routes. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Grows with each link made in the namespace.
    pub index: u32,
    pub name: String,
    /// Empty for links without hardware addresses.
    pub mac: Vec<u8>,
    /// In bytes.
    pub mtu: u32,
    pub up: bool,
}

impl Link {
    pub(super) fn read(message: LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: Vec::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                _ => {}
            }
        }
        link
    }
}

/// Reads a route to another node: one that has a next hop. Routes to own pods have none.
pub(super) fn node_route(route: &RouteMessage) -> Option<(Ipv4Net, Ipv4Addr)> {
    let next_hop = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })?;
    Some((destination(route)?, next_hop))
}

/// Reads a route to a pod of this node: to one address, straight out of a link.
pub(super) fn host_route(route: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    let link = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(link) => Some(*link),
            _ => None,
        })?;
    let destination = destination(route).filter(|range| range.prefix_len() == 32)?;
    (route.header.scope == RouteScope::Link).then_some((destination.addr(), link))
}

pub(super) fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })?;
    Ipv4Net::new(address, route.header.destination_prefix_length).ok()
}
