//! `kernelet self-test`.

use super::table::table;
use super::{CliError, Output};
use crate::self_test::{Report, Verdict, run as run_checks};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How to print what was found
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let report = run_checks()?;
    super::print(match args.output {
        Output::Table => render(&report),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    })?;
    match report.failures() {
        0 => Ok(()),
        failed => Err(CliError::ChecksFailed {
            failed,
            of: report.checks.len(),
        }),
    }
}

fn render(report: &Report) -> String {
    let features = report.features.iter().map(|found| {
        let state = if found.available { "ok" } else { "absent" };
        [
            found.name.to_owned(),
            state.to_owned(),
            found.detail.clone(),
        ]
    });
    let checks = report.checks.iter().map(|check| {
        let verdict = match check.verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        [
            check.name.to_owned(),
            verdict.to_owned(),
            check.detail.clone(),
        ]
    });
    format!(
        "{}\n{}",
        table(["KERNEL", "STATE", "DETAIL"], features),
        table(["CHECK", "VERDICT", "DETAIL"], checks)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Feature;
    use crate::self_test::Check;

    #[test]
    fn each_feature_and_check_has_a_line() {
        let report = Report {
            features: vec![Feature {
                name: "TCX",
                available: false,
                detail: "older than Linux 6.6".into(),
            }],
            checks: vec![Check {
                name: "TCP over IPv4",
                verdict: Verdict::Failed,
                detail: "timed out".into(),
            }],
        };
        let text = render(&report);
        assert!(
            text.contains("TCX      absent   older than Linux 6.6\n"),
            "{text}"
        );
        assert!(
            text.contains("TCP over IPv4   FAILED    timed out\n"),
            "{text}"
        );
    }
}
