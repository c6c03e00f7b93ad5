//! How long a failed watch waits before it tries again.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(400);
/// Services change while an API server restarts elsewhere; nobody should wait long for this node to look again.
const MOST: Duration = Duration::from_secs(10);
/// A watch that has failed less long ago has not recovered, whatever it says: each try begins with a good event.
const CALM: Duration = Duration::from_secs(30);

/// Doubles from [`FIRST`] to [`MOST`]. Each wait is between a half and the whole of it, so that nodes that lost the same
/// server do not come back together.
#[derive(Debug)]
pub(super) struct Retry {
    next: Duration,
    failed_at: Instant,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self {
            next: FIRST,
            failed_at: Instant::now(),
        }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next.mul_f64(rand::random_range(0.5..=1.0));
        self.next = (self.next * 2).min(MOST);
        self.failed_at = Instant::now();
        Some(wait)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        if self.failed_at.elapsed() > CALM {
            self.next = FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_a_fresh_failure_is_not_forgotten() {
        let mut retry = Retry::new();
        let waits: Vec<Duration> = retry.by_ref().take(8).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits[7] >= MOST / 2 && waits[7] <= MOST);
        retry.reset();
        assert!(retry.next().unwrap() >= MOST / 2);
        retry.failed_at = Instant::now().checked_sub(2 * CALM).unwrap();
        retry.reset();
        assert!(retry.next().unwrap() <= FIRST);
    }
}
