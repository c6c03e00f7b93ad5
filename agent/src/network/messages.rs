//! Reads what the kernel tells of links, addresses and routes. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteIp6Tunnel, RouteIpTunnel, RouteLwTunnelEncap, RouteMessage,
    RouteMetric, RouteType, RouteVia,
};

use super::addresses::recorded;
use super::ranges::PodAddresses;
use super::routes::{Hop, Tunnel};

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Grows with each link made in the namespace.
    pub index: u32,
    pub name: String,
    /// Empty for links without hardware addresses.
    pub mac: Vec<u8>,
    /// In bytes.
    pub mtu: u32,
    pub up: bool,
    /// What somebody said it is for.
    pub alias: Option<String>,
    /// The UDP port of a VXLAN link whose packets go where their route says.
    pub vxlan_port: Option<u16>,
    /// What makes it, if no device does: `veth`, `vlan`, `bridge` and so on.
    pub kind: Option<String>,
    /// Index of the link that it lies on, or of its other end, if that is in the same namespace.
    pub on: Option<u32>,
}

impl Link {
    pub(super) fn read(message: LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Link::default()
        };
        let mut is_elsewhere = false;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Link(on) => link.on = Some(on),
                LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                LinkAttribute::LinkInfo(infos) => {
                    link.vxlan_port = vxlan_port(&infos);
                    link.kind = kind(&infos);
                }
                _ => {}
            }
        }
        link.on = link.on.filter(|_| !is_elsewhere);
        link
    }

    /// The addresses of the pod that it stands for; see [`recorded`].
    pub fn pod(&self) -> Option<PodAddresses> {
        recorded(&self.name, &self.mac, self.alias.as_deref())
    }
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The link's index.
    pub link: u32,
    pub address: IpAddr,
    /// It is good beyond the link.
    pub is_global: bool,
}

impl LinkAddress {
    pub(super) fn read(message: &AddressMessage) -> Option<Self> {
        let attributes = || message.attributes.iter();
        // Of a point-to-point link the other attribute is the far end's.
        let local = attributes().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let own = || {
            attributes().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
        };
        Some(Self {
            link: message.header.index,
            address: local.or_else(own)?,
            is_global: message.header.scope == AddressScope::Universe,
        })
    }
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn vxlan_port(infos: &[LinkInfo]) -> Option<u16> {
    let vxlan = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(vxlan)) => Some(vxlan),
        _ => None,
    })?;
    let port = vxlan.iter().find_map(|info| match info {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    });
    port.filter(|_| vxlan.contains(&InfoVxlan::CollectMetadata(true)))
}

/// Reads an address: the link that has it, and the address with its own prefix length.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    // IPv6 addresses have a local one only where there is a peer.
    let find =
        |read: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(read);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let only = || {
        find(|attribute| match attribute {
            AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(*address),
            _ => None,
        })
    };
    let address = IpNet::new(local.or_else(only)?, message.header.prefix_len).ok()?;
    Some((message.header.index, address))
}

/// Reads a neighbour: its address, and the hardware address.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Vec<u8>)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => {
                address = Some(IpAddr::from(*it));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => {
                address = Some(IpAddr::from(*it));
            }
            NeighbourAttribute::LinkLayerAddress(it) => mac = Some(it.clone()),
            _ => {}
        }
    }
    Some((address?, mac?))
}

/// Reads a route to another node: one that has a next hop or goes through the tunnel. Routes to own pods do neither.
pub(super) fn node_route(route: &RouteMessage) -> Option<(IpNet, Hop)> {
    let find = |read: fn(&RouteAttribute) -> Option<Hop>| route.attributes.iter().find_map(read);
    // What is wrapped has a next hop, too: the far gateway.
    let wrapped = find(|attribute| match attribute {
        RouteAttribute::Encap(encap) => tunnel(encap).map(Hop::Tunnel),
        _ => None,
    });
    let direct = || {
        find(|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => ip(gateway).map(Hop::Direct),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some(Hop::Direct((*gateway).into())),
            _ => None,
        })
    };
    let mut hop = wrapped.or_else(direct)?;
    if let Hop::Tunnel(tunnel) = &mut hop {
        tunnel.source = source(route);
        tunnel.mtu = mtu(route).unwrap_or_default();
    }
    Some((destination(route)?, hop))
}

fn tunnel(encap: &[RouteLwTunnelEncap]) -> Option<Tunnel> {
    let (mut remote, mut vni) = (None, 0);
    for part in encap {
        match part {
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(address)) => {
                remote = Some(IpAddr::from(*address));
            }
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(address)) => {
                remote = Some(IpAddr::from(*address));
            }
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(id))
            | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(id)) => vni = *id,
            _ => {}
        }
    }
    Some(Tunnel {
        remote: remote?,
        vni: u32::try_from(vni).ok()?,
        source: None,
        mtu: 0,
    })
}

fn source(route: &RouteMessage) -> Option<IpAddr> {
    let mut attributes = route.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    })
}

fn mtu(route: &RouteMessage) -> Option<u32> {
    let metrics = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics),
            _ => None,
        })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Reads a route to a pod of this node: to one address, straight out of a link.
pub(super) fn host_route(route: &RouteMessage) -> Option<(IpAddr, u32)> {
    let (link, network) = network(route)?;
    (network.prefix_len() == network.max_prefix_len()).then_some((network.addr(), link))
}

/// Reads a route to a network straight out of a link: its packets are resolved there.
pub(super) fn network(route: &RouteMessage) -> Option<(u32, IpNet)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut link = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => {
                return None;
            }
            _ => {}
        }
    }
    Some((link?, destination(route)?))
}

/// The link that a route leads out of.
pub(super) fn link(route: &RouteMessage) -> Option<u32> {
    let mut attributes = route.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })
}

pub(super) fn destination(route: &RouteMessage) -> Option<IpNet> {
    let mut attributes = route.attributes.iter();
    let address = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
