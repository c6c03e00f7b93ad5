//! `cargo xtask cluster`: the cluster that stays up between commands.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use comfy_table::Table;
use kernelet_tests::cluster::{binaries, target};
use kernelet_tests::{Cluster, Families, Spec};

use crate::shell::{say, spinner};
use crate::{build, setup};

/// Names of the cluster that a person brings up begin with this.
const PREFIX: &str = "kn";
/// Its nodes are 172.30.N.0/24.
const SUBNET: u8 = 100;

#[derive(Subcommand)]
pub enum Command {
    /// Bring it up; what an earlier run left goes first.
    Up {
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
        workers: u8,
    },
    /// Take it down and remove everything that it made.
    Down,
    /// Show nodes, programs and memory.
    Status,
    /// Run a command on a node.
    Exec {
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Does what was asked.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { workers } => {
            setup::run(false)?;
            build::run()?;
            let cluster = up(workers)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            Ok(())
        }
        Command::Down => match Cluster::open(&directory())? {
            Some(cluster) => Ok(cluster.down()?),
            None => {
                println!("no cluster is up");
                Ok(())
            }
        },
        Command::Status => {
            println!("{}", status(&opened()?));
            Ok(())
        }
        Command::Exec { node, command } => {
            let cluster = opened()?;
            let (program, arguments) = command
                .split_first()
                .context("there is no command to run")?;
            let status = cluster
                .node(&node)?
                .command(program)
                .args(arguments)
                .status()?;
            std::process::exit(status.code().unwrap_or(1));
        }
    }
}

/// Brings up the cluster that a person works with.
pub fn up(workers: u8) -> Result<Cluster> {
    let spec = Spec {
        prefix: PREFIX.to_owned(),
        subnet: SUBNET,
        workers,
        directory: directory(),
        binaries: binaries(),
        images: ["frontend", "backend"]
            .map(|name| target().join(format!("images/{name}.tar")))
            .into(),
        control_plane_args: Vec::new(),
        agent_args: Vec::new(),
        families: Families::V4,
        far: 0,
    };
    let bar = spinner("starting the cluster");
    let cluster = Cluster::up(spec, |step| {
        say(&bar, format!("starting the cluster: {step}"))
    })?;
    bar.finish_and_clear();
    Ok(cluster)
}

fn directory() -> PathBuf {
    target().join("cluster")
}

fn opened() -> Result<Cluster> {
    match Cluster::open(&directory())? {
        Some(cluster) => Ok(cluster),
        None => bail!("no cluster is up: run `cargo xtask cluster up`"),
    }
}

fn status(cluster: &Cluster) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "NODE", "ADDRESS", "PROGRAM", "PID", "STATE", "RESIDENT", "LOG",
    ]);
    for node in &cluster.nodes {
        for (program, process) in &node.processes {
            let resident = process.resident().map_or_else(|| "-".into(), megabytes);
            table.add_row([
                node.name.clone(),
                node.address.to_string(),
                program.name().to_owned(),
                process.pid.to_string(),
                if process.alive() { "running" } else { "ended" }.to_owned(),
                resident,
                process.log.display().to_string(),
            ]);
        }
    }
    table
}

/// Bytes as people read them.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
