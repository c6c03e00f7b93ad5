//! What a person types.

use std::process::ExitCode;

/// The node agent of a Kernelet cluster.
#[derive(Debug, clap::Parser)]
#[command(name = "kernelet", version)]
pub struct Cli {}

/// Runs one command; its exit code is the process's.
pub fn execute(_cli: Cli) -> ExitCode {
    ExitCode::SUCCESS
}
