//! Which backends' nodes can be handed a service's packets, to answer clients themselves: those that share a link with this
//! one. Which they are is pure, keeping the map so is level-triggered.

use std::collections::BTreeSet;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::warn;

use super::routes::{Hop, Peers};
use crate::chain::chain;
use crate::dataplane::Maps;

/// Until the next try after one that failed.
const RETRY: std::time::Duration = std::time::Duration::from_secs(2);

/// The pods of nodes that are reached directly, and what those nodes themselves are reached by.
fn wanted(peers: &Peers) -> BTreeSet<IpNet> {
    let hops = peers.values().flatten();
    let direct = hops.filter_map(|(range, hop)| match hop {
        Ok(Hop::Direct(node)) => Some([*range, IpNet::from(*node)]),
        _ => None,
    });
    direct.flatten().collect()
}

/// Keeps the map of `maps` until the process ends, by how the nodes are reached. It stays then, and until that is known.
pub async fn run(mut peers: watch::Receiver<Peers>, mut maps: Maps) {
    let mut is_late = false;
    loop {
        // Either arm may be dropped: the next pass reads all.
        tokio::select! {
            () = tokio::time::sleep(RETRY), if is_late => {}
            changed = peers.changed() => if changed.is_err() {
                // Nothing more will be told.
                return std::future::pending().await;
            }
        }
        let wanted = wanted(&peers.borrow_and_update());
        let outcome = maps.set_near(&wanted);
        is_late = outcome.is_err();
        if let Err(error) = outcome {
            let error = chain(&error);
            warn!(
                error,
                "which nodes answer clients themselves is not up to date; trying again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::{Refusal, Tunnel};
    use super::*;

    #[test]
    fn nodes_that_are_reached_directly_are_near() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let tunnel = Tunnel {
            remote: "198.51.100.3".parse().unwrap(),
            vni: 1,
            source: None,
            mtu: 1450,
        };
        let direct = Hop::Direct("192.0.2.2".parse().unwrap());
        let peers: Peers = [
            ("a".into(), [(net("10.244.2.0/24"), Ok(direct))].into()),
            (
                "b".into(),
                [(net("10.244.3.0/24"), Ok(Hop::Tunnel(tunnel)))].into(),
            ),
            (
                "c".into(),
                [(net("10.244.4.0/24"), Err(Refusal::NoAddress))].into(),
            ),
        ]
        .into();
        let near = ["10.244.2.0/24", "192.0.2.2/32"].map(net);
        assert_eq!(wanted(&peers), near.into());
    }
}
