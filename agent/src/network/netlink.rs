//! rtnetlink, narrowed to what the pod network does. Each function brings about a state, whatever was there before.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::io::Errno;

use super::addresses::Mac;
use super::messages;
pub use super::messages::Link;
use super::namespaces::{Namespace, NamespaceError, within};
use super::routes::Routes;

/// Marks the routes that are ours (`proto 75` in `ip route`): no other route is ever changed.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(75);

/// A change of the network that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct NetlinkError {
    what: String,
    source: io::Error,
}

impl NetlinkError {
    pub(super) fn new(what: impl Into<String>, source: io::Error) -> Self {
        NetlinkError {
            what: what.into(),
            source,
        }
    }

    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }
}

/// For `map_err`: says what was being done.
fn doing(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let what = what.into();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NetlinkError { what, source }
    }
}

/// A new veth pair, made complete by one message: it exists with all of this or not at all.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    pub host_name: &'a str,
    pub host_mac: Mac,
    pub pod_name: &'a str,
    pub pod_mac: Mac,
    /// Where the pod's end is made.
    pub pod_netns: BorrowedFd<'a>,
    /// In bytes, of both ends.
    pub mtu: u32,
}

/// A netlink connection to one network namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects to the calling thread's namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError::new("open a netlink socket", source))?;
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// Connects to the namespace that is pinned at `path`.
    pub async fn open_in(path: &Path) -> Result<Result<Self, NetlinkError>, NamespaceError> {
        // A socket belongs for good to the namespace that its maker was in, so only opening it happens over there.
        let runtime = tokio::runtime::Handle::current();
        within(Namespace::Net, path, move || {
            let _entered = runtime.enter();
            Netlink::open()
        })
    }

    /// The link of that name, if it exists.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let request = self.handle.link().get().match_name(name).execute();
        let found = std::pin::pin!(request)
            .try_next()
            .await
            .map_err(doing(format!("look up link {name}")));
        match found {
            Ok(message) => Ok(message.map(Link::read)),
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every link, the oldest first.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let messages: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(doing("list links"))?;
        let mut links: Vec<_> = messages.into_iter().map(Link::read).collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Makes a veth pair. Fails with `EEXIST` when a link of its name exists.
    pub async fn add_veth(&self, pair: VethPair<'_>) -> Result<(), NetlinkError> {
        let pod_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.pod_name)
            .address(pair.pod_mac.to_vec())
            .mtu(pair.mtu)
            .setns_by_fd(pair.pod_netns.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(pair.host_name)
            .address(pair.host_mac.to_vec())
            .mtu(pair.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(pod_end)))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(doing(format!(
                "make veth pair {} – {}",
                pair.host_name, pair.pod_name
            )))
    }

    /// Removes a link, and with it its peer, addresses, routes and neighbours. Does nothing when it is gone.
    pub async fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_name(name).build();
        let deleted = self.handle.link().del_with_message(message).execute().await;
        absent_is_fine(
            deleted.map_err(doing(format!("remove link {name}"))),
            Errno::NODEV,
        )
    }

    /// Sets a link up.
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(doing(format!("set link {index} up")))
    }

    /// Gives a link an address.
    pub async fn put_address(&self, index: u32, address: Ipv4Net) -> Result<(), NetlinkError> {
        self.handle
            .address()
            .add(index, address.addr().into(), address.prefix_len())
            .replace()
            .execute()
            .await
            .map_err(doing(format!("give link {index} the address {address}")))
    }

    /// The IPv4 addresses of every link, with the links' indices and the addresses' own prefix lengths.
    pub async fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, NetlinkError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(doing("list addresses"))?;
        let found = messages.into_iter().filter_map(|message| {
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
                    _ => None,
                })?;
            Some((
                message.header.index,
                Ipv4Net::new(local, message.header.prefix_len).ok()?,
            ))
        });
        Ok(found.collect())
    }

    /// Tells for good which hardware address `address` has behind a link, so that nothing depends on ARP.
    pub async fn put_neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(index, address.into())
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(doing(format!(
                "add the neighbour {address} on link {index}"
            )))
    }

    /// Routes one address straight out of a link; the node itself uses `source` when it talks to it.
    pub async fn put_host_route(
        &self,
        address: Ipv4Addr,
        index: u32,
        source: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        let route = route_to(Ipv4Net::from(address))
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(source)
            .build();
        self.put_route(route, format!("route {address} to link {index}"))
            .await
    }

    /// Routes everything to `gateway`, which is taken to be behind the link though no prefix says so.
    pub async fn put_default_route(
        &self,
        gateway: Ipv4Addr,
        index: u32,
    ) -> Result<(), NetlinkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .gateway(gateway)
            .onlink()
            .build();
        self.put_route(
            route,
            format!("route everything to {gateway} on link {index}"),
        )
        .await
    }

    /// Refuses packets to addresses of `range` that no longer route covers.
    pub async fn put_unreachable(&self, range: Ipv4Net) -> Result<(), NetlinkError> {
        let route = route_to(range).kind(RouteType::Unreachable).build();
        self.put_route(route, format!("make the rest of {range} unreachable"))
            .await
    }

    /// Routes `range` to a node on the same link, in one step also when it went elsewhere before.
    pub async fn put_node_route(
        &self,
        range: Ipv4Net,
        next_hop: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        let route = route_to(range).gateway(next_hop).build();
        self.put_route(route, format!("route {range} to {next_hop}"))
            .await
    }

    /// Removes our route to `range`. Does nothing when there is none.
    pub async fn delete_node_route(&self, range: Ipv4Net) -> Result<(), NetlinkError> {
        let deleted = self
            .handle
            .route()
            .del(route_to(range).build())
            .execute()
            .await;
        absent_is_fine(
            deleted.map_err(doing(format!("remove the route to {range}"))),
            Errno::SRCH,
        )
    }

    /// Removes a route that the kernel told of. Does nothing when it is gone.
    pub(super) async fn delete_route(&self, route: RouteMessage) -> Result<(), NetlinkError> {
        let deleted = self.handle.route().del(route).execute().await;
        absent_is_fine(deleted.map_err(doing("remove a route")), Errno::SRCH)
    }

    /// Takes an address from a link. Does nothing when it has none such.
    pub(super) async fn delete_address(
        &self,
        index: u32,
        address: Ipv4Net,
    ) -> Result<(), NetlinkError> {
        let found = self.handle.address().get().execute();
        let of_link = found.try_filter(|message| {
            let local = IpAddr::V4(address.addr());
            let same = message.header.index == index
                && message.header.prefix_len == address.prefix_len()
                && message.attributes.contains(&AddressAttribute::Local(local));
            std::future::ready(same)
        });
        let found: Vec<_> = of_link
            .try_collect()
            .await
            .map_err(doing("list addresses"))?;
        for message in found {
            let deleted = self.handle.address().del(message).execute().await;
            let what = format!("take the address {address} from link {index}");
            absent_is_fine(deleted.map_err(doing(what)), Errno::ADDRNOTAVAIL)?;
        }
        Ok(())
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
    pub async fn unreachable_ranges(&self) -> Result<Vec<Ipv4Net>, NetlinkError> {
        let routes = self.own_routes().await?;
        let unreachable = routes
            .iter()
            .filter(|route| route.header.kind == RouteType::Unreachable);
        Ok(unreachable.filter_map(messages::destination).collect())
    }

    /// Our routes to single addresses, with the links that they lead out of.
    pub async fn host_routes(&self) -> Result<Vec<(Ipv4Addr, u32)>, NetlinkError> {
        let routes = self.own_routes().await?;
        Ok(routes.iter().filter_map(messages::host_route).collect())
    }

    /// Every route that is ours.
    pub(super) async fn own_routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let dump = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes: Vec<_> = self
            .handle
            .route()
            .get(dump)
            .execute()
            .try_collect()
            .await
            .map_err(doing("list routes"))?;
        routes.retain(|route| route.header.protocol == ROUTE_PROTOCOL);
        Ok(routes)
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

fn route_to(range: Ipv4Net) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(ROUTE_PROTOCOL)
        .destination_prefix(range.network(), range.prefix_len())
}

fn absent_is_fine(result: Result<(), NetlinkError>, absent: Errno) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Some(absent) => Ok(()),
        other => other,
    }
}
