//! `kernelet self-test`: whether the programs do on this kernel what they are for. They are loaded beside whatever runs
//! here: with pins, a cgroup and a network namespace of their own, which go when the test ends.

mod checks;
mod direct;
mod ethtool;
mod fast_path;
pub(crate) mod lab;
mod node_ports;
mod outside;
mod packets;
pub(crate) mod place;
mod policy;
mod reached;
mod two_links;
mod unseen;
mod xdp;

use std::thread;

use serde::Serialize;

use crate::chain::chain;
use crate::dataplane::Feature;
use place::{Place, enter_new_netns};

pub use place::PlaceError;

/// Beginning of the names of all that a self-test makes.
const PREFIX: &str = "kernelet-self-test-";

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub features: Vec<Feature>,
    pub checks: Vec<Check>,
}

impl Report {
    /// How many checks failed.
    pub fn failures(&self) -> usize {
        let failed = |check: &&Check| check.verdict == Verdict::Failed;
        self.checks.iter().filter(failed).count()
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was seen, or why not.
    pub detail: String,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    Failed,
    /// This kernel lacks something that the agent can do without.
    Skipped,
}

/// Tries everything. An error means that nothing could be tried.
pub fn run() -> Result<Report, PlaceError> {
    // A thread of its own, because it changes its namespace.
    match thread::spawn(run_here).join() {
        Ok(report) => report,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn run_here() -> Result<Report, PlaceError> {
    let place = Place::new(PREFIX)?;
    enter_new_netns()?;
    let checks = checks::run(&place);
    Ok(Report {
        features: place.probe.features.clone(),
        checks,
    })
}

/// What one check gives: what was seen, or why it did not hold.
type Outcome = Result<String, Refusal>;

/// Why a check did not pass.
#[derive(Debug)]
enum Refusal {
    Failed(String),
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal::Failed(chain(&error))
    }
}

fn judged(name: &'static str, outcome: Outcome) -> Check {
    let (verdict, detail) = match outcome {
        Ok(detail) => (Verdict::Passed, detail),
        Err(Refusal::Failed(why)) => (Verdict::Failed, why),
        Err(Refusal::Skipped(why)) => (Verdict::Skipped, why),
    };
    Check {
        name,
        verdict,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_judged_by_what_it_gave() {
        let shown = |outcome| {
            let check = judged("x", outcome);
            (check.verdict, check.detail)
        };
        assert_eq!(shown(Ok("seen".into())), (Verdict::Passed, "seen".into()));
        let skipped = Err(Refusal::Skipped("no such thing".into()));
        assert_eq!(shown(skipped), (Verdict::Skipped, "no such thing".into()));
        let failed = Err(Refusal::from(std::io::Error::other("broken")));
        assert_eq!(shown(failed), (Verdict::Failed, "broken".into()));
    }

    #[test]
    fn only_failures_count() {
        let check = |verdict| Check {
            name: "x",
            verdict,
            detail: String::new(),
        };
        let checks = [Verdict::Passed, Verdict::Skipped, Verdict::Failed].map(check);
        let report = Report {
            features: Vec::new(),
            checks: checks.into(),
        };
        assert_eq!(report.failures(), 1);
    }
}
