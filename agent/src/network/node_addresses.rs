//! At which addresses of this node node ports are answered: which they are is pure, keeping the map so is level-triggered.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use agent_ebpf::abi::Address;
use ipnet::IpNet;
use tracing::{info, warn};

use super::addresses::is_pods_link;
use super::monitor::Monitor;
use super::netlink::{Link, LinkAddress, Netlink, NetlinkError};
use crate::chain::chain;
use crate::cluster::{Change, Changes, Cluster, Name, Node};
use crate::dataplane::{MapError, Maps};

/// A pass without a change, should one have gone unheard.
const RESYNC: Duration = Duration::from_secs(60);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// What `--nodeport-addresses` may list. A node port is answered at the node's addresses that any of them names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The addresses of the Node object.
    Primary,
    Within(IpNet),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            range => match range.parse() {
                Ok(range) => Ok(Self::Within(range)),
                Err(_) => Err(format!("{text:?} is neither a CIDR nor primary")),
            },
        }
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The addresses of `links` at which others reach this node, as far as `wanted` names them; all with an empty list. Pods'
/// addresses, the pods' gateway on `lo` among them, are none of the node's.
fn select(
    links: &[Link],
    addresses: &[LinkAddress],
    wanted: &[NodePortAddresses],
    own: &Node,
) -> BTreeSet<IpAddr> {
    let foreign = |it: &LinkAddress| {
        let mut links = links.iter();
        let of_pod = links.any(|link| link.index == it.link && is_pods_link(&link.name));
        of_pod
            || own
                .pod_cidrs
                .iter()
                .any(|range| range.contains(&it.address))
    };
    let named = |ip: &IpAddr| {
        let is_in = |wanted: &NodePortAddresses| match wanted {
            NodePortAddresses::Primary => own.internal_ips.contains(ip),
            NodePortAddresses::Within(range) => range.contains(ip),
        };
        wanted.is_empty() || wanted.iter().any(is_in)
    };
    let addresses = addresses.iter();
    addresses
        .filter(|it| it.is_global && !foreign(it))
        .map(|it| it.address)
        .filter(named)
        .collect()
}

/// The pods' ranges that nobody else may send from: those that are apart from the networks of the node's own addresses. One
/// that is not is refused to pods; in it may be the API server.
fn closed_to_others(ranges: &[IpNet], node_ips: &[IpAddr], networks: &[IpNet]) -> Vec<IpNet> {
    let networks: Vec<IpNet> = networks
        .iter()
        .filter(|it| node_ips.contains(&it.addr()))
        .map(IpNet::trunc)
        .collect();
    let is_apart = |range: &&IpNet| {
        let mut networks = networks.iter();
        !networks.any(|it| it.contains(*range) || range.contains(it))
    };
    ranges.iter().filter(is_apart).copied().collect()
}

/// Keeps the map of `maps` until the process ends. It stays then. `node_ips` are the node's own, also while its object does
/// not say them.
pub async fn run(
    cluster: Cluster,
    own: Name,
    node_ips: Vec<IpAddr>,
    wanted: Vec<NodePortAddresses>,
    mut maps: Maps,
) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    let mut monitor = Monitor::open()?;
    let mut changes = cluster.subscribe();
    loop {
        let pause = match pass(&netlink, &cluster, &own, &node_ips, &wanted, &mut maps).await {
            Ok(()) => RESYNC,
            Err(error) => {
                let error = chain(&error);
                warn!(
                    error,
                    "the addresses for node ports are not up to date; trying again"
                );
                RETRY
            }
        };
        // Each arm may be dropped: a change stays pending until it is taken, and the next pass reads everything.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = own_change(&mut changes, &own) => {}
            () = monitor.changed() => {}
        }
    }
}

async fn pass(
    netlink: &Netlink,
    cluster: &Cluster,
    own: &Name,
    node_ips: &[IpAddr],
    wanted: &[NodePortAddresses],
    maps: &mut Maps,
) -> Result<(), PassError> {
    let own = {
        let view = cluster.view();
        // Before that, the pods' gateway would look like the node's. There is no service to answer either.
        if !view.synced {
            return Ok(());
        }
        view.nodes.get(own).cloned().unwrap_or_default()
    };
    let (links, addresses) = (netlink.links().await?, netlink.link_addresses().await?);
    let networks: Vec<IpNet> = netlink
        .addresses()
        .await?
        .into_iter()
        .map(|(_, it)| it)
        .collect();
    let closed = closed_to_others(&own.pod_cidrs, node_ips, &networks);
    maps.set_pod_ranges(&closed)?;
    let all = select(&links, &addresses, &[], &own);
    cluster.update(|view| view.set_own_addresses(all));
    let selected = select(&links, &addresses, wanted, &own);
    let selected: BTreeSet<Address> = selected.into_iter().map(Address::from).collect();
    if maps.set_node_addresses(&selected)? {
        info!(addresses = ?selected, "node ports are answered at these");
    }
    Ok(())
}

/// Waits for a change of this node's object.
async fn own_change(changes: &mut Changes, own: &Name) {
    loop {
        let pending = changes.next().await;
        let concerns = |change: &Change| match change {
            Change::Node(name) => name == own,
            Change::Synced => true,
            Change::Service(_) | Change::HostPortsKnown => false,
        };
        if pending.keys().any(concerns) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            ..Link::default()
        }
    }

    fn at(link: u32, address: &str, is_global: bool) -> LinkAddress {
        LinkAddress {
            link,
            address: address.parse().unwrap(),
            is_global,
        }
    }

    #[test]
    fn the_range_of_a_link_is_open_to_the_links_machines() {
        let ranges = ["10.244.1.0/24", "192.0.2.128/25", "fd00::/64"].map(|it| it.parse().unwrap());
        let networks =
            ["192.0.2.7/24", "10.244.1.1/32", "fd00::1/64"].map(|it| it.parse().unwrap());
        let closed: Vec<String> =
            closed_to_others(&ranges, &["192.0.2.7".parse().unwrap()], &networks)
                .iter()
                .map(ToString::to_string)
                .collect();
        assert_eq!(closed, ["10.244.1.0/24", "fd00::/64"]);
    }

    fn selected(wanted: &[&str]) -> Vec<String> {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "kn0123456789ab")];
        let addresses = [
            at(1, "127.0.0.1", false),
            at(1, "::1", false),
            at(1, "10.244.1.1", true),
            at(1, "198.51.100.7", true),
            at(2, "192.0.2.7", true),
            at(2, "2001:db8::7", true),
            at(2, "fe80::1", false),
            at(3, "203.0.113.1", true),
        ];
        let own = Node {
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            internal_ips: vec!["192.0.2.7".parse().unwrap()],
            ..Node::default()
        };
        let wanted: Vec<NodePortAddresses> = wanted.iter().map(|it| it.parse().unwrap()).collect();
        let selected = select(&links, &addresses, &wanted, &own);
        selected.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_nodes_own_global_addresses_are_answered() {
        assert_eq!(selected(&[]), ["192.0.2.7", "198.51.100.7", "2001:db8::7"]);
    }

    #[test]
    fn a_list_narrows_them() {
        assert_eq!(selected(&["primary"]), ["192.0.2.7"]);
        let both = selected(&["2001:db8::/32", "198.51.100.0/24"]);
        assert_eq!(both, ["198.51.100.7", "2001:db8::7"]);
        assert_eq!(selected(&["127.0.0.0/8"]), Vec::<String>::new());
    }

    #[test]
    fn nonsense_is_explained() {
        let error = "eth0".parse::<NodePortAddresses>().unwrap_err();
        assert_eq!(error, "\"eth0\" is neither a CIDR nor primary");
    }
}
