//! Coverage-guided fuzzing of the API's decoders, for a bounded time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kernelet_tests::cluster::target;

use crate::shell::{cargo, run_quietly, spinner, workspace};

/// Nothing so small takes nearly as many seconds.
const HANGS: u64 = 10;
/// Before the number of texts that were tried.
const TRIED: &str = "stat::number_of_executed_units:";

/// Feeds each decoder, or one, in turn; they share `seconds`. What was worth keeping is in `target/fuzz` for the next run, and
/// so is a finding: it belongs among the seeds, where tests try it from then on.
pub fn run(seconds: u64, only: Option<&str>) -> Result<()> {
    let home = workspace().join("control-plane/fuzz");
    let names = decoders(&home.join("seeds"), only)?;
    let bar = spinner("building the fuzzer");
    let wrapper = home.join("rustc");
    let package = "kernelet-control-plane-fuzz";
    run_quietly(
        cargo()
            .args(["build", "--package", package, "--bins"])
            .env("RUSTC_WORKSPACE_WRAPPER", wrapper),
    )?;
    bar.finish_and_clear();
    // Not zero, which is for ever.
    let each = (seconds / names.len() as u64).max(1);
    for name in names {
        let findings = target().join("fuzz").join(&name);
        let corpus = findings.join("corpus");
        std::fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
        let mut fuzzer = Command::new(target().join("debug/decoders"));
        fuzzer
            .env("DECODER", &name)
            .arg(format!("-max_total_time={each}"))
            .arg(format!("-timeout={HANGS}"))
            .arg(format!("-dict={}", home.join("dictionary").display()))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-verbosity=0", "-print_funcs=0", "-print_final_stats=1"])
            .args([corpus, home.join("seeds").join(&name)]);
        let outcome = fuzzer.output().context("starting the fuzzer")?;
        let said = String::from_utf8_lossy(&outcome.stderr);
        ensure!(outcome.status.success(), "the decoder {name}:\n{said}");
        let tried = said.lines().find_map(|line| line.strip_prefix(TRIED));
        println!("{name}: {} texts in {each} s", tried.unwrap_or("?").trim());
    }
    Ok(())
}

/// Each has a directory of seeds.
fn decoders(seeds: &Path, only: Option<&str>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = std::fs::read_dir(seeds);
    for entry in entries.with_context(|| format!("reading {}", seeds.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if only.is_none_or(|only| only == name) {
            names.push(name);
        }
    }
    ensure!(
        !names.is_empty(),
        "no such decoder: `ls {}`",
        seeds.display()
    );
    names.sort();
    Ok(names)
}
