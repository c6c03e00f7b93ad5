//! All tests, in one run of cargo's test runner.

use anyhow::Result;

use crate::shell::{self, cargo};

/// Compiles every test of the workspace.
pub fn compile() -> Result<()> {
    shell::run(cargo().args(["test", "--workspace", "--no-run"]))
}

/// Runs every test of the workspace, or those whose name contains `filter`.
pub fn run(filter: Option<&str>) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(filter);
    shell::run(&mut command)
}
