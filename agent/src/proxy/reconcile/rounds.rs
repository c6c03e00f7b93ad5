//! When what flips left behind is removed. Pure: the time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// From when something is left behind to the round that finds it, and from that to the one that removes it: so long a lookup
/// may still read the rows, which takes microseconds. A backend that goes has its sockets closed after two rounds.
pub(in crate::proxy) const EACH: Duration = Duration::from_millis(250);
const REPEAT_MOST: Duration = Duration::from_secs(30);

/// When the next round is due.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// For what is left behind.
    fresh: Option<Instant>,
    /// For removals that failed. Their waiting holds up nothing else.
    again: Option<Instant>,
    failures: u32,
}

impl Rounds {
    /// Something is left behind.
    pub(super) fn want(&mut self, now: Instant) {
        self.fresh.get_or_insert(now + EACH);
    }

    /// Some removals failed, and are to be repeated.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let at = now + self.pause();
        self.again.get_or_insert(at);
    }

    /// No removal failed that was tried.
    pub(super) fn done(&mut self) {
        (self.again, self.failures) = (None, 0);
    }

    /// How long those that failed wait: the longer, the more often.
    pub(super) fn pause(&self) -> Duration {
        EACH.saturating_mul(1 << self.failures.min(16))
            .min(REPEAT_MOST)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.fresh.into_iter().chain(self.again).min()
    }

    /// Whether a round is due, which then begins.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_due = self.next().is_some_and(|at| at <= now);
        if is_due {
            (self.fresh, self.again) = (None, None);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fails_waits_longer_each_time_and_no_longer_than_half_a_minute() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        let waits: Vec<_> = (0..9)
            .map(|_| {
                rounds.failed(now);
                let at = rounds.next().unwrap();
                assert!(rounds.begin(at) && rounds.next().is_none());
                (at - now).as_millis()
            })
            .collect();
        assert_eq!(
            waits,
            [
                500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000
            ]
        );
        rounds.done();
        assert_eq!((rounds.next(), rounds.pause()), (None, EACH));
    }

    proptest! {
        /// A backend's sockets are closed in the second round after it went: half a second later, whatever fails meanwhile.
        #[test]
        fn what_goes_has_two_rounds_within_a_second_whatever_failed_before(
            failed in 0..20_u32, steps in prop::collection::vec((0..400_u64, any::<bool>()), 0..20),
        ) {
            let (mut rounds, mut now) = (Rounds::default(), Instant::now());
            for _ in 0..failed {
                rounds.failed(now);
            }
            // What goes on when the backend goes: rounds for others, that fail or do not.
            for (wait, fails) in steps {
                now += Duration::from_millis(wait);
                rounds.want(now);
                if rounds.begin(now) && fails {
                    rounds.failed(now);
                }
            }
            let gone = now;
            for _ in 0..2 {
                rounds.want(now);
                now = now.max(rounds.next().unwrap());
                prop_assert!(rounds.begin(now));
                rounds.failed(now);
            }
            prop_assert!(now - gone <= 2 * EACH, "{:?}", now - gone);
            prop_assert!(2 * EACH <= Duration::from_millis(500));
        }
    }
}
