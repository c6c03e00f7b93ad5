//! The links on which addresses can be announced. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::network::addresses::{Mac, is_pods_link};
use crate::network::netlink::Link;

/// A link to which other machines are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    pub name: String,
    pub mac: Mac,
    /// The networks of its own addresses.
    pub networks: Vec<IpNet>,
}

/// The links with a hardware address that are up, are no pod's, and have addresses in a network of several.
pub(super) fn uplinks(links: &[Link], addresses: &[(u32, IpNet)]) -> Vec<Uplink> {
    let links = links
        .iter()
        .filter(|link| link.up && !is_pods_link(&link.name));
    let uplinks = links.filter_map(|link| {
        let mac = Mac::try_from(&*link.mac)
            .ok()
            .filter(|mac| *mac != [0; 6])?;
        let networks: Vec<IpNet> = addresses
            .iter()
            .filter(|(index, network)| *index == link.index && is_shared(network))
            .map(|(_, network)| network.trunc())
            .collect();
        (!networks.is_empty()).then(|| Uplink {
            index: link.index,
            name: link.name.clone(),
            mac,
            networks,
        })
    });
    uplinks.collect()
}

fn is_shared(network: &IpNet) -> bool {
    let link_local = match network.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    network.prefix_len() < network.max_prefix_len() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_loopback_are_no_uplinks() {
        let link = |index, name: &str, mac: &[u8]| Link {
            index,
            name: name.into(),
            mac: mac.to_vec(),
            mtu: 1500,
            up: index != 4,
            ..Link::default()
        };
        let links = [
            link(1, "lo", &[0; 6]),
            link(2, "eth0", &[2, 0, 0, 0, 0, 1]),
            link(3, "kn0123456789ab", &[2, 0x6b, 10, 244, 0, 2]),
            link(4, "eth1", &[2, 0, 0, 0, 0, 2]),
            link(5, "tun0", &[]),
        ];
        let addresses = [
            (1, "127.0.0.1/8"),
            (2, "192.0.2.7/24"),
            (2, "192.0.2.8/32"),
            (2, "fe80::1/64"),
            (2, "2001:db8::7/64"),
            (3, "10.244.0.1/24"),
            (4, "198.51.100.1/24"),
            (5, "203.0.113.1/24"),
        ]
        .map(|(index, text)| (index, text.parse().unwrap()));
        let found = uplinks(&links, &addresses);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "eth0");
        let networks = ["192.0.2.0/24", "2001:db8::/64"].map(|text| text.parse().unwrap());
        assert_eq!(found[0].networks, networks);
    }
}
