//! What a person types. One file a command; tables for people, `-o json` for programs.

mod ask;
mod backend;
mod cleanup;
mod connection;
mod flow;
mod join;
mod map;
mod pod;
mod policy;
mod run;
mod self_test;
mod service;
mod status;
mod table;
mod trace;
mod upgrade_check;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::chain::chain;
use crate::config::AgentConfig;

pub use ask::{Ask, Output};

/// The node agent of a Kernelet cluster.
#[derive(Debug, Parser)]
#[command(name = "kernelet", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this machine a node of a cluster: get it a certificate
    Join(join::Args),
    /// Run the agent in the foreground
    Run(Box<AgentConfig>),
    /// How the agent and its parts are, and what the kernel can do
    Status(Ask),
    /// The services as this node routes them
    #[command(subcommand)]
    Service(service::Command),
    /// The backends that this node sends to
    #[command(subcommand)]
    Backend(backend::Command),
    /// The connections through services, of this node's pods and processes
    #[command(subcommand)]
    Conn(connection::Command),
    /// What becomes of connections to services, as it happens
    #[command(subcommand)]
    Flow(flow::Command),
    /// What would become of a connect, and which map entries say so
    Trace(trace::Args),
    /// The BPF maps
    #[command(subcommand)]
    Map(map::Command),
    /// The pods of this node
    #[command(subcommand)]
    Pod(pod::Command),
    /// What network policies say of a pod
    #[command(subcommand)]
    Policy(policy::Command),
    /// Remove what a stopped agent left on this node: programs, containers, links, routes, mounts, cgroups
    Cleanup(cleanup::Args),
    /// What a start of this program would do about the programs and maps that are pinned; changes nothing
    UpgradeCheck(upgrade_check::Args),
    /// Try on this kernel all that the service programs do, beside whatever runs here
    SelfTest(self_test::Args),
    /// Write one container's log; containerd starts it
    #[command(hide = true)]
    LogPipe {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Join(#[from] crate::node::join::JoinError),
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    #[error(transparent)]
    Ask(#[from] ask::AskError),
    #[error(transparent)]
    Cleanup(#[from] cleanup::CleanupError),
    #[error(transparent)]
    UpgradeCheck(#[from] crate::dataplane::LoadError),
    #[error(transparent)]
    SelfTest(#[from] crate::self_test::PlaceError),
    #[error("{failed} of {of} checks failed")]
    ChecksFailed { failed: usize, of: usize },
    #[error("cannot write the answer as JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot write the answer")]
    Print(#[source] io::Error),
}

/// Runs one command; its exit code is the process's.
pub fn execute(cli: Cli) -> ExitCode {
    let outcome = match cli.command {
        Command::Join(args) => join::run(args).and_then(print),
        Command::Run(config) => run::run(*config),
        Command::Status(ask) => status::run(&ask).and_then(print),
        Command::Service(command) => service::run(&command).and_then(print),
        Command::Backend(command) => backend::run(&command).and_then(print),
        Command::Conn(command) => connection::run(&command).and_then(print),
        Command::Flow(command) => flow::run(&command),
        Command::Trace(args) => trace::run(&args).and_then(print),
        Command::Map(command) => map::run(&command).and_then(print),
        Command::Pod(command) => pod::run(&command).and_then(print),
        Command::Policy(command) => policy::run(&command).and_then(print),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::UpgradeCheck(args) => upgrade_check::run(&args).and_then(print),
        Command::SelfTest(args) => self_test::run(&args),
        Command::LogPipe { args } => return crate::runtime::log_pipe::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernelet: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn print(text: String) -> Result<(), CliError> {
    match io::stdout().write_all(text.as_bytes()) {
        // Who reads has seen enough (`| head`).
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Print(error)),
        _ => Ok(()),
    }
}

/// Raw bytes in JSON: two hexadecimal digits each.
pub(crate) fn hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&digits(bytes))
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declared_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_read_as_the_manual_says() {
        for line in [
            "kernelet join https://192.0.2.1:6443 --token t --ca-file ca.crt --node-name n1",
            "kernelet run --node-name n1 --containerd /run/c.sock",
            "kernelet status -o json",
            "kernelet service list -n shop",
            "kernelet service show backend",
            "kernelet backend list --run-dir /tmp/r",
            "kernelet conn list --service shop/web --pod frontend-1",
            "kernelet flow watch --service web --pod shop/a --verdict failed --protocol tcp --node n1 --sample 10",
            "kernelet trace --from default/frontend-1 10.96.0.1:80",
            "kernelet trace --from host shop/web:http --protocol tcp -o json",
            "kernelet map dump SERVICES --raw",
            "kernelet pod list",
            "kernelet policy show shop/web",
            "kernelet cleanup --dry-run",
            "kernelet self-test -o json",
            "kernelet upgrade-check --bpf-dir /sys/fs/bpf/k",
            "kernelet log-pipe /var/log/0.log",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
