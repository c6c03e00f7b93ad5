//! `kernelet`: arguments to commands, nothing else.

use clap::Parser;
use kernelet::cli::{Cli, execute};

fn main() -> std::process::ExitCode {
    execute(Cli::parse())
}
