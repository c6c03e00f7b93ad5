//! `kernelet conn list`.

use clap::Subcommand;

use super::table::{bytes, table, time};
use super::{Ask, CliError};
use crate::introspection::{Connection, ListConnectionsReply, ListConnectionsRequest};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the sockets that were sent to a backend, and the connections of clients outside, oldest first
    List {
        /// Only this service's, [NAMESPACE/]NAME
        #[arg(long)]
        service: Option<String>,
        /// Only those with this pod on either side, [NAMESPACE/]NAME
        #[arg(long)]
        pod: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
}

pub(super) fn run(Command::List { service, pod, ask }: &Command) -> Result<String, CliError> {
    let request = ListConnectionsRequest {
        service: service.clone().unwrap_or_default(),
        pod: pod.clone().unwrap_or_default(),
    };
    ask.render(
        async |mut client| Ok(client.list_connections(request).await?.into_inner()),
        list,
    )
}

fn list(reply: &ListConnectionsReply) -> String {
    let header = [
        "CLIENT", "SERVICE", "DIALLED", "BACKEND", "POD", "STATE", "AGE", "RTT", "SENDQ", "RECVQ",
        "SENT", "RECEIVED",
    ];
    let rows = reply.connections.iter().map(|it| {
        let Connection {
            client,
            protocol,
            dialled,
            service,
            backend,
            backend_pod,
            age_seconds,
            state,
            round_trip_seconds,
            send_queue,
            receive_queue,
            bytes_sent,
            bytes_received,
            ..
        } = it.clone();
        let text = |number: Option<u32>| number.map(|it| it.to_string()).unwrap_or_default();
        [
            client,
            service,
            format!("{dialled}/{protocol}"),
            backend,
            backend_pod,
            state,
            time(age_seconds),
            round_trip_seconds.map(time).unwrap_or_default(),
            text(send_queue),
            text(receive_queue),
            bytes_sent.map(bytes).unwrap_or_default(),
            bytes_received.map(bytes).unwrap_or_default(),
        ]
    });
    let mut text = table(header, rows);
    for note in &reply.notes {
        text += &format!("Note: {note}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_names_on_both_sides_and_what_the_kernel_knows() {
        let connection = Connection {
            client: "default/frontend-1".into(),
            protocol: "TCP".into(),
            dialled: "10.96.0.7:80".into(),
            service: "default/backend".into(),
            backend: "10.244.1.5:8080".into(),
            backend_pod: "default/backend-x".into(),
            state: "ESTAB".into(),
            age_seconds: 61.0,
            round_trip_seconds: Some(0.000_085),
            send_queue: Some(0),
            bytes_sent: Some(2048),
            ..Connection::default()
        };
        let text = list(&ListConnectionsReply {
            connections: vec![connection],
            notes: vec!["/run/x: no such process".into()],
        });
        let mut lines = text.lines().skip(1);
        let cells: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "default/frontend-1",
                "default/backend",
                "10.96.0.7:80/TCP",
                "10.244.1.5:8080",
                "default/backend-x",
                "ESTAB",
                "1m1s",
                "85us",
                "0",
                "-",
                "2.0KiB",
                "-"
            ]
        );
        assert_eq!(lines.next(), Some("Note: /run/x: no such process"));
    }
}
