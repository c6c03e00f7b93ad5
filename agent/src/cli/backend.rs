//! `kernelet backend list`.

use clap::Subcommand;

use super::table::{table, time};
use super::{Ask, CliError};
use crate::introspection::{ListBackendsReply, ListBackendsRequest};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List every backend with its counters and the services that use it
    List(Ask),
}

pub(super) fn run(Command::List(ask): &Command) -> Result<String, CliError> {
    ask.render(
        async |mut client| {
            Ok(client
                .list_backends(ListBackendsRequest {})
                .await?
                .into_inner())
        },
        list,
    )
}

fn list(reply: &ListBackendsReply) -> String {
    let header = [
        "ID", "ADDRESS", "NODE", "ZONE", "POD", "STATE", "LOCAL", "OPENS", "ACTIVE", "FAILED",
        "P50", "P99", "SERVICES",
    ];
    let rows = reply.backends.iter().map(|backend| {
        [
            backend.id.to_string(),
            format!("{}/{}", backend.address, backend.protocol),
            backend.node.clone(),
            backend.zone.clone(),
            backend.pod.clone(),
            backend.state.clone(),
            if backend.local { "yes" } else { "no" }.to_owned(),
            backend.opens.to_string(),
            backend.active.to_string(),
            backend.failures.to_string(),
            backend.handshake_p50_seconds.map(time).unwrap_or_default(),
            backend.handshake_p99_seconds.map(time).unwrap_or_default(),
            backend.services.join(","),
        ]
    });
    table(header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::Backend;

    #[test]
    fn a_backend_names_the_services_that_use_it() {
        let backend = Backend {
            id: 4,
            address: "10.244.1.5:8080".into(),
            protocol: "TCP".into(),
            local: true,
            state: "ready".into(),
            services: vec!["a/b".into(), "c/d".into()],
            failures: 3,
            handshake_p50_seconds: Some(0.000_042),
            ..Backend::default()
        };
        let text = list(&ListBackendsReply {
            backends: vec![backend],
        });
        let line = text
            .lines()
            .nth(1)
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>();
        assert_eq!(
            line,
            [
                "4",
                "10.244.1.5:8080/TCP",
                "-",
                "-",
                "-",
                "ready",
                "yes",
                "0",
                "0",
                "3",
                "42us",
                "-",
                "a/b,c/d"
            ]
        );
    }
}
