//! `kernelet pod list`.

use clap::Subcommand;

use super::table::{bytes, table};
use super::{Ask, CliError};
use crate::introspection::{ListPodsReply, ListPodsRequest, Pod, PodTraffic};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the pods of this node
    List(Ask),
}

pub(super) fn run(Command::List(ask): &Command) -> Result<String, CliError> {
    ask.render(
        async |mut client| Ok(client.list_pods(ListPodsRequest {}).await?.into_inner()),
        list,
    )
}

fn list(reply: &ListPodsReply) -> String {
    let rows = reply.pods.iter().map(|pod| {
        let running = pod
            .containers
            .iter()
            .filter(|container| container.state == "running")
            .count();
        let restarts: u32 = pod
            .containers
            .iter()
            .map(|container| container.restarts)
            .sum();
        [
            pod.namespace.clone(),
            pod.name.clone(),
            if pod.ready { "yes" } else { "no" }.to_owned(),
            pod.phase.clone(),
            format!("{running}/{}", pod.containers.len()),
            restarts.to_string(),
            pod.addresses.join(","),
            passed(pod, |it| it.sent_bytes),
            passed(pod, |it| it.received_bytes),
            pod.uid.clone(),
        ]
    });
    table(
        [
            "NAMESPACE",
            "NAME",
            "READY",
            "PHASE",
            "RUNNING",
            "RESTARTS",
            "ADDRESS",
            "SENT",
            "RECEIVED",
            "UID",
        ],
        rows,
    )
}

/// Bytes that passed the pod's link.
fn passed(pod: &Pod, of: fn(&PodTraffic) -> u64) -> String {
    let traffic = pod.traffic.as_ref();
    traffic.map_or("-".to_owned(), |it| bytes(of(it)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::Container;

    #[test]
    fn containers_are_counted() {
        let container = |state: &str, restarts| Container {
            state: state.into(),
            restarts,
            ..Container::default()
        };
        let pod = Pod {
            namespace: "shop".into(),
            name: "web".into(),
            phase: "Running".into(),
            containers: vec![container("running", 1), container("CrashLoopBackOff", 4)],
            traffic: Some(PodTraffic {
                sent_bytes: 300,
                ..PodTraffic::default()
            }),
            ..Pod::default()
        };
        let text = list(&ListPodsReply { pods: vec![pod] });
        let line = text
            .lines()
            .nth(1)
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>();
        assert_eq!(
            line,
            [
                "shop",
                "web",
                "no",
                "Running",
                "1/2",
                "5",
                "-",
                &bytes(300),
                &bytes(0),
                "-"
            ]
        );
    }
}
