//! rtnetlink, narrowed to what the pod network does. Each function brings about a state, whatever was there before. Routes
//! are in [`table`].

mod table;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use futures::{TryStream, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};
use rustix::io::Errno;
use tokio::sync::Mutex;

use super::addresses::Mac;
use super::messages;
pub use super::messages::{Link, LinkAddress};
use super::namespaces::{Namespace, NamespaceError, within};

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

    /// A link went while it was being looked at.
    pub(super) fn gone(link: &str) -> Self {
        NetlinkError::new(format!("find link {link}"), Errno::NODEV.into())
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
    /// Held by who asks for a whole table: of those the kernel answers one at a time on a socket, and refuses others.
    tables: Arc<Mutex<()>>,
}

impl Netlink {
    /// Connects to the calling thread's namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError::new("open a netlink socket", source))?;
        tokio::spawn(connection);
        Ok(Netlink {
            handle,
            tables: Arc::default(),
        })
    }

    /// A whole table, of which `request` begins the answer.
    async fn table<T, S>(
        &self,
        what: &str,
        request: impl FnOnce() -> S,
    ) -> Result<Vec<T>, NetlinkError>
    where
        S: TryStream<Ok = T, Error = rtnetlink::Error>,
    {
        let _turn = self.tables.lock().await;
        request().try_collect().await.map_err(doing(what))
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
        let request = || self.handle.link().get().execute();
        let messages = self.table("list links", request).await?;
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

    /// Sets what a link is said to be for.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::default()
            .index(index)
            .alias(alias)
            .build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(doing(format!("set the alias of link {index}")))
    }

    /// Sets a link's MTU, in bytes.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(doing(format!("set the MTU of link {index} to {mtu}")))
    }

    /// Makes a VXLAN link whose packets go where their route says, and sets it up.
    pub async fn add_vxlan(
        &self,
        name: &str,
        mac: Mac,
        port: u16,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let message = LinkVxlan::new(name, 0)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .address(mac.to_vec())
            .mtu(mtu)
            .up()
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(doing(format!(
                "make the VXLAN link {name} on UDP port {port}"
            )))
    }

    /// Gives a link an address, for use at once: nobody else has it, so nobody is asked.
    pub async fn put_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .replace();
        if address.addr().is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(flags);
        }
        request
            .execute()
            .await
            .map_err(doing(format!("give link {index} the address {address}")))
    }

    /// The addresses of every link, with the links' indices and the addresses' own prefix lengths.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let messages = self.address_messages().await?;
        Ok(messages.iter().filter_map(messages::address).collect())
    }

    /// The addresses of every link, and whether they are good beyond it.
    pub async fn link_addresses(&self) -> Result<Vec<LinkAddress>, NetlinkError> {
        let messages = self.address_messages().await?;
        Ok(messages.iter().filter_map(LinkAddress::read).collect())
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        let request = || self.handle.address().get().execute();
        self.table("list addresses", request).await
    }

    /// Tells for good which hardware address `address` has behind a link, so that nothing depends on asking for it.
    pub async fn put_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(doing(format!(
                "add the neighbour {address} on link {index}"
            )))
    }

    /// The neighbours behind a link that [`Netlink::put_neighbour`] was told of.
    pub async fn neighbours(&self, index: u32) -> Result<BTreeMap<IpAddr, Vec<u8>>, NetlinkError> {
        let request = || self.handle.neighbours().get().execute();
        let messages = self.table("list neighbours", request).await?;
        let lasting = messages.iter().filter(|message| {
            message.header.ifindex == index && message.header.state == NeighbourState::Permanent
        });
        Ok(lasting.filter_map(messages::neighbour).collect())
    }

    /// Forgets a neighbour behind a link. Does nothing when it is not known.
    pub async fn delete_neighbour(&self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = self.handle.neighbours().add(index, address);
        let message = std::mem::take(message.message_mut());
        let deleted = self.handle.neighbours().del(message).execute().await;
        let what = format!("forget the neighbour {address} on link {index}");
        absent_is_fine(deleted.map_err(doing(what)), Errno::NOENT)
    }

    /// Takes an address from a link. Does nothing when it has none such.
    pub(super) async fn delete_address(
        &self,
        index: u32,
        address: IpNet,
    ) -> Result<(), NetlinkError> {
        let mut found = self.address_messages().await?;
        found.retain(|message| messages::address(message) == Some((index, address)));
        for message in found {
            let deleted = self.handle.address().del(message).execute().await;
            let what = format!("take the address {address} from link {index}");
            absent_is_fine(deleted.map_err(doing(what)), Errno::ADDRNOTAVAIL)?;
        }
        Ok(())
    }
}

fn absent_is_fine(result: Result<(), NetlinkError>, absent: Errno) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Some(absent) => Ok(()),
        other => other,
    }
}
