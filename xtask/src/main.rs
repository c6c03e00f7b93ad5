//! `cargo xtask`: setup, build, demo, cluster, test, fuzz, bench.

mod bench;
mod bpf;
mod build;
mod cluster;
mod demo;
mod fuzz;
mod lint;
mod setup;
mod shell;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything that a developer of Kernelet runs.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and running needs; does nothing that is done already.
    Setup {
        /// Only say what is missing; the exit status says whether anything is.
        #[arg(long)]
        check: bool,
    },
    /// Build the BPF objects, the programs and the sample images.
    Build {
        /// Only the BPF objects, which tests of the agent need.
        #[arg(long)]
        bpf: bool,
    },
    /// Show the frontend/backend story on a cluster of network namespaces.
    Demo {
        /// Take the cluster down at the end instead of waiting for Ctrl-C; the exit status says whether all held.
        #[arg(long)]
        exit: bool,
    },
    /// Bring a cluster of network namespaces up or down, or look into it.
    Cluster {
        #[command(subcommand)]
        command: cluster::Command,
    },
    /// Check the format, clippy's findings and the dependencies' licences and sources.
    Lint,
    /// Run all tests: unit, property, BPF in the kernel, end to end.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Feed the API's decoders with what the fuzzer finds out about them.
    Fuzz {
        /// For so many seconds in all.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Only this decoder; the seeds' directory names all of them.
        decoder: Option<String>,
    },
    /// Measure, beside a peer or the physical limit in the same run.
    Bench {
        /// Which benchmark.
        bench: bench::Bench,
        /// Also write the rows to this file, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// A kube-apiserver to measure beside ours, for `api`.
        #[arg(long, value_name = "PROGRAM")]
        peer: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup { check } => setup::run(check),
        Command::Build { bpf: true } => build::bpf_object(),
        Command::Build { bpf: false } => {
            setup::run(false)?;
            build::run()
        }
        Command::Demo { exit } => {
            setup::run(false)?;
            build::run()?;
            demo::run(exit)
        }
        Command::Cluster { command } => cluster::run(command),
        Command::Lint => lint::run(),
        Command::Test { filter } => {
            setup::run(false)?;
            build::run_beside(test::compile)?;
            test::run(filter.as_deref())
        }
        Command::Fuzz { seconds, decoder } => {
            setup::run(false)?;
            fuzz::run(seconds, decoder.as_deref())
        }
        Command::Bench { bench, json, peer } => {
            setup::run(false)?;
            build::run()?;
            bench::run(bench, json.as_deref(), peer.as_deref())
        }
    }
}
