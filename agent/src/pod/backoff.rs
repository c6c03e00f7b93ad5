//! How long to wait before trying again.

use jiff::{SignedDuration, Timestamp};

/// The first wait before a container or a pull is tried again, which every further failure doubles, and the longest.
const RUN: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(10), SignedDuration::from_mins(5));

/// The same for what a container needs before it can be made. It often waits for an object that is about to come.
const SET_UP: (SignedDuration, SignedDuration) = (
    SignedDuration::from_millis(500),
    SignedDuration::from_secs(30),
);

/// A container that ran this long counts as healthy: its next failure is a first one again.
const HEALTHY: SignedDuration = SignedDuration::from_mins(10);

/// The wait after `failures` failures in a row: none after none, then 10 s, 20 s and so on to 5 minutes.
pub(super) fn delay(failures: u32) -> SignedDuration {
    doubled(RUN, failures)
}

/// The wait after `failures` failures in a row to prepare something: 0.5 s, 1 s and so on to 30 seconds.
pub(super) fn set_up_delay(failures: u32) -> SignedDuration {
    doubled(SET_UP, failures)
}

fn doubled((first, longest): (SignedDuration, SignedDuration), failures: u32) -> SignedDuration {
    match failures {
        0 => SignedDuration::ZERO,
        n => first.saturating_mul(1 << (n - 1).min(20)).min(longest),
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
        assert_eq!(delay(u32::MAX), RUN.1);
    }

    #[test]
    fn what_is_missing_is_looked_for_again_soon() {
        let waits: Vec<i128> = (0..9).map(|n| set_up_delay(n).as_millis()).collect();
        assert_eq!(
            waits,
            [0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
        );
        assert_eq!(set_up_delay(u32::MAX), SET_UP.1);
    }

    #[test]
    fn ten_minutes_of_health_begin_anew() {
        let start = Timestamp::UNIX_EPOCH;
        assert_eq!(streak(4, start, start + SignedDuration::from_secs(599)), 4);
        assert_eq!(streak(4, start, start + SignedDuration::from_secs(600)), 0);
    }
}
