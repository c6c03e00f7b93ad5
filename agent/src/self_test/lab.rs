//! Network namespaces around the one that the calling thread is in, joined to it by veth pairs. All of them go with the
//! value.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Refusal;
use crate::network::namespaces::{Namespace, NamespaceError, create_pinned, remove_pinned, within};

/// `RT_TABLE_MAIN`
const MAIN_TABLE: u32 = 254;

/// Why a lab is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LabError {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("cannot configure a network of the test")]
    Network(#[from] rtnetlink::Error),
    #[error("cannot reach a network of the test")]
    Io(#[from] io::Error),
    #[error("there is no network link {0}")]
    NoLink(String),
}

/// The namespaces.
pub(crate) struct Lab {
    dir: PathBuf,
    spaces: Vec<PathBuf>,
}

/// One of them. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Space(PathBuf);

impl Lab {
    /// Names begin with `prefix` and end with the id of this process.
    pub(crate) fn new(prefix: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("{prefix}{}", std::process::id()));
        Self {
            dir,
            spaces: Vec::new(),
        }
    }

    /// Makes a namespace whose loopback is up.
    pub(crate) fn space(&mut self, name: &str) -> Result<Space, LabError> {
        let path = self.dir.join(name);
        create_pinned(Namespace::Net, &path)?;
        self.spaces.push(path.clone());
        let space = Space(path);
        space.run(no_duplicate_detection)?;
        space.configure(async |net| net.up("lo").await)?;
        Ok(space)
    }
}

/// Lets links here speak IPv6 at once. Else their link-local addresses wait for somebody who has them, too, a second or two
/// on a slow machine, and until then a link asks for no neighbour on behalf of an address that is another link's.
fn no_duplicate_detection() {
    for of in ["all", "default"] {
        // Not there without IPv6.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"), "0");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in &self.spaces {
            let _ = remove_pinned(Namespace::Net, path);
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}

impl Space {
    /// Runs `work` in the namespace, on a thread of its own.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LabError> {
        Ok(within(Namespace::Net, &self.0, work)?)
    }

    /// Changes its network.
    pub(crate) fn configure<F>(&self, work: F) -> Result<(), LabError>
    where
        F: AsyncFnOnce(&Net) -> Result<(), LabError> + Send + 'static,
    {
        self.run(move || configure(work))?
    }
}

/// Makes a namespace that stands for a pod, and gives the index of its link here. Each of its addresses comes with the one
/// here that is its gateway. The link is up when `guard` has seen it.
pub(super) fn pod(
    lab: &mut Lab,
    link: &'static str,
    addresses: &[(IpNet, IpNet)],
    guard: impl FnOnce(u32) -> Result<(), Refusal>,
) -> Result<(Space, u32), Refusal> {
    let space = lab.space(link)?;
    let there = space.clone();
    let index = configure(async |net| {
        net.veth(link, &there, "eth0").await?;
        net.index(link).await
    })
    .map_err(|error| Refusal::Skipped(format!("no veth pair: {error}")))?;
    guard(index)?;
    configure(async |net| {
        net.up(link).await?;
        for (_, here) in addresses {
            net.address(link, *here).await?;
        }
        Ok(())
    })?;
    let addresses = addresses.to_vec();
    space.configure(async move |net| -> Result<(), LabError> {
        net.up("eth0").await?;
        for (own, _) in &addresses {
            net.address("eth0", *own).await?;
        }
        for (_, here) in &addresses {
            net.gateway(here.addr()).await?;
        }
        Ok(())
    })?;
    Ok((space, index))
}

/// Changes the network of the namespace that the calling thread is in.
pub(crate) fn configure<T>(
    work: impl AsyncFnOnce(&Net) -> Result<T, LabError>,
) -> Result<T, LabError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(&Net(handle)).await
    })
}

/// A network that may be changed.
pub(crate) struct Net(Handle);

impl Net {
    /// Makes a veth pair: one end here, the other in `space`. Both are down.
    pub(crate) async fn veth(
        &self,
        here: &str,
        space: &Space,
        there: &str,
    ) -> Result<(), LabError> {
        let namespace = File::open(&space.0)?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(here)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        Ok(self.0.link().add(message).execute().await?)
    }

    /// The index of a link.
    pub(crate) async fn index(&self, link: &str) -> Result<u32, LabError> {
        Ok(self.link(link).await?.header.index)
    }

    async fn link(&self, link: &str) -> Result<LinkMessage, LabError> {
        let request = self.0.link().get().match_name(link).execute();
        let found = std::pin::pin!(request).try_next().await?;
        found.ok_or_else(|| LabError::NoLink(link.to_owned()))
    }

    /// The hardware address of a link.
    pub(crate) async fn mac(&self, link: &str) -> Result<[u8; 6], LabError> {
        let attributes = self.link(link).await?.attributes;
        let mac = attributes.iter().find_map(|it| match it {
            LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
            _ => None,
        });
        mac.ok_or_else(|| LabError::NoLink(link.to_owned()))
    }

    pub(crate) async fn up(&self, link: &str) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(link).await?).up();
        Ok(self.0.link().set(message.build()).execute().await?)
    }

    pub(crate) async fn mtu(&self, link: &str, bytes: u32) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(link).await?).mtu(bytes);
        Ok(self.0.link().set(message.build()).execute().await?)
    }

    /// Sends everything that is not on a link to `via`.
    pub(crate) async fn gateway(&self, via: IpAddr) -> Result<(), LabError> {
        let route = match via {
            IpAddr::V4(via) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).build(),
            IpAddr::V6(via) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(via).build(),
        };
        Ok(self.0.route().add(route).execute().await?)
    }

    /// Gives a link an address, which it may use at once.
    pub(crate) async fn address(&self, link: &str, address: IpNet) -> Result<(), LabError> {
        let index = self.index(link).await?;
        let (ip, length) = (address.addr(), address.prefix_len());
        let mut request = self.0.address().add(index, ip, length);
        // Else an IPv6 address waits a second for somebody who has it, too.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        Ok(request.execute().await?)
    }

    /// Says which hardware address a machine on a link has.
    #[cfg(test)]
    pub(crate) async fn neighbour(
        &self,
        link: &str,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), LabError> {
        let index = self.index(link).await?;
        let request = self.0.neighbours().add(index, address);
        Ok(request.link_layer_address(&mac).execute().await?)
    }

    /// Routes a range out of a link, by a router where one is named.
    pub(crate) async fn route(
        &self,
        range: IpNet,
        link: &str,
        via: Option<IpAddr>,
    ) -> Result<(), LabError> {
        self.route_in(MAIN_TABLE, 0, range, link, via).await
    }

    /// The same in a routing table; the route with the lowest metric comes first.
    pub(super) async fn route_in(
        &self,
        table: u32,
        metric: u32,
        range: IpNet,
        link: &str,
        via: Option<IpAddr>,
    ) -> Result<(), LabError> {
        let index = self.index(link).await?;
        let message = match range {
            IpNet::V4(range) => {
                let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .table_id(table)
                    .priority(metric)
                    .destination_prefix(range.addr(), range.prefix_len())
                    .output_interface(index);
                match via {
                    Some(IpAddr::V4(router)) => route.gateway(router).build(),
                    _ => route.build(),
                }
            }
            IpNet::V6(range) => {
                let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                    .table_id(table)
                    .priority(metric)
                    .destination_prefix(range.addr(), range.prefix_len())
                    .output_interface(index);
                match via {
                    Some(IpAddr::V6(router)) => route.gateway(router).build(),
                    _ => route.build(),
                }
            }
        };
        Ok(self.0.route().add(message).execute().await?)
    }

    /// Has what comes from an IPv6 address routed by a table.
    pub(super) async fn rule(&self, from: Ipv6Addr, table: u32) -> Result<(), LabError> {
        let rule = self.0.rule().add().v6().source_prefix(from, 128);
        let rule = rule.table_id(table).action(RuleAction::ToTable);
        Ok(rule.execute().await?)
    }
}
