//! What the probes of this node came to since they began, as metrics count it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::spec::Question;
use crate::runtime::PodRef;

/// Upper bounds of the buckets of times, in seconds: Prometheus's usual ones. Beyond them is one more.
pub const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// One probe of one container, whichever of its restarts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeSeries {
    pub pod: PodRef,
    pub container: String,
    pub question: Question,
}

/// What its tries came to. Those that could not be made do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProbeCount {
    pub successful: u64,
    pub failed: u64,
    /// How many successful tries took as long as each of [`BUCKETS`], and in the end how many took longer.
    pub took: [u64; BUCKETS.len() + 1],
    /// How long the successful ones took together.
    pub total: Duration,
}

impl ProbeCount {
    fn add(&mut self, success: bool, took: Duration) {
        if !success {
            self.failed += 1;
            return;
        }
        self.successful += 1;
        self.total += took;
        let within = |bound: &f64| took.as_secs_f64() <= *bound;
        let bucket = BUCKETS.iter().position(within).unwrap_or(BUCKETS.len());
        self.took[bucket] += 1;
    }
}

/// The counts of all probes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ProbeCounts(Arc<Mutex<BTreeMap<ProbeSeries, ProbeCount>>>);

impl ProbeCounts {
    pub(super) fn add(&self, series: ProbeSeries, success: bool, took: Duration) {
        self.lock().entry(series).or_default().add(success, took);
    }

    /// Forgets the probes of a pod that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().retain(|series, _| series.pod.uid != uid);
    }

    /// All of them, as of now.
    pub fn list(&self) -> Vec<(ProbeSeries, ProbeCount)> {
        let all = self.lock();
        all.iter()
            .map(|(series, count)| (series.clone(), *count))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProbeSeries, ProbeCount>> {
        // Numbers only, each of which is right by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_successes_are_in_the_bucket_that_holds_them() {
        let counts = ProbeCounts::default();
        let series = ProbeSeries {
            pod: PodRef {
                uid: "u".into(),
                namespace: "d".into(),
                name: "p".into(),
            },
            container: "c".into(),
            question: Question::Liveness,
        };
        for (success, took) in [(true, 5), (true, 6), (true, 60_000), (false, 1)] {
            counts.add(series.clone(), success, Duration::from_millis(took));
        }
        let (_, count) = counts.list()[0];
        assert_eq!((count.successful, count.failed), (3, 1));
        assert_eq!(count.took, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(count.total, Duration::from_millis(60_011));
        counts.forget("other");
        assert_eq!(counts.list().len(), 1);
        counts.forget("u");
        assert!(counts.list().is_empty());
    }
}
