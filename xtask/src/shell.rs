//! Running programs and saying what goes on.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Runs a program with its output on the terminal.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!(
            "{} ended with {status}",
            command.get_program().to_string_lossy()
        );
    }
    Ok(())
}

/// Runs a program quietly; its output is shown when it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    kernelet_tests::command::output(command)?;
    Ok(())
}

/// `cargo`, the one that runs this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Shows that something is going on; a plain line where there is no terminal.
pub fn spinner(message: impl Into<String>) -> ProgressBar {
    let message = message.into();
    let bar = ProgressBar::new_spinner();
    if bar.is_hidden() {
        eprintln!("{message}");
    }
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Changes what a spinner says.
pub fn say(bar: &ProgressBar, message: impl Into<String>) {
    let message = message.into();
    if bar.is_hidden() {
        eprintln!("{message}");
    }
    bar.set_message(message);
}
