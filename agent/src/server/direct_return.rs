//! Of services whose backends' nodes answer clients themselves: which backends are reached through this node all the same, and
//! why. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::introspection::{Indirect, ServiceDetail};
use crate::network::routes::{Hop, Peers};

/// Says so in `port`. `peers` is how the other nodes' pods are reached, where this agent knows it.
pub(super) fn explain(port: &mut ServiceDetail, peers: Option<&Peers>) {
    let asks = |it: &crate::introspection::Service| it.direct_return && it.outside;
    let Some(service) = port.service.as_mut().filter(|it| asks(it)) else {
        return;
    };
    let remote = port.backends.iter().filter(|backend| !backend.local);
    let indirect = remote.filter_map(|backend| {
        Some(Indirect {
            address: backend.address.clone(),
            reason: reason(&backend.address, peers)?,
        })
    });
    service.indirect = indirect.collect();
}

/// Why the node of the backend at `address` is not handed packets.
fn reason(address: &str, peers: Option<&Peers>) -> Option<String> {
    let Some(peers) = peers else {
        return Some("this agent does not route between nodes".to_owned());
    };
    let ip: IpAddr = address.parse::<SocketAddr>().ok()?.ip();
    let ranges = peers.iter().flat_map(|(node, ranges)| {
        let hops = ranges.iter();
        hops.map(move |(range, hop)| (node, range, hop))
    });
    let mut reason = Some("it is no pod of a node that shares a link with this one".to_owned());
    for (node, range, hop) in ranges {
        match hop {
            Ok(Hop::Direct(next)) if *next == ip || range.contains(&ip) => return None,
            Ok(Hop::Tunnel(_)) if range.contains(&ip) => {
                reason = Some(format!("node {node} shares no link with this one"));
            }
            Err(why) if range.contains(&ip) => reason = Some(format!("node {node}: {why}")),
            _ => {}
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::{Backend, Service};
    use crate::network::routes::Tunnel;

    fn backend(address: &str, local: bool) -> Backend {
        Backend {
            address: address.to_owned(),
            local,
            ..Backend::default()
        }
    }

    fn explained(kind: &str, peers: Option<&Peers>) -> Vec<(String, String)> {
        let service = Service {
            kind: kind.to_owned(),
            outside: true,
            direct_return: true,
            ..Service::default()
        };
        let mut port = ServiceDetail {
            service: Some(service),
            backends: vec![
                backend("10.244.1.7:80", true),
                backend("10.244.2.7:80", false),
                backend("10.244.3.7:80", false),
                backend("192.0.2.2:80", false),
                backend("198.51.100.9:80", false),
            ],
            ..ServiceDetail::default()
        };
        explain(&mut port, peers);
        let indirect = port.service.unwrap().indirect.into_iter();
        indirect.map(|it| (it.address, it.reason)).collect()
    }

    #[test]
    fn only_nodes_that_share_a_link_answer_themselves() {
        let tunnel = Tunnel {
            remote: "198.51.100.3".parse().unwrap(),
            vni: 1,
            source: None,
            mtu: 1450,
        };
        let direct = Hop::Direct("192.0.2.2".parse().unwrap());
        let peers: Peers = [
            (
                "a".into(),
                [("10.244.2.0/24".parse().unwrap(), Ok(direct))].into(),
            ),
            (
                "b".into(),
                [("10.244.3.0/24".parse().unwrap(), Ok(Hop::Tunnel(tunnel)))].into(),
            ),
        ]
        .into();
        let expected = [
            ("10.244.3.7:80", "node b shares no link with this one"),
            (
                "198.51.100.9:80",
                "it is no pod of a node that shares a link with this one",
            ),
        ];
        let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(explained("LoadBalancer", Some(&peers)), expected);
        assert_eq!(explained("NodePort", Some(&peers)), expected);
        let alone = explained("ExternalIP", None);
        assert!(alone.iter().all(|(_, why)| why.contains("does not route")));
    }
}
