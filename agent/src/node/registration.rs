//! The node's object in the API: made when it is missing, adopted when it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::{info, warn};

use super::facts::Facts;
use super::status::Identity;
use crate::cluster::{Change, Cluster};
use crate::network::ranges::Ranges;

/// Until the next try when the API server does not take the node, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(7));

/// Makes or adopts the Node object; keeps trying until the API server takes it.
pub async fn register(
    client: &kube::Client,
    identity: &Identity,
    facts: &Facts,
    status: &NodeStatus,
) -> Node {
    let api = Api::all(client.clone());
    let mut pause = RETRY.0;
    loop {
        match register_once(&api, identity, facts, status).await {
            Ok(node) => return node,
            Err(error) => {
                warn!(%error, node = identity.name, "the API server does not take the node yet")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

async fn register_once(
    api: &Api<Node>,
    identity: &Identity,
    facts: &Facts,
    status: &NodeStatus,
) -> kube::Result<Node> {
    let wanted = labels(identity, facts);
    let Some(present) = api.get_opt(&identity.name).await? else {
        let node = Node {
            metadata: ObjectMeta {
                name: Some(identity.name.clone()),
                labels: Some(wanted),
                ..ObjectMeta::default()
            },
            // Otherwise the node would have no address and no capacity until the first report.
            status: Some(status.clone()),
            ..Node::default()
        };
        let made = api.create(&PostParams::default(), &node).await?;
        info!(node = identity.name, "registered the node");
        return Ok(made);
    };
    let changed = changed_labels(present.metadata.labels.as_ref(), &wanted);
    if changed.is_empty() {
        return Ok(present);
    }
    let patch = json!({"metadata": {"labels": changed}});
    api.patch(
        &identity.name,
        &PatchParams::default(),
        &Patch::Merge(patch),
    )
    .await
}

/// Waits for the node's pod ranges in the view, which the control plane allocates.
pub async fn pod_ranges(cluster: &Cluster, name: &str) -> Ranges {
    let mut changes = cluster.subscribe();
    loop {
        if let Some(ranges) = known_pod_ranges(cluster, name) {
            return ranges;
        }
        while !changes
            .next()
            .await
            .keys()
            .any(|change| matches!(change, Change::Node(node) if &**node == name))
        {}
    }
}

fn known_pod_ranges(cluster: &Cluster, name: &str) -> Option<Ranges> {
    let view = cluster.view();
    Ranges::new(view.nodes.get(name)?.pod_cidrs.iter().copied())
}

/// The labels that every node bears, and those that were asked for.
fn labels(identity: &Identity, facts: &Facts) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", identity.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", facts.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", facts.architecture),
    ];
    let own = own
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    identity.labels.clone().into_iter().chain(own).collect()
}

/// The wanted labels that are missing or different. Labels that others set stay.
fn changed_labels(
    present: Option<&BTreeMap<String, String>>,
    wanted: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let differs = |(name, value): &(&String, &String)| {
        present.and_then(|labels| labels.get(*name)) != Some(*value)
    };
    wanted
        .iter()
        .filter(differs)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Labels as the command line has them: `name=value,…`.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(LabelError(pair.to_owned())),
        })
        .collect()
}

/// A label on the command line that has no name or no `=`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no node label; write name=value, several with commas between them")]
pub struct LabelError(String);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn labels_of_others_stay_and_only_differences_are_written() {
        let present = map(&[("a", "1"), ("b", "2"), ("theirs", "x")]);
        let wanted = map(&[("a", "1"), ("b", "3"), ("c", "4")]);
        assert_eq!(
            changed_labels(Some(&present), &wanted),
            map(&[("b", "3"), ("c", "4")])
        );
        assert_eq!(changed_labels(None, &wanted), wanted);
        assert_eq!(changed_labels(Some(&wanted), &wanted), map(&[]));
    }

    #[test]
    fn the_nodes_own_labels_cannot_be_set_to_anything_else() {
        let identity = Identity {
            name: "worker-1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            labels: map(&[
                ("kubernetes.io/os", "windows"),
                ("topology.kubernetes.io/zone", "a"),
            ]),
            kubelet_port: 10250,
        };
        let facts = Facts {
            architecture: "amd64",
            ..Facts::default()
        };
        let labels = labels(&identity, &facts);
        assert_eq!(labels["kubernetes.io/os"], "linux");
        assert_eq!(labels["kubernetes.io/arch"], "amd64");
        assert_eq!(labels["kubernetes.io/hostname"], "worker-1");
        assert_eq!(labels["topology.kubernetes.io/zone"], "a");
    }

    #[test]
    fn labels_are_read_from_the_command_line() {
        assert_eq!(
            parse_labels("a=1, b.c/d=,").unwrap(),
            map(&[("a", "1"), ("b.c/d", "")])
        );
        assert_eq!(parse_labels("").unwrap(), map(&[]));
        assert_eq!(
            parse_labels("zone").unwrap_err().to_string(),
            "\"zone\" is no node label; write name=value, several with commas between them"
        );
    }

    #[tokio::test]
    async fn the_pod_ranges_are_awaited() {
        let cluster = Cluster::default();
        let waiting = {
            let cluster = cluster.clone();
            tokio::spawn(async move { pod_ranges(&cluster, "worker-1").await })
        };
        tokio::task::yield_now().await;
        for ranges in [
            vec![],
            vec![
                "fd00::/64".parse().unwrap(),
                "10.244.3.0/24".parse().unwrap(),
            ],
        ] {
            cluster.update(|view| {
                let node = crate::cluster::Node {
                    pod_cidrs: ranges,
                    internal_ips: Vec::new(),
                    zone: None,
                };
                view.nodes.insert("worker-1".into(), Arc::new(node));
                vec![Change::Node("worker-1".into())]
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(
            waiting.await.unwrap().to_string(),
            "fd00::/64 and 10.244.3.0/24"
        );
    }
}
