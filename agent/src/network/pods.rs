//! Connects pods: a veth pair each, addresses from the node's range, the node as the router.
//!
//! ```text
//!   pod netns                         node netns
//!   eth0  10.244.1.7/32  ──veth──  kn<hash of the pod's uid>        lo  10.244.1.1/32 (gateway)
//!   default via 10.244.1.1            10.244.1.7 dev kn…            uplink ── other nodes
//! ```
//!
//! With a range of IPv6 there is all of this in IPv6, too. Its gateway is an address of the range as well, not a link-local
//! one: it is where pods, those of other nodes included, find cluster DNS, and what they see the node speak from.
//!
//! The gateway answers on `lo`, so it is there whether or not a pod is. Both ends know each other's hardware address for
//! good, as it follows from the pod's IP address: nothing waits for ARP or neighbour discovery, nor for the detection of
//! duplicates. The rest of the range is unreachable, so that a packet to a pod that is gone is refused at once instead of
//! leaving the node.
//!
//! Pods' packets may be as large as those of the node's uplink. Where a tunnel takes less, its route says so, and the node
//! tells the pod: what goes directly keeps the full size.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tracing::{info, warn};

use super::addresses::{alias, host_mac, pod_mac, veth_name};
use super::monitor::Monitor;
use super::namespaces::{Namespace, within};
use super::netlink::{Link, Netlink, NetlinkError, VethPair};
use super::pool::AddressPool;
use super::ranges::{PodAddresses, Ranges};
use super::routes::LEAST_MTU_V6;
use super::uplink::{apart, mtu, uplink};
use super::{LinkGuard, NetworkError, PodNetwork, sysctl};

/// Name of the pod's end.
const POD_LINK: &str = "eth0";
/// A pass without a change, should one have gone unheard.
const RESYNC: Duration = Duration::from_secs(60);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// How the node and its pods are connected.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pods have their addresses from.
    pub ranges: Ranges,
    /// The node's addresses, the primary one first: they say which links are the uplinks.
    pub node_ips: Vec<IpAddr>,
    /// The largest packet of a pod, in bytes; the uplink's without.
    pub mtu: Option<u32>,
}

/// The pod network of this node, which is the network namespace that the agent runs in.
#[derive(Debug)]
pub struct VethNetwork {
    netlink: Netlink,
    pool: Mutex<AddressPool>,
    /// Where the pods are that were attached, by the name of their link.
    attached: Mutex<BTreeMap<String, PathBuf>>,
    /// The largest packet of a pod, when the uplink was last looked at.
    mtu: AtomicU32,
    settings: Settings,
    guard: Option<Arc<dyn LinkGuard>>,
}

impl VethNetwork {
    /// Makes the node a router for the pods of its ranges and adopts the pods that are connected already. Safe to repeat;
    /// nothing that works is interrupted.
    pub async fn set_up(settings: Settings) -> Result<Self, NetworkError> {
        let netlink = Netlink::open()?;
        let links = netlink.links().await?;
        let uplink = apart(&netlink, &links, &settings).await?;
        if let Some(said) = settings.mtu.filter(|said| *said > uplink.mtu) {
            let (link, uplink) = (uplink.name, uplink.mtu);
            return Err(NetworkError::MtuTooLarge { said, uplink, link });
        }
        let mtu = mtu(&settings, &uplink);
        let loopback = existing(&netlink, "lo").await?;
        netlink.set_up(loopback.index).await?;
        for range in settings.ranges.iter() {
            match range {
                IpNet::V4(_) => {
                    sysctl::set("net/ipv4/ip_forward", "1")?;
                    sysctl::refuse_at_once_v4()?;
                }
                IpNet::V6(_) if mtu < LEAST_MTU_V6 => return Err(NetworkError::MtuTooSmall(mtu)),
                IpNet::V6(_) => {
                    sysctl::forward_v6(&links)?;
                    sysctl::refuse_at_once_v6()?;
                }
            }
            netlink.put_unreachable(range).await?;
        }
        for gateway in settings.ranges.gateways() {
            netlink.put_address(loopback.index, gateway.into()).await?;
        }
        let owners = links
            .into_iter()
            .filter_map(|link| Some((link.pod()?, link.name)));
        let owners = owners.map(|(addresses, name)| (name, addresses));
        let pool = Mutex::new(AddressPool::new(settings.ranges.clone(), owners));
        Ok(VethNetwork {
            netlink,
            pool,
            attached: Mutex::default(),
            mtu: AtomicU32::new(mtu),
            settings,
            guard: None,
        })
    }

    /// Has `guard` stand at every pod's link: at those that are there now, and at each new one before it is up.
    pub async fn guarded_by(mut self, guard: Arc<dyn LinkGuard>) -> Result<Self, NetworkError> {
        let mut guarded = Vec::new();
        for link in self.netlink.links().await? {
            if let Some(pod) = link.pod() {
                let addresses: Vec<IpAddr> = pod.iter().collect();
                guard.guard(link.index, &link.name, &addresses)?;
                guarded.push(link.index);
            }
        }
        guard.keep_only(&guarded)?;
        self.guard = Some(guard);
        Ok(self)
    }

    /// The addresses that pods reach their node at; cluster DNS answers there.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.settings.ranges.gateways()
    }

    /// Hears what the API says the node's ranges are, where the network was set up with what the kernel remembered: that
    /// does not tell which is the primary one. Other ranges are for another start.
    pub fn confirm(&self, ranges: Ranges) {
        let present = &self.settings.ranges;
        if !present.same(&ranges) {
            warn!(%present, said = %ranges, "the node has other pod ranges now; they hold when the agent starts again");
        }
        self.pool().reorder(ranges);
    }

    /// Puts back what is missing on the node: the gateways' addresses, the refusal of addresses without a pod, and the
    /// routes to each pod whose link is up. Who changes the node's addresses or flushes its routes takes these along.
    /// Follows the uplink's MTU.
    pub async fn restore(&self) -> Result<(), NetworkError> {
        if let Some(guard) = &self.guard {
            guard.sweep()?;
        }
        let ranges = &self.settings.ranges;
        let loopback = existing(&self.netlink, "lo").await?;
        let addresses = self.netlink.addresses().await?;
        for gateway in ranges.gateways() {
            // Putting what is there already would be a change, and wake whoever waits for one.
            if !addresses.contains(&(loopback.index, gateway.into())) {
                info!(%gateway, "putting the pods' gateway back");
                let address = IpNet::from(gateway);
                self.netlink.put_address(loopback.index, address).await?;
            }
        }
        let unreachable = self.netlink.unreachable_ranges().await?;
        for range in ranges.iter().filter(|range| !unreachable.contains(range)) {
            info!(%range, "making the range without pods unreachable again");
            self.netlink.put_unreachable(range).await?;
        }
        let routes = self.netlink.host_routes().await?;
        let links = self.netlink.links().await?;
        let uplink = uplink(&addresses, &links, &self.settings)?;
        let mtu = mtu(&self.settings, uplink);
        self.mtu.store(mtu, Ordering::Relaxed);
        for link in &links {
            let Some(pod) = link.pod() else {
                continue;
            };
            if link.up && link.mtu != mtu {
                self.resize(link, mtu).await?;
            }
            let mut addresses = self.routed(&pod).into_iter();
            if !link.up || addresses.all(|(address, _)| routes.contains(&(address, link.index))) {
                continue;
            }
            info!(%pod, "putting the route to a pod back");
            if let Err(error) = self.configure_host(link, &pod).await
                // Its pod went meanwhile.
                && self.netlink.link(&link.name).await?.is_some()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives both ends of a pod's link another MTU. A pod that was not attached yet is resized then.
    async fn resize(&self, link: &Link, mtu: u32) -> Result<(), NetworkError> {
        let Some(netns) = self.attached().get(&link.name).cloned() else {
            return Ok(());
        };
        // Its pod may be going.
        let Ok(inside) = Netlink::open_in(&netns).await else {
            return Ok(());
        };
        let inside = inside?;
        if let Some(peer) = inside.link(POD_LINK).await? {
            info!(link = link.name, mtu, "following the uplink's MTU");
            inside.set_mtu(peer.index, mtu).await?;
            self.netlink.set_mtu(link.index, mtu).await?;
        }
        Ok(())
    }

    /// Before a link goes.
    fn withdraw(&self, link: &Link) -> Result<(), NetworkError> {
        match &self.guard {
            Some(guard) => guard.withdraw(link.index),
            None => Ok(()),
        }
    }

    fn attached(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> MutexGuard<'_, AddressPool> {
        // Every change of the pool is one call that cannot panic half-way, so its state is sound even then.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's link, when it is there as it should be; one that is not is removed.
    async fn adopt(
        &self,
        name: &str,
        inside: &Netlink,
    ) -> Result<Option<(Link, PodAddresses)>, NetworkError> {
        let Some(link) = self.netlink.link(name).await? else {
            return Ok(None);
        };
        let pod = link.pod().unwrap_or_default();
        // One that is up was made whole, by ranges that the node may not have any more.
        let complete = link.up || pod.iter().count() == self.settings.ranges.iter().count();
        let peer = inside.link(POD_LINK).await?;
        if complete && peer.is_some_and(|peer| peer.mac == pod_mac(&pod)) {
            return Ok(Some((link, pod)));
        }
        // It leads to a namespace that the pod no longer uses, or was not finished.
        self.withdraw(&link)?;
        self.netlink.delete_link(name).await?;
        if !complete {
            self.pool().release(name);
        }
        Ok(None)
    }

    /// Makes the pod's link.
    async fn make(
        &self,
        name: &str,
        addresses: &PodAddresses,
        netns: &Path,
    ) -> Result<Link, NetworkError> {
        let file = File::open(netns).map_err(|source| NetworkError::OpenNetns {
            path: netns.to_owned(),
            source,
        })?;
        // Should it be another by now, the next pass of `restore` follows it.
        let pair = VethPair {
            host_name: name,
            host_mac: host_mac(addresses),
            pod_name: POD_LINK,
            pod_mac: pod_mac(addresses),
            pod_netns: file.as_fd(),
            mtu: self.mtu.load(Ordering::Relaxed),
        };
        self.netlink.add_veth(pair).await?;
        let link = existing(&self.netlink, name).await?;
        if let Some(alias) = alias(addresses) {
            self.netlink.set_alias(link.index, &alias).await?;
        }
        Ok(link)
    }

    /// Everything inside the pod's namespace.
    async fn configure_pod(
        &self,
        inside: &Netlink,
        netns: &Path,
        addresses: &PodAddresses,
    ) -> Result<(), NetworkError> {
        let loopback = existing(inside, "lo").await?;
        inside.set_up(loopback.index).await?;
        let link = existing(inside, POD_LINK).await?;
        if addresses.v6.is_some() {
            // Its address and its router are told by us alone, and by nobody who reaches the link.
            within(Namespace::Net, netns, || {
                sysctl::set("net/ipv6/conf/eth0/disable_ipv6", "0")?;
                sysctl::set("net/ipv6/conf/eth0/accept_ra", "0")
            })??;
        }
        for address in addresses.iter() {
            inside.put_address(link.index, address.into()).await?;
        }
        inside.set_up(link.index).await?;
        for (_, gateway) in self.routed(addresses) {
            inside
                .put_neighbour(link.index, gateway, host_mac(addresses))
                .await?;
            inside.put_default_route(gateway, link.index).await?;
        }
        Ok(())
    }

    /// Everything on the node.
    async fn configure_host(
        &self,
        link: &Link,
        addresses: &PodAddresses,
    ) -> Result<(), NetworkError> {
        if addresses.v4.is_some() {
            // Strict: what comes from the pod must have the pod's source address. All that it sends is checked, as the
            // route back to any other address does not lead over this link. IPv6 has no such setting, only the guard.
            sysctl::set(&format!("net/ipv4/conf/{}/rp_filter", link.name), "1")?;
        }
        if addresses.v6.is_some() {
            sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", link.name), "0")?;
        }
        if let Some(guard) = &self.guard {
            let all: Vec<IpAddr> = addresses.iter().collect();
            guard.guard(link.index, &link.name, &all)?;
        }
        self.netlink.set_up(link.index).await?;
        for (address, gateway) in self.routed(addresses) {
            self.netlink
                .put_neighbour(link.index, address, pod_mac(addresses))
                .await?;
            self.netlink
                .put_host_route(address, link.index, gateway)
                .await?;
        }
        Ok(())
    }

    /// A pod's addresses with the node's gateways for them. One of a family that the node has no range of any more is left
    /// as it is.
    fn routed(&self, addresses: &PodAddresses) -> Vec<(IpAddr, IpAddr)> {
        let ranges = &self.settings.ranges;
        let pair = |address| Some((address, ranges.gateway_for(address)?));
        addresses.iter().filter_map(pair).collect()
    }
}

#[async_trait::async_trait]
impl PodNetwork for VethNetwork {
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let name = veth_name(pod_uid);
        let inside = Netlink::open_in(netns).await??;
        let (link, addresses) = match self.adopt(&name, &inside).await? {
            Some(adopted) => adopted,
            None => {
                let addresses = {
                    let mut pool = self.pool();
                    pool.take(&name)
                        .ok_or_else(|| NetworkError::NoFreeAddress(pool.ranges().clone()))?
                };
                (self.make(&name, &addresses, netns).await?, addresses)
            }
        };
        // The pod's side first: when the route to it appears, the pod can answer.
        self.configure_pod(&inside, netns, &addresses).await?;
        self.configure_host(&link, &addresses).await?;
        self.attached().insert(name, netns.to_owned());
        Ok(addresses.iter().collect())
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let name = veth_name(pod_uid);
        let link = self.netlink.link(&name).await?;
        if let Some(link) = &link {
            self.withdraw(link)?;
        }
        self.netlink.delete_link(&name).await?;
        self.attached().remove(&name);
        self.pool().release(&name);
        match (&self.guard, link) {
            (Some(guard), Some(link)) => guard.forget(link.index),
            _ => Ok(()),
        }
    }
}

/// Keeps what the pods need on the node until the process ends. Level-triggered: each pass reads the kernel's tables.
pub async fn keep(network: Arc<VethNetwork>) -> Result<(), NetlinkError> {
    let mut monitor = Monitor::open()?;
    loop {
        let pause = match network.restore().await {
            Ok(()) => RESYNC,
            Err(error) => {
                warn!(%error, "the pods' network is not as it should be; trying again");
                RETRY
            }
        };
        // Either arm may be dropped: the next pass reads everything.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = monitor.changed() => {}
        }
    }
}

/// The pod ranges that an earlier agent set up, for a start without the API server. The kernel remembers them, as the routes
/// that make the rest of the ranges unreachable; `None` on a node that is new, or was given other ranges since. Which one
/// is the primary, its pods know.
pub async fn adopted_ranges() -> Result<Option<Ranges>, NetworkError> {
    let netlink = Netlink::open()?;
    let mut ranges = netlink.unreachable_ranges().await?;
    let links = netlink.links().await?;
    let v6_first = links.iter().filter_map(Link::pod).any(|pod| pod.v6_first);
    ranges.sort_by_key(|range| range.addr().is_ipv6() != v6_first);
    let count = ranges.len();
    Ok(Ranges::new(ranges).filter(|ranges| ranges.iter().count() == count))
}

async fn existing(netlink: &Netlink, name: &str) -> Result<Link, NetworkError> {
    netlink
        .link(name)
        .await?
        .ok_or_else(|| NetworkError::LinkGone(name.to_owned()))
}
