//! `kernelet status`.

use super::table::{age, table};
use super::{Ask, CliError};
use crate::introspection::{Peer, StatusReply, StatusRequest};

pub(super) fn run(ask: &Ask) -> Result<String, CliError> {
    ask.render(
        async |mut client| Ok(client.status(StatusRequest {}).await?.into_inner()),
        render,
    )
}

fn render(reply: &StatusReply) -> String {
    let StatusReply {
        version,
        node,
        uptime_seconds,
        components,
        features,
        peers,
    } = reply;
    let yes = |yes: bool, no: &str| if yes { "ok".to_owned() } else { no.to_owned() };
    let components = components.iter().map(|part| {
        [
            part.name.clone(),
            yes(part.healthy, "not ok"),
            part.detail.clone(),
        ]
    });
    let features = features.iter().map(|found| {
        [
            found.name.clone(),
            yes(found.available, "absent"),
            found.detail.clone(),
        ]
    });
    let mut text = format!(
        "kernelet {version} on node {node}, up {}\n\n{}\n{}",
        age(*uptime_seconds),
        table(["PART", "STATE", "DETAIL"], components),
        table(["KERNEL", "STATE", "DETAIL"], features)
    );
    if !peers.is_empty() {
        let peers = peers.iter().map(|peer| {
            let Peer {
                node,
                range,
                path,
                detail,
            } = peer;
            [node.clone(), range.clone(), path.clone(), detail.clone()]
        });
        text.push('\n');
        text.push_str(&table(["NODE", "PODS", "PATH", "DETAIL"], peers));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::{Component, Feature};

    #[test]
    fn each_part_and_feature_has_a_line() {
        let reply = StatusReply {
            version: "0.1.0".into(),
            node: "worker-1".into(),
            uptime_seconds: 61,
            components: vec![Component {
                name: "proxy".into(),
                healthy: false,
                detail: "map is full".into(),
            }],
            features: vec![Feature {
                name: "btf".into(),
                available: true,
                detail: String::new(),
            }],
            peers: vec![Peer {
                node: "worker-2".into(),
                range: "10.244.1.0/24".into(),
                path: "direct".into(),
                detail: "via 192.0.2.2".into(),
            }],
        };
        assert_eq!(
            render(&reply),
            "kernelet 0.1.0 on node worker-1, up 1m1s\n\n\
             PART    STATE    DETAIL\nproxy   not ok   map is full\n\n\
             KERNEL   STATE   DETAIL\nbtf      ok      -\n\n\
             NODE       PODS            PATH     DETAIL\nworker-2   10.244.1.0/24   direct   via 192.0.2.2\n"
        );
    }
}
