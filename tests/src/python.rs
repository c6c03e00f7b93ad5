//! Programs from the Python package index, in an environment of their own below `target`: other people's clients of the API,
//! which tests are the only ones to use.

use std::path::PathBuf;

use crate::cluster::{find_program, target};
use crate::command::{command, output};
use crate::{Error, Result};

/// What is installed. Versions stand here so that a test is about the same program everywhere.
const PACKAGES: [&str; 2] = ["kubernetes==37.0.2", "schemathesis==4.32.5"];

fn environment() -> PathBuf {
    target().join("python")
}

/// A program of the environment, `python` among them, if all of it was installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let installed = std::fs::read_to_string(mark()).ok()?;
    let program = environment().join("bin").join(program);
    (installed == PACKAGES.join("\n") && program.is_file()).then_some(program)
}

/// The file that is written when everything is there.
fn mark() -> PathBuf {
    environment().join("installed")
}

/// Makes the environment anew.
pub fn install() -> Result<()> {
    let python = find_program("python3")
        .ok_or_else(|| Error::Unexpected("there is no python3 to make it with".to_owned()))?;
    let environment = environment();
    output(
        command(&python.to_string_lossy())
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    let pip = environment.join("bin/pip");
    output(
        command(&pip.to_string_lossy())
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PACKAGES),
    )?;
    crate::host::write(mark(), PACKAGES.join("\n"))
}
