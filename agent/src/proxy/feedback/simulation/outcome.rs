//! What came of a simulated scenario.

use std::ops::Range;

/// One connection that came to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// When it was opened, in seconds.
    pub(super) at: f64,
    /// How long it took; `None` when it was refused.
    pub(super) latency: Option<f64>,
    pub(super) local: bool,
}

/// What came of a scenario.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: Vec<Done>,
    /// The first node's share at each look.
    pub(super) shares: Vec<f64>,
}

impl Outcome {
    fn within(&self, when: Range<f64>) -> impl Iterator<Item = &Done> {
        self.done.iter().filter(move |done| when.contains(&done.at))
    }

    /// A percentile of the latency in seconds, of what was opened then.
    pub(super) fn percentile(&self, of_100: f64, when: Range<f64>) -> f64 {
        let mut all: Vec<f64> = self.within(when).filter_map(|done| done.latency).collect();
        all.sort_unstable_by(f64::total_cmp);
        let rank = (all.len() as f64 * of_100 / 100.0) as usize;
        all.get(rank.min(all.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    }

    /// Connections a second that came to a good end.
    pub(super) fn throughput(&self, when: Range<f64>) -> f64 {
        let long = when.end - when.start;
        self.within(when)
            .filter(|done| done.latency.is_some())
            .count() as f64
            / long
    }

    /// The part that stayed on its node.
    pub(super) fn locality(&self, when: Range<f64>) -> f64 {
        let all = self.within(when.clone()).count();
        self.within(when).filter(|done| done.local).count() as f64 / all.max(1) as f64
    }

    /// How many were refused.
    pub(super) fn refused(&self, when: Range<f64>) -> usize {
        self.within(when)
            .filter(|done| done.latency.is_none())
            .count()
    }
}
