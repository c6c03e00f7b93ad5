//! `kernelet flow watch`.

use std::io::{self, Write};

use clap::{Subcommand, ValueEnum};

use super::ask::Output;
use super::table::{bytes, plain, time};
use super::{Ask, CliError};
use crate::introspection::{Flow, FlowRecord, Lost, WatchFlowsRequest};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print what becomes of connections to services, and what network policies drop, until interrupted
    Watch {
        /// Only this service's, [NAMESPACE/]NAME
        #[arg(long)]
        service: Option<String>,
        /// Only those with this pod on either side, [NAMESPACE/]NAME
        #[arg(long)]
        pod: Option<String>,
        /// Only those to backends on this node
        #[arg(long)]
        node: Option<String>,
        /// Only this verdict
        #[arg(long, value_enum)]
        verdict: Option<Verdict>,
        /// Only this protocol
        #[arg(long, value_enum)]
        protocol: Option<Protocol>,
        /// One in so many sockets; those that are refused are always shown
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        sample: u32,
        #[command(flatten)]
        ask: Ask,
    },
}

/// What may become of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Verdict {
    /// Sent to a backend
    Opened,
    /// TCP: the backend accepted
    Established,
    /// TCP: ended before the backend accepted
    Failed,
    /// Over
    Closed,
    /// Refused, because the service has no backend
    NoBackend,
    /// Refused, because a map row was missing
    Hole,
    /// A packet that a network policy refused
    Dropped,
}

/// A transport protocol that services are routed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// The word for a value on the command line.
fn word<T: ValueEnum>(value: Option<T>) -> String {
    let value = value.and_then(|value| value.to_possible_value());
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let Command::Watch {
        service,
        pod,
        node,
        verdict,
        protocol,
        sample,
        ask,
    } = command;
    let request = WatchFlowsRequest {
        service: service.clone().unwrap_or_default(),
        pod: pod.clone().unwrap_or_default(),
        node: node.clone().unwrap_or_default(),
        verdict: word(*verdict),
        protocol: word(*protocol),
        sample_every: *sample,
    };
    let (output, mut out) = (ask.output, io::stdout());
    let printed = ask.ask(async |mut client| {
        let mut records = client.watch_flows(request).await?.into_inner();
        if output == Output::Table
            && let Err(error) = out.write_all(header().as_bytes())
        {
            return Ok(Err(error));
        }
        while let Some(record) = records.message().await? {
            let line = match output {
                Output::Table => line(&record),
                Output::Json => json(&record),
            };
            // Each line at once, for whoever reads through a pipe.
            if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    })?;
    match printed {
        // Who reads has seen enough (`| head`).
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Print(error)),
        _ => Ok(()),
    }
}

/// Widths are fixed: what comes is not known yet. A longer cell moves the rest of its line.
fn cells(cells: [&str; 9]) -> String {
    let [
        at,
        verdict,
        took,
        client,
        service,
        dialled,
        backend,
        pod,
        more,
    ] = cells;
    let line = format!(
        "{at:<15} {verdict:<12} {took:<8} {client:<40} {service:<28} {dialled:<24} {backend:<22} {pod:<40} {more}"
    );
    plain(line.trim_end()) + "\n"
}

fn header() -> String {
    cells([
        "TIME", "VERDICT", "TOOK", "CLIENT", "SERVICE", "DIALLED", "BACKEND", "POD", "MORE",
    ])
}

fn line(record: &FlowRecord) -> String {
    let mut text = record.flow.as_ref().map(flow).unwrap_or_default();
    if let Some(Lost { ring, watcher }) = &record.lost {
        text += &format!(
            "-- lost so far: {ring} in the kernel, {watcher} because this watch is slow\n"
        );
    }
    text
}

fn flow(flow: &Flow) -> String {
    let dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let mut more = Vec::new();
    if !flow.reason.is_empty() {
        more.push(flow.reason.clone());
    }
    if !flow.process.is_empty() {
        more.push(format!("{} ({})", flow.process, flow.pid));
    }
    if let (Some(sent), Some(received)) = (flow.bytes_sent, flow.bytes_received) {
        more.push(format!(
            "{} sent, {} received",
            bytes(sent),
            bytes(received)
        ));
    }
    cells([
        clock(&flow.time),
        &flow.verdict,
        &dash(&flow.seconds.map(time).unwrap_or_default()),
        &dash(&flow.client),
        &dash(&flow.service),
        &format!("{}/{}", flow.dialled, flow.protocol),
        &dash(&flow.backend),
        &dash(&flow.backend_pod),
        &more.join(", "),
    ])
}

/// The time of day in an RFC 3339 time, to the microsecond.
fn clock(time: &str) -> &str {
    let time = time.split_once('T').map_or(time, |(_, time)| time);
    let time = time.trim_end_matches('Z');
    time.get(..15).unwrap_or(time)
}

/// One line: the flow itself, or `{"lost": …}`.
fn json(record: &FlowRecord) -> String {
    let value = match (&record.flow, &record.lost) {
        (Some(flow), _) => serde_json::to_value(flow),
        (None, lost) => Ok(serde_json::json!({ "lost": lost })),
    };
    // Plain numbers and texts: nothing that could fail.
    value.map_or_else(|_| String::new(), |value| format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> FlowRecord {
        FlowRecord {
            flow: Some(Flow {
                time: "2026-03-01T10:11:12.123456789Z".into(),
                verdict: "failed".into(),
                protocol: "TCP".into(),
                client: "default/frontend-1".into(),
                dialled: "10.96.0.7:80".into(),
                service: "default/backend".into(),
                backend: "10.244.1.5:8080".into(),
                backend_pod: "default/backend-x".into(),
                seconds: Some(0.000_12),
                process: "curl".into(),
                pid: 7,
                ..Flow::default()
            }),
            lost: None,
        }
    }

    #[test]
    fn a_flow_is_one_line_with_names_on_both_sides() {
        let text = line(&failed());
        let cells: Vec<_> = text.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "10:11:12.123456",
                "failed",
                "120us",
                "default/frontend-1",
                "default/backend",
                "10.96.0.7:80/TCP",
                "10.244.1.5:8080",
                "default/backend-x",
                "curl",
                "(7)"
            ]
        );
        assert_eq!(header().find("POD"), text.find("default/backend-x"));
    }

    #[test]
    fn a_drop_says_why() {
        let mut record = failed();
        let flow = record.flow.as_mut().unwrap();
        (flow.verdict, flow.seconds) = ("dropped".into(), None);
        flow.reason = "ingress: no policy allows it".into();
        let text = line(&record);
        assert!(text.contains("dropped") && text.contains("ingress: no policy allows it"));
    }

    #[test]
    fn a_process_cannot_control_the_terminal() {
        let mut record = failed();
        record.flow.as_mut().unwrap().process = "\x1b[2J\nx".into();
        let text = line(&record);
        assert!(text.ends_with("  \u{fffd}[2J\u{fffd}x (7)\n"), "{text}");
        assert!(json(&record).contains("\\u001b[2J\\nx"));
    }

    #[test]
    fn what_is_lost_is_told_in_both_forms() {
        let record = FlowRecord {
            flow: None,
            lost: Some(Lost {
                ring: 3,
                watcher: 4,
            }),
        };
        assert!(line(&record).starts_with("-- lost so far: 3 in the kernel"));
        assert_eq!(json(&record), "{\"lost\":{\"ring\":3,\"watcher\":4}}\n");
        assert!(json(&failed()).contains("\"verdict\":\"failed\""));
    }

    #[test]
    fn the_verdicts_on_the_command_line_are_those_of_the_flows() {
        let words: Vec<_> = Verdict::value_variants()
            .iter()
            .map(|verdict| word(Some(*verdict)))
            .collect();
        assert_eq!(words, crate::observe::VERDICTS);
    }
}
