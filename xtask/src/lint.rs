//! What a reviewer would say first: format, clippy, and what the dependencies may be.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use kernelet_tests::cluster::{find_program, target};

use crate::shell::{self, cargo, run_quietly, spinner, workspace};

const DENY_VERSION: &str = "0.20.2";

/// Runs all lints; the first that finds something ends it.
pub fn run() -> Result<()> {
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    shell::run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    // Advisories are left out: their database changes from day to day, and a lint gives the same answer for the same tree.
    shell::run(
        Command::new(deny()?)
            .current_dir(workspace())
            .args(["check", "bans", "licenses", "sources"]),
    )
}

/// `cargo-deny`, built below `target/` when it is not installed.
fn deny() -> Result<PathBuf> {
    if let Some(program) = find_program("cargo-deny") {
        return Ok(program);
    }
    let root = target().join("tools");
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let bar = spinner("building cargo-deny");
        run_quietly(
            cargo()
                .args([
                    "install",
                    "cargo-deny",
                    "--version",
                    DENY_VERSION,
                    "--locked",
                    // It runs for a second, and would be built for two minutes.
                    "--debug",
                    "--root",
                ])
                .arg(&root),
        )?;
        bar.finish_and_clear();
    }
    Ok(program)
}
