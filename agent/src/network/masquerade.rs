//! Which destinations see pods' own addresses: the cluster's, and those that `--masquerade-exempt` names. To all others pods
//! speak with the node's address. What is exempt is pure, keeping the map so is level-triggered.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::{info, warn};

use crate::chain::chain;
use crate::cluster::{Change, Changes, Cluster, View};
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

/// What is exempt: every node's pods and addresses, and what was `told`.
fn wanted(view: &View, told: &[IpNet]) -> BTreeSet<IpNet> {
    let nodes = view.nodes.values().flat_map(|node| {
        let addresses = node.internal_ips.iter().copied().map(IpNet::from);
        let pods = node.pod_cidrs.iter().copied();
        addresses.chain(pods)
    });
    let told = told.iter().map(IpNet::trunc);
    nodes.chain(told).chain(GROUPS).collect()
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
pub async fn run(cluster: Cluster, told: Vec<IpNet>, mut maps: Maps) {
    let mut changes = cluster.subscribe();
    loop {
        let outcome = pass(&cluster, &told, &mut maps);
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
        }
    }
}

fn pass(cluster: &Cluster, told: &[IpNet], maps: &mut Maps) -> Result<(), MapError> {
    let (wanted, synced) = {
        let view = cluster.view();
        (wanted(&view, told), view.synced)
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
    fn the_clusters_own_addresses_are_exempt() {
        let mut view = View::default();
        let node = crate::cluster::Node {
            internal_ips: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            ..Default::default()
        };
        view.nodes.insert("n1".into(), std::sync::Arc::new(node));
        let told = ["10.9.8.7/8".parse().unwrap()];
        let expected = [
            "10.0.0.0/8",
            "10.244.1.0/24",
            "192.0.2.1/32",
            "224.0.0.0/4",
            "ff00::/8",
        ];
        assert_eq!(wanted(&view, &told), set(&expected));
    }
}
