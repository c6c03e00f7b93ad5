//! Connects pods: a veth pair each, addresses from the node's range, the node as the router.
//!
//! ```text
//!   pod netns                         node netns
//!   eth0  10.244.1.7/32  ──veth──  kn<hash of the pod's uid>        lo  10.244.1.1/32 (gateway)
//!   default via 10.244.1.1            10.244.1.7 dev kn…            uplink ── other nodes
//! ```
//!
//! The gateway answers on `lo`, so it is there whether or not a pod is. Both ends know each other's hardware address for
//! good, as it follows from the pod's IP address: nothing waits for ARP. The rest of the range is unreachable, so that a
//! packet to a pod that is gone is refused at once instead of leaving the node.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use tracing::{info, warn};

use super::addresses::{AddressPool, gateway, host_mac, pod_mac, recorded_address, veth_name};
use super::monitor::Monitor;
use super::netlink::{Link, Netlink, NetlinkError, VethPair};
use super::{NetworkError, PodNetwork};

/// Name of the pod's end.
const POD_LINK: &str = "eth0";
/// A pass without a change, should one have gone unheard.
const RESYNC: Duration = Duration::from_secs(60);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);
/// The largest MTU of `lo`: what an uplink that is `lo` itself would pass on is cut to this.
const LARGEST_MTU: u32 = 65_535;

/// The pod network of this node, which is the network namespace that the agent runs in.
#[derive(Debug)]
pub struct VethNetwork {
    netlink: Netlink,
    pool: Mutex<AddressPool>,
    /// Of the uplink, in bytes.
    mtu: u32,
}

impl VethNetwork {
    /// Makes the node a router for the pods of `range` and adopts the pods that are connected already. `node_ip` says
    /// which link is the uplink. Safe to repeat; nothing that works is interrupted.
    pub async fn set_up(range: Ipv4Net, node_ip: Ipv4Addr) -> Result<Self, NetworkError> {
        let netlink = Netlink::open()?;
        let uplink = uplink(&netlink, node_ip).await?;
        let loopback = existing(&netlink, "lo").await?;
        netlink.set_up(loopback.index).await?;
        netlink
            .put_address(loopback.index, gateway(range).into())
            .await?;
        netlink.put_unreachable(range).await?;
        sysctl("net/ipv4/ip_forward", "1")?;
        refuse_at_once()?;

        let links = netlink.links().await?;
        let owners = links.into_iter().filter_map(|link| {
            let address = recorded_address(&link.name, &link.mac)?;
            Some((link.name, address))
        });
        let pool = Mutex::new(AddressPool::new(range, owners));
        Ok(VethNetwork {
            netlink,
            pool,
            mtu: uplink.mtu.min(LARGEST_MTU),
        })
    }

    /// The address that pods reach their node at; cluster DNS answers there.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.pool().range())
    }

    /// Puts back what is missing on the node: the gateway's address, the refusal of addresses without a pod, and the route to
    /// each pod whose link is up. Who changes the node's addresses or flushes its routes takes these along.
    pub async fn restore(&self) -> Result<(), NetworkError> {
        let range = self.pool().range();
        let gateway = self.gateway();
        let loopback = existing(&self.netlink, "lo").await?;
        let addresses = self.netlink.addresses().await?;
        // Putting what is there already would be a change, and wake whoever waits for one.
        if !addresses.contains(&(loopback.index, gateway.into())) {
            info!(%gateway, "putting the pods' gateway back");
            let address = Ipv4Net::from(gateway);
            self.netlink.put_address(loopback.index, address).await?;
        }
        if !self.netlink.unreachable_ranges().await?.contains(&range) {
            info!(%range, "making the range without pods unreachable again");
            self.netlink.put_unreachable(range).await?;
        }
        let routes = self.netlink.host_routes().await?;
        for link in self.netlink.links().await? {
            let Some(address) = recorded_address(&link.name, &link.mac) else {
                continue;
            };
            if !link.up || routes.contains(&(address, link.index)) {
                continue;
            }
            info!(%address, "putting the route to a pod back");
            if let Err(error) = self.configure_host(&link, address).await
                // Its pod went meanwhile.
                && self.netlink.link(&link.name).await?.is_some()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn pool(&self) -> MutexGuard<'_, AddressPool> {
        // Every change of the pool is one call that cannot panic half-way, so its state is sound even then.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the pod's link or makes it.
    async fn veth(
        &self,
        name: &str,
        address: Ipv4Addr,
        netns: &Path,
        inside: &Netlink,
    ) -> Result<Link, NetworkError> {
        if let Some(link) = self.netlink.link(name).await? {
            let peer = inside.link(POD_LINK).await?;
            if link.mac == host_mac(address)
                && peer.is_some_and(|peer| peer.mac == pod_mac(address))
            {
                return Ok(link);
            }
            // It leads to a namespace that the pod no longer uses.
            self.netlink.delete_link(name).await?;
        }
        let file = File::open(netns).map_err(|source| NetworkError::OpenNetns {
            path: netns.to_owned(),
            source,
        })?;
        let pair = VethPair {
            host_name: name,
            host_mac: host_mac(address),
            pod_name: POD_LINK,
            pod_mac: pod_mac(address),
            pod_netns: file.as_fd(),
            mtu: self.mtu,
        };
        self.netlink.add_veth(pair).await?;
        existing(&self.netlink, name).await
    }

    /// Everything inside the pod's namespace.
    async fn configure_pod(&self, inside: &Netlink, address: Ipv4Addr) -> Result<(), NetworkError> {
        let loopback = existing(inside, "lo").await?;
        inside.set_up(loopback.index).await?;
        let link = existing(inside, POD_LINK).await?;
        inside.put_address(link.index, address.into()).await?;
        inside.set_up(link.index).await?;
        inside
            .put_neighbour(link.index, self.gateway(), host_mac(address))
            .await?;
        inside.put_default_route(self.gateway(), link.index).await?;
        Ok(())
    }

    /// Everything on the node.
    async fn configure_host(&self, link: &Link, address: Ipv4Addr) -> Result<(), NetworkError> {
        // Strict: what comes from the pod must have the pod's source address. All that it sends is checked, as the
        // route back to any other address does not lead over this link.
        sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name), "1")?;
        self.netlink.set_up(link.index).await?;
        self.netlink
            .put_neighbour(link.index, address, pod_mac(address))
            .await?;
        self.netlink
            .put_host_route(address, link.index, self.gateway())
            .await?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl PodNetwork for VethNetwork {
    async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let name = veth_name(pod_uid);
        let inside = Netlink::open_in(netns).await??;
        let address = {
            let mut pool = self.pool();
            pool.take(&name)
                .ok_or(NetworkError::NoFreeAddress(pool.range().into()))?
        };
        let link = self.veth(&name, address, netns, &inside).await?;
        // The pod's side first: when the route to it appears, the pod can answer.
        self.configure_pod(&inside, address).await?;
        self.configure_host(&link, address).await?;
        Ok(vec![address.into()])
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let name = veth_name(pod_uid);
        self.netlink.delete_link(&name).await?;
        self.pool().release(&name);
        Ok(())
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

/// The pod range that an earlier agent set up, for a start without the API server. The kernel remembers it, as the route that
/// makes the rest of the range unreachable; `None` on a node that is new, or was given a second range since.
pub async fn adopted_range() -> Result<Option<Ipv4Net>, NetworkError> {
    let ranges = Netlink::open()?.unreachable_ranges().await?;
    Ok(match ranges[..] {
        [range] => Some(range),
        _ => None,
    })
}

/// The link that has the node's address.
async fn uplink(netlink: &Netlink, node_ip: Ipv4Addr) -> Result<Link, NetworkError> {
    let addresses = netlink.addresses().await?;
    let index = addresses
        .iter()
        .find(|(_, address)| address.addr() == node_ip)
        .map(|(index, _)| *index);
    let links = netlink.links().await?;
    links
        .into_iter()
        .find(|link| Some(link.index) == index)
        .ok_or(NetworkError::NoUplink(node_ip))
}

async fn existing(netlink: &Netlink, name: &str) -> Result<Link, NetworkError> {
    netlink
        .link(name)
        .await?
        .ok_or_else(|| NetworkError::LinkGone(name.to_owned()))
}

/// Exempts "destination unreachable" from the kernel's rate limit, which is one a second for each address. Pods are to hear
/// of every packet that goes nowhere: to a pod that is gone, or to the DNS port while the agent restarts, where their
/// resolvers otherwise wait for seconds before they ask the next server.
fn refuse_at_once() -> Result<(), NetworkError> {
    const NAME: &str = "net/ipv4/icmp_ratemask";
    /// `ICMP_DEST_UNREACH`
    const DESTINATION_UNREACHABLE: u32 = 3;
    let present = fs::read_to_string(Path::new("/proc/sys").join(NAME)).unwrap_or_default();
    match present.trim().parse::<u32>() {
        Ok(mask) => sysctl(NAME, &(mask & !(1 << DESTINATION_UNREACHABLE)).to_string()),
        // A kernel without the setting has no limit to lift.
        Err(_) => Ok(()),
    }
}

/// Writes a kernel setting below /proc/sys, unless it has the value: then a read-only /proc/sys is good enough.
fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl {
        path,
        value: value.to_owned(),
        source,
    })
}
