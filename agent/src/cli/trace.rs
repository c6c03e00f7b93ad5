//! `kernelet trace`.

use super::table::{percent, table};
use super::{Ask, CliError};
use crate::introspection::{Trace, TraceReply, TraceRequest};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// What is dialled: ADDRESS:PORT, or [NAMESPACE/]SERVICE:PORT, where the port may be a name
    to: String,
    /// Who dials: a pod of this node, [NAMESPACE/]NAME, or `host`
    #[arg(long, value_name = "POD")]
    from: String,
    /// TCP or UDP [default: what the service has, else TCP]
    #[arg(long)]
    protocol: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

pub(super) fn run(args: &Args) -> Result<String, CliError> {
    let request = TraceRequest {
        from: args.from.clone(),
        to: args.to.clone(),
        protocol: args.protocol.clone().unwrap_or_default(),
    };
    args.ask.render(
        async |mut client| Ok(client.trace(request).await?.into_inner()),
        |reply: &TraceReply| {
            let traces: Vec<String> = reply.traces.iter().map(one).collect();
            traces.join("\n")
        },
    )
}

fn one(trace: &Trace) -> String {
    let Trace {
        client,
        dialled,
        protocol,
        outcome,
        steps,
        choices,
        entries,
        ..
    } = trace;
    let mut text = format!(
        "{client} dials {dialled}/{protocol}: {}\n",
        verdict(outcome)
    );
    for (number, step) in (1..).zip(steps) {
        text += &format!("{number:>3}. {step}\n");
    }
    if !choices.is_empty() {
        text += "\n";
        let rows = choices.iter().map(|choice| {
            let backend = choice.backend.clone().unwrap_or_default();
            [
                choice.slot.to_string(),
                percent(choice.share),
                backend.id.to_string(),
                backend.address,
                backend.pod,
                backend.node,
                if backend.local { "yes" } else { "no" }.to_owned(),
                backend.state,
            ]
        });
        let header = [
            "SLOT", "ODDS", "BACKEND", "ADDRESS", "POD", "NODE", "LOCAL", "STATE",
        ];
        text += &table(header, rows);
    }
    if !entries.is_empty() {
        text += "\nMap entries\n";
        let rows = entries
            .iter()
            .map(|row| [row.map.clone(), row.key.clone(), row.value.clone()]);
        text += &table(["MAP", "KEY", "VALUE"], rows);
    }
    text
}

fn verdict(outcome: &str) -> &str {
    match outcome {
        "not-service" => "no service; left alone",
        "refused" => "refused",
        "backend" => "goes to one backend",
        "drawn" => "one backend is drawn",
        "hole" => "refused: a row is missing",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::{Backend, MapRow, TraceChoice};

    #[test]
    fn a_trace_reads_from_the_question_to_the_map_entries() {
        let trace = Trace {
            client: "default/frontend-1".into(),
            dialled: "10.96.0.7:80".into(),
            protocol: "TCP".into(),
            outcome: "backend".into(),
            steps: vec!["SERVICES: it is".into(), "BACKENDS: so".into()],
            choices: vec![TraceChoice {
                slot: 2,
                share: 1.0,
                backend: Some(Backend {
                    id: 9,
                    address: "10.244.1.5:8080".into(),
                    pod: "default/backend-x".into(),
                    state: "ready".into(),
                    ..Backend::default()
                }),
            }],
            entries: vec![MapRow {
                map: "BACKENDS".into(),
                key: "backend 9".into(),
                value: "10.244.1.5:8080 TCP".into(),
                ..MapRow::default()
            }],
            ..Trace::default()
        };
        assert_eq!(
            one(&trace),
            "default/frontend-1 dials 10.96.0.7:80/TCP: goes to one backend\n  \
             1. SERVICES: it is\n  \
             2. BACKENDS: so\n\n\
             SLOT   ODDS     BACKEND   ADDRESS           POD                 NODE   LOCAL   STATE\n\
             2      100.0%   9         10.244.1.5:8080   default/backend-x   -      no      ready\n\n\
             Map entries\n\
             MAP        KEY         VALUE\n\
             BACKENDS   backend 9   10.244.1.5:8080 TCP\n"
        );
    }
}
