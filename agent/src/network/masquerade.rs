//! Which destinations see pods' own addresses: the cluster's, but for nodes beyond a router, and those that `--masquerade-exempt` names. To all others pods
//! speak with the node's address. What is exempt is pure, keeping the map so is level-triggered.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::sync::watch;
use tracing::{info, warn};

use super::routes::{Hop, Peers, ranges};
use crate::chain::chain;
use crate::cluster::{Change, Changes, Cluster, Name, Node, View};
use crate::dataplane::{MapError, Maps};

/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Groups are no machine's; they see who speaks.
const GROUPS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
    )),
];
/// Everybody.
const ALL: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// What is exempt for pods of the node `own`: every node's pods, the addresses of nodes that are not beyond a router, and what
/// was `told`. A router knows no pods, and may not take their addresses for anybody's.
fn wanted(view: &View, own: &str, peers: &Peers, told: &[IpNet]) -> BTreeSet<IpNet> {
    let nodes = view.nodes.iter().flat_map(|(name, node)| {
        let is_own = &**name == own;
        let addresses = node.internal_ips.iter().copied();
        let exempt = addresses.filter(move |ip| is_own || is_near(name, node, peers, ip));
        let pods = node.pod_cidrs.iter().copied();
        exempt.map(IpNet::from).chain(pods)
    });
    let told = told.iter().map(IpNet::trunc);
    nodes.chain(told).chain(GROUPS).collect()
}

/// Whether pods' packets to an address of another node pass no router, as far as that is known.
fn is_near(name: &Name, node: &Node, peers: &Peers, ip: &IpAddr) -> bool {
    let Some(hops) = peers.get(name) else {
        // One without pods is looked for by nobody.
        return ranges(node).next().is_none();
    };
    let of_family = |range: &IpNet| range.addr().is_ipv4() == ip.is_ipv4();
    let mut hops = hops.iter().filter(|(range, _)| of_family(range));
    !hops.any(|(_, hop)| matches!(hop, Ok(Hop::Tunnel(_))))
}

/// Whether it is known of each other node how it is reached.
fn are_found(view: &View, own: &str, peers: &Peers) -> bool {
    let others = view.nodes.iter().filter(|(name, _)| &***name != own);
    let mut with_pods = others.filter(|(_, node)| ranges(node).next().is_some());
    with_pods.all(|(name, _)| peers.contains_key(name))
}

/// What the map is to hold, by what it holds. While the view is not whole, nothing is taken away; and where nothing is known at
/// all, everybody is exempt: a pod's packets to another node's would else look like the node's.
fn next(
    present: &BTreeSet<IpNet>,
    wanted: BTreeSet<IpNet>,
    synced: bool,
) -> Option<BTreeSet<IpNet>> {
    let next = match synced {
        true => wanted,
        false if present.is_empty() => wanted.into_iter().chain(ALL).collect(),
        false => wanted.into_iter().chain(present.iter().copied()).collect(),
    };
    (next != *present).then_some(next)
}

/// Keeps the map of `maps` until the process ends. It stays then.
pub async fn run(
    cluster: Cluster,
    own: String,
    mut peers: watch::Receiver<Peers>,
    told: Vec<IpNet>,
    mut maps: Maps,
) {
    let mut changes = cluster.subscribe();
    loop {
        let outcome = pass(&cluster, &own, &peers.borrow_and_update(), &told, &mut maps);
        if let Err(error) = &outcome {
            let error = chain(error);
            warn!(
                error,
                "where pods have the node's address is not up to date; trying again"
            );
        }
        // Each arm may be dropped: a change stays pending until it is taken, and the next pass reads everything.
        tokio::select! {
            () = tokio::time::sleep(RETRY), if outcome.is_err() => {}
            () = node_change(&mut changes) => {}
            Ok(()) = peers.changed() => {}
        }
    }
}

fn pass(
    cluster: &Cluster,
    own: &str,
    peers: &Peers,
    told: &[IpNet],
    maps: &mut Maps,
) -> Result<(), MapError> {
    let (wanted, synced) = {
        let view = cluster.view();
        let synced = view.synced && are_found(&view, own, peers);
        (wanted(&view, own, peers, told), synced)
    };
    let present = maps.exempt()?;
    if let Some(next) = next(&present, wanted, synced) {
        maps.set_exempt(&present, &next)?;
        let ranges: Vec<String> = next.iter().map(IpNet::to_string).collect();
        info!(
            ranges = ranges.join(" "),
            "pods speak to these with their own addresses"
        );
    }
    Ok(())
}

/// Waits for a change that may matter.
async fn node_change(changes: &mut Changes) {
    loop {
        let pending = changes.next().await;
        if pending
            .keys()
            .any(|change| matches!(change, Change::Node(_) | Change::Synced))
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::routes::Tunnel;
    use super::*;

    fn set(ranges: &[&str]) -> BTreeSet<IpNet> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    #[test]
    fn nothing_is_masqueraded_before_the_cluster_is_known() {
        let first = next(&set(&[]), set(&["10.0.0.0/8"]), false).unwrap();
        assert_eq!(first, set(&["10.0.0.0/8", "0.0.0.0/0", "::/0"]));
        assert_eq!(next(&first, set(&["10.0.0.0/8"]), false), None);
        let known = next(&first, set(&["10.0.0.0/8"]), true);
        assert_eq!(known, Some(set(&["10.0.0.0/8"])));
    }

    #[test]
    fn a_view_that_is_not_whole_takes_nothing_away() {
        let present = set(&["10.244.0.0/24", "10.244.1.0/24"]);
        let partial = || set(&["10.244.1.0/24", "10.244.2.0/24"]);
        let all = set(&["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
        assert_eq!(next(&present, partial(), false), Some(all));
        assert_eq!(next(&present, partial(), true), Some(partial()));
        assert_eq!(next(&partial(), partial(), true), None);
    }

    #[test]
    fn the_clusters_own_addresses_are_exempt_but_for_nodes_beyond_a_router() {
        let mut view = View::default();
        for number in 1..=4 {
            let node = Node {
                internal_ips: vec![format!("192.0.2.{number}").parse().unwrap()],
                pod_cidrs: match number {
                    4 => Vec::new(),
                    _ => vec![format!("10.244.{number}.0/24").parse().unwrap()],
                },
                ..Node::default()
            };
            let name = format!("n{number}");
            view.nodes.insert(name.as_str().into(), Arc::new(node));
        }
        let told = ["10.9.8.7/8".parse().unwrap()];
        let mut peers = Peers::new();
        let always = [
            "10.0.0.0/8",
            "10.244.1.0/24",
            "10.244.2.0/24",
            "10.244.3.0/24",
            "192.0.2.1/32",
            "192.0.2.4/32",
            "224.0.0.0/4",
            "ff00::/8",
        ];
        assert_eq!(wanted(&view, "n1", &peers, &told), set(&always));
        assert!(!are_found(&view, "n1", &peers));
        let tunnel = Hop::Tunnel(Tunnel {
            remote: "192.0.2.3".parse().unwrap(),
            vni: 1,
            source: None,
            mtu: 1450,
        });
        let direct = Hop::Direct("192.0.2.2".parse().unwrap());
        for (name, range, hop) in [
            ("n2", "10.244.2.0/24", direct),
            ("n3", "10.244.3.0/24", tunnel),
        ] {
            peers.insert(name.into(), [(range.parse().unwrap(), Ok(hop))].into());
        }
        assert!(are_found(&view, "n1", &peers));
        let mut near = set(&always);
        near.insert("192.0.2.2/32".parse().unwrap());
        assert_eq!(wanted(&view, "n1", &peers, &told), near);
    }
}
