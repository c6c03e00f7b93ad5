//! The VXLAN link to nodes beyond routers.
//!
//! One link serves all of them: to which node a packet goes, its route says (`encap ip … dst NODE via GATEWAY dev
//! kn-vxlan`). There is no forwarding database, nothing is learnt, and nothing is sent to many. A node's end has a hardware
//! address that follows from the node's name, so the others know it without asking; each has the far gateways of its
//! routes as neighbours for good.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sha2::{Digest, Sha256};
use tracing::info;

use super::addresses::Mac;
use super::netlink::{Link, Netlink, NetlinkError};
use super::ranges::gateway;
use super::routes::{Hop, Peers};

/// Name of the link.
pub const TUNNEL_LINK: &str = "kn-vxlan";
/// The UDP port that Linux, flannel and Cilium take for VXLAN.
pub const DEFAULT_PORT: u16 = 8472;
/// The VXLAN network identifier of nodes' packets.
pub const DEFAULT_VNI: u32 = 1;

/// Whether a link is the tunnel of an agent.
pub fn is_tunnel(link: &Link) -> bool {
    link.name == TUNNEL_LINK && link.vxlan_port.is_some()
}

/// Hardware address of a node's end. Locally administered, unicast, and no pod's. A receiver drops what seems to come from
/// itself, so no two may be alike; of so many bits they are not.
pub fn mac(node: &str) -> Mac {
    let hash = Sha256::digest(node);
    [0x0a, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

/// The neighbours that routes through the tunnel need: the far gateways, and the ends that they are behind.
pub fn neighbours(peers: &Peers) -> BTreeMap<IpAddr, Mac> {
    let of_node = peers.iter().flat_map(|(node, ranges)| {
        let through = ranges
            .iter()
            .filter(|(_, hop)| matches!(hop, Ok(Hop::Tunnel(_))));
        through.map(|(range, _)| (gateway(*range), mac(node)))
    });
    of_node.collect()
}

/// Makes the link, or brings the one that is there into this shape; gives its index. What works is not interrupted.
pub async fn ensure(
    netlink: &Netlink,
    own: &str,
    port: u16,
    mtu: u32,
) -> Result<u32, NetlinkError> {
    if let Some(link) = netlink.link(TUNNEL_LINK).await? {
        if link.vxlan_port == Some(port) && link.mac == mac(own) {
            if link.mtu != mtu {
                info!(mtu, "setting the tunnel's MTU");
                netlink.set_mtu(link.index, mtu).await?;
            }
            if !link.up {
                netlink.set_up(link.index).await?;
            }
            return Ok(link.index);
        }
        // Of another port, of a node of another name, or somebody else's under our name.
        netlink.delete_link(TUNNEL_LINK).await?;
    }
    info!(port, mtu, "making the tunnel to nodes beyond routers");
    netlink.add_vxlan(TUNNEL_LINK, mac(own), port, mtu).await?;
    let link = netlink.link(TUNNEL_LINK).await?;
    let made = link.ok_or_else(|| NetlinkError::gone(TUNNEL_LINK))?;
    Ok(made.index)
}

/// Removes the link, and with it the routes over it. Does nothing when it is gone, or is not ours.
pub async fn remove(netlink: &Netlink) -> Result<(), NetlinkError> {
    match netlink.link(TUNNEL_LINK).await? {
        Some(link) if is_tunnel(&link) => {
            info!("no node is beyond a router any more: removing the tunnel");
            netlink.delete_link(TUNNEL_LINK).await
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_a_hardware_address_of_its_own() {
        let macs: std::collections::BTreeSet<Mac> =
            (0..5000).map(|n| mac(&format!("worker-{n}"))).collect();
        assert_eq!(macs.len(), 5000);
        assert!(macs.iter().all(|mac| mac[0] & 0b11 == 0b10));
    }
}
