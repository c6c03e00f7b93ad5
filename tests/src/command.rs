//! Running other programs, with errors that show what they said.

use std::process::{Command, Output};

use crate::{Error, Result};

/// `program args…`, split at white space: for fixed command lines.
pub fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Runs to the end and gives what was printed; a failure carries what was said on standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command.output();
    let failed = |detail: String| Error::Command {
        command: shown(command),
        detail,
    };
    let Output {
        status,
        stdout,
        stderr,
    } = result.map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        return Err(failed(format!("{status}: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Runs a fixed command line.
pub fn run(line: &str) -> Result<String> {
    output(&mut command(line))
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
