//! How long to wait before trying again.

use jiff::{SignedDuration, Timestamp};

/// The first wait, which every further failure doubles.
const FIRST: SignedDuration = SignedDuration::from_secs(10);

/// The longest wait.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// A container that ran this long counts as healthy: its next failure is a first one again.
const HEALTHY: SignedDuration = SignedDuration::from_mins(10);

/// The wait after `failures` failures in a row: none after none, then 10 s, 20 s and so on to 5 minutes.
pub(super) fn delay(failures: u32) -> SignedDuration {
    match failures {
        0 => SignedDuration::ZERO,
        n => FIRST.saturating_mul(1 << (n - 1).min(5)).min(LONGEST),
    }
}

/// How many restarts in a row came soon after a start, for a container that ran from `started` to `ended` and was itself
/// the `streak`th of them.
pub(super) fn streak(streak: u32, started: Timestamp, ended: Timestamp) -> u32 {
    if ended.duration_since(started) >= HEALTHY {
        0
    } else {
        streak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let seconds: Vec<i64> = (0..8).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delay(u32::MAX), LONGEST);
    }

    #[test]
    fn ten_minutes_of_health_begin_anew() {
        let start = Timestamp::UNIX_EPOCH;
        assert_eq!(streak(4, start, start + SignedDuration::from_secs(599)), 4);
        assert_eq!(streak(4, start, start + SignedDuration::from_secs(600)), 0);
    }
}
