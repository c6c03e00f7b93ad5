//! The routing table: routes to pods of this node, to other nodes' pods, and the refusal of the rest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteIp6Tunnel, RouteIp6TunnelFlags, RouteIpTunnel,
    RouteIpTunnelFlags, RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rustix::io::Errno;

use super::{Netlink, NetlinkError, absent_is_fine, doing};
use crate::network::messages;
use crate::network::ranges::gateway;
use crate::network::routes::{Hop, Routes, Tunnel};

/// Marks the routes that are ours (`proto 75` in `ip route`): no other route is ever changed.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(75);
/// `TUNNEL_CSUM | TUNNEL_KEY`. Receivers drop what comes over IPv6 without a checksum.
const TUNNEL_FLAGS: u16 = 0x0001 | 0x0004;

impl Netlink {
    /// Routes one address straight out of a link; the node itself uses `source` when it talks to it.
    pub async fn put_host_route(
        &self,
        address: IpAddr,
        index: u32,
        source: IpAddr,
    ) -> Result<(), NetlinkError> {
        let mut route = route_to(address.into());
        route.header.scope = RouteScope::Link;
        route.attributes.extend([
            RouteAttribute::Oif(index),
            RouteAttribute::PrefSource(source.into()),
        ]);
        self.put_route(route, format!("route {address} to link {index}"))
            .await
    }

    /// Routes everything of the gateway's family to it, which is taken to be behind the link though no prefix says so.
    pub async fn put_default_route(&self, gateway: IpAddr, index: u32) -> Result<(), NetlinkError> {
        let mut route = empty(gateway.is_ipv4());
        route.header.flags.insert(RouteFlags::Onlink);
        route.attributes.extend([
            RouteAttribute::Oif(index),
            RouteAttribute::Gateway(gateway.into()),
        ]);
        self.put_route(
            route,
            format!("route everything to {gateway} on link {index}"),
        )
        .await
    }

    /// Refuses packets to addresses of `range` that no longer route covers.
    pub async fn put_unreachable(&self, range: IpNet) -> Result<(), NetlinkError> {
        let mut route = route_to(range);
        route.header.kind = RouteType::Unreachable;
        self.put_route(route, format!("make the rest of {range} unreachable"))
            .await
    }

    /// Routes `range` to a node, in one step also when it went elsewhere before. `tunnel` is the index of the VXLAN link,
    /// which a hop through the tunnel needs.
    pub async fn put_node_route(
        &self,
        range: IpNet,
        hop: &Hop,
        tunnel: u32,
    ) -> Result<(), NetlinkError> {
        let mut route = route_to(range);
        match hop {
            Hop::Direct(next_hop) => route.attributes.push(match (range, *next_hop) {
                (IpNet::V4(_), IpAddr::V6(next_hop)) => {
                    RouteAttribute::Via(RouteVia::Inet6(next_hop))
                }
                (_, next_hop) => RouteAttribute::Gateway(next_hop.into()),
            }),
            Hop::Tunnel(through) => encapsulate(&mut route, range, through, tunnel),
        }
        self.put_route(route, format!("route {range} {hop}")).await
    }

    /// Removes our route to `range`. Does nothing when there is none.
    pub async fn delete_node_route(&self, range: IpNet) -> Result<(), NetlinkError> {
        let deleted = self.handle.route().del(route_to(range)).execute().await;
        absent_is_fine(
            deleted.map_err(doing(format!("remove the route to {range}"))),
            Errno::SRCH,
        )
    }

    /// Removes a route that the kernel told of. Does nothing when it is gone.
    pub(in crate::network) async fn delete_route(
        &self,
        route: RouteMessage,
    ) -> Result<(), NetlinkError> {
        let deleted = self.handle.route().del(route).execute().await;
        absent_is_fine(deleted.map_err(doing("remove a route")), Errno::SRCH)
    }

    /// Our routes to other nodes.
    pub async fn node_routes(&self) -> Result<Routes, NetlinkError> {
        Ok(self
            .own_routes()
            .await?
            .iter()
            .filter_map(messages::node_route)
            .collect())
    }

    /// The ranges that [`Netlink::put_unreachable`] was told of.
    pub async fn unreachable_ranges(&self) -> Result<Vec<IpNet>, NetlinkError> {
        let routes = self.own_routes().await?;
        let unreachable = routes
            .iter()
            .filter(|route| route.header.kind == RouteType::Unreachable);
        Ok(unreachable.filter_map(messages::destination).collect())
    }

    /// Our routes to single addresses, with the links that they lead out of.
    pub async fn host_routes(&self) -> Result<Vec<(IpAddr, u32)>, NetlinkError> {
        let routes = self.own_routes().await?;
        Ok(routes.iter().filter_map(messages::host_route).collect())
    }

    /// The IPv6 networks that are on a link without any router between, and the links.
    pub async fn v6_networks(&self) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let routes = self.routes(AddressFamily::Inet6).await?;
        Ok(routes.iter().filter_map(messages::network).collect())
    }

    /// Every route that is ours.
    pub(in crate::network) async fn own_routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut routes = self.routes(AddressFamily::Inet).await?;
        routes.extend(self.routes(AddressFamily::Inet6).await?);
        routes.retain(|route| route.header.protocol == ROUTE_PROTOCOL);
        Ok(routes)
    }

    async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, NetlinkError> {
        let any = empty(family == AddressFamily::Inet);
        let request = || self.handle.route().get(any).execute();
        self.table("list routes", request).await
    }

    async fn put_route(&self, route: RouteMessage, what: String) -> Result<(), NetlinkError> {
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(doing(what))
    }
}

/// A route of the main table that says nothing yet.
fn empty(is_v4: bool) -> RouteMessage {
    if is_v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    }
}

fn route_to(range: IpNet) -> RouteMessage {
    let mut route = empty(range.addr().is_ipv4());
    route.header.protocol = ROUTE_PROTOCOL;
    route.header.destination_prefix_length = range.prefix_len();
    let destination = RouteAttribute::Destination(range.network().into());
    route.attributes.push(destination);
    route
}

/// The far gateway is a neighbour on the tunnel's link; see [`tunnel::neighbours`](crate::network::tunnel::neighbours).
fn encapsulate(route: &mut RouteMessage, range: IpNet, through: &Tunnel, link: u32) {
    let vni = through.vni.into();
    let (kind, encap) = match through.remote {
        IpAddr::V4(remote) => (
            RouteLwEnCapType::Ip,
            [
                RouteIpTunnel::Id(vni),
                RouteIpTunnel::Destination(remote),
                RouteIpTunnel::Flags(RouteIpTunnelFlags::from_bits_retain(TUNNEL_FLAGS)),
            ]
            .map(RouteLwTunnelEncap::Ip),
        ),
        IpAddr::V6(remote) => (
            RouteLwEnCapType::Ip6,
            [
                RouteIp6Tunnel::Id(vni),
                RouteIp6Tunnel::Destination(remote),
                RouteIp6Tunnel::Flags(RouteIp6TunnelFlags::from_bits_retain(TUNNEL_FLAGS)),
            ]
            .map(RouteLwTunnelEncap::Ip6),
        ),
    };
    route.header.flags.insert(RouteFlags::Onlink);
    route.attributes.extend([
        RouteAttribute::Oif(link),
        RouteAttribute::Gateway(gateway(range).into()),
        RouteAttribute::EncapType(kind),
        RouteAttribute::Encap(encap.into()),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(through.mtu)]),
    ]);
    let source = through
        .source
        .map(|source| RouteAttribute::PrefSource(source.into()));
    route.attributes.extend(source);
}
