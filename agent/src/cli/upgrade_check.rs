//! `kernelet upgrade-check`: what a start of this program would do about the programs and maps that are pinned.

use std::path::PathBuf;

use serde::Serialize;

use super::table::table;
use super::{CliError, Output};
use crate::config::{DEFAULT_BPF_DIR, MOST_CONNECTIONS, MOST_SERVICES};
use crate::dataplane::{
    ABI_VERSION, Carried, DEFAULT_CONNECTIONS, DEFAULT_SERVICES, Difference, MapSizes, Plan,
    upgrade_check,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Where programs and maps are pinned
    #[arg(long, env = "KERNELET_BPF_DIR", value_name = "DIR", default_value = DEFAULT_BPF_DIR)]
    bpf_dir: PathBuf,
    /// Service ports that the maps are to have room for, as `kernelet run` is told
    #[arg(
        long,
        env = "KERNELET_MAX_SERVICES",
        value_name = "N",
        default_value_t = DEFAULT_SERVICES,
        value_parser = clap::value_parser!(u32).range(1..=MOST_SERVICES)
    )]
    max_services: u32,
    /// Translated connections that the maps are to have room for, as `kernelet run` is told
    #[arg(
        long,
        env = "KERNELET_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = DEFAULT_CONNECTIONS,
        value_parser = clap::value_parser!(u32).range(1..=MOST_CONNECTIONS)
    )]
    max_connections: u32,
    /// How to print the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Serialize)]
struct Answer<'a> {
    abi_version: u32,
    bpf_dir: &'a PathBuf,
    action: &'static str,
    #[serde(flatten)]
    plan: &'a Plan,
}

pub(super) fn run(args: &Args) -> Result<String, CliError> {
    let sizes = MapSizes::for_services(args.max_services).with_connections(args.max_connections);
    let plan = upgrade_check(&args.bpf_dir, sizes)?;
    let answer = Answer {
        abi_version: ABI_VERSION,
        bpf_dir: &args.bpf_dir,
        action: action(&plan),
        plan: &plan,
    };
    match args.output {
        Output::Table => Ok(render(&plan)),
        Output::Json => Ok(serde_json::to_string_pretty(&answer)? + "\n"),
    }
}

/// In one word.
fn action(plan: &Plan) -> &'static str {
    match (plan.sources.is_empty(), plan.adopt) {
        (true, false) => "install",
        (true, true) => "adopt",
        (false, _) => "take-over",
    }
}

fn render(plan: &Plan) -> String {
    let own = format!("v{ABI_VERSION}");
    let first = match (action(plan), plan.adopt) {
        ("install", _) => "first install: maps are made, programs are attached at once",
        ("adopt", _) => {
            "adopt: its maps are used on, its programs are replaced at once, each in one step"
        }
        (_, true) => "continue: it was to take over from the others",
        (_, false) => "maps are made; its programs take over when all services are in them",
    };
    let ours = [own, first.to_owned(), String::new()];
    let others = plan.sources.iter().map(|source| {
        let name = &source.directory;
        let what = match plan.set_aside.as_ref() == Some(name) {
            true => format!(
                "now v{ABI_VERSION}, set aside ({})",
                differences(&plan.differences)
            ),
            false => "another version".to_owned(),
        };
        let carried = match source.carried {
            Carried::Same | Carried::V1 => "services, backends, open sockets, session affinity",
            Carried::Nothing => "nothing: this program cannot read its maps",
        };
        [
            name.clone(),
            format!("{what}: serves until then, then it is removed"),
            carried.to_owned(),
        ]
    });
    table(
        ["MAPS", "A START WOULD", "CARRIED OVER"],
        std::iter::once(ours).chain(others),
    )
}

fn differences(differences: &[Difference]) -> String {
    let shown = differences.iter().map(|difference| {
        let (pinned, wanted) = (difference.pinned, difference.wanted);
        let what = match (pinned.key, pinned.value) == (wanted.key, wanted.value) {
            true => format!("size {} instead of {}", pinned.size, wanted.size),
            false => format!(
                "rows of {}+{} bytes instead of {}+{}",
                pinned.key, pinned.value, wanted.key, wanted.value
            ),
        };
        format!("{} has {what}", difference.map)
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{Layout, Source};

    fn plan(adopt: bool, sources: &[(&str, Carried)]) -> Plan {
        let sources = sources.iter().map(|(directory, carried)| Source {
            directory: (*directory).to_owned(),
            carried: *carried,
        });
        Plan {
            adopt,
            set_aside: None,
            differences: Vec::new(),
            sources: sources.collect(),
        }
    }

    #[test]
    fn each_kind_of_start_is_told() {
        assert!(render(&plan(false, &[])).contains("first install"));
        assert!(render(&plan(true, &[])).contains("adopt: its maps"));
        let upgrade = render(&plan(false, &[("v1", Carried::V1)]));
        assert!(
            upgrade.contains("v1     another version: serves until then")
                && upgrade.contains("open sockets"),
            "{upgrade}"
        );
        let downgrade = plan(true, &[("v9", Carried::Nothing)]);
        assert_eq!(action(&downgrade), "take-over");
        let downgrade = render(&downgrade);
        assert!(
            downgrade.contains("continue") && downgrade.contains("nothing: this program"),
            "{downgrade}"
        );
    }

    #[test]
    fn maps_that_differ_are_named() {
        let wanted = Layout {
            kind: 1,
            key: 20,
            value: 56,
            size: 1024,
        };
        let difference = |map: &str, pinned| Difference {
            map: map.to_owned(),
            pinned,
            wanted,
        };
        let plan = Plan {
            set_aside: Some("v2-0".into()),
            differences: vec![
                difference("SERVICES", Layout { size: 64, ..wanted }),
                difference(
                    "SOCKETS",
                    Layout {
                        value: 24,
                        ..wanted
                    },
                ),
            ],
            ..plan(false, &[("v2-0", Carried::Same)])
        };
        let text = render(&plan);
        assert!(
            text.contains(
                "now v2, set aside (SERVICES has size 64 instead of 1024, SOCKETS has rows of 20+24 bytes instead of 20+56)"
            ),
            "{text}"
        );
    }
}
