//! The link by which pods' packets leave the node, and what it asks of the pods.

use std::net::IpAddr;

use ipnet::IpNet;

use super::NetworkError;
use super::netlink::{Link, Netlink};
use super::pods::Settings;

/// The largest MTU of `lo`: what an uplink that is `lo` itself would pass on is cut to this.
const LARGEST_MTU: u32 = 65_535;

/// The link that has the node's primary address.
pub(super) fn uplink<'a>(
    addresses: &[(u32, IpNet)],
    links: &'a [Link],
    settings: &Settings,
) -> Result<&'a Link, NetworkError> {
    let node_ip = settings.node_ips.first().copied();
    let index = addresses
        .iter()
        .find(|(_, address)| Some(address.addr()) == node_ip)
        .map(|(index, _)| *index);
    let mut links = links.iter();
    let found = links.find(|link| Some(link.index) == index);
    found.ok_or_else(|| NetworkError::NoUplink(node_ip.unwrap_or(IpAddr::from([0; 4]))))
}

/// The uplink, when none of the networks that the node's addresses are in overlaps pods' addresses.
pub(super) async fn apart(
    netlink: &Netlink,
    links: &[Link],
    settings: &Settings,
) -> Result<Link, NetworkError> {
    let addresses = netlink.addresses().await?;
    let of_node = addresses
        .iter()
        .filter(|(_, address)| settings.node_ips.contains(&address.addr()));
    for (index, address) in of_node {
        let network = address.trunc();
        let overlaps = |range: &IpNet| range.contains(&network) || network.contains(range);
        if let Some(range) = settings.ranges.iter().find(overlaps) {
            let link = links.iter().find(|link| link.index == *index);
            let link = link.map_or_else(|| index.to_string(), |link| link.name.clone());
            return Err(NetworkError::Overlap {
                range,
                network,
                link,
            });
        }
    }
    uplink(&addresses, links, settings).cloned()
}

/// The largest packet of a pod. What was said holds until the uplink takes less.
pub(super) fn mtu(settings: &Settings, uplink: &Link) -> u32 {
    let said = settings.mtu.unwrap_or(LARGEST_MTU);
    uplink.mtu.min(LARGEST_MTU).min(said)
}
