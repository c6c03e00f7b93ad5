//! How long a leader may act. It is over when nobody says otherwise, so that a process that was stopped or cut off acts no
//! more when it goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A term of office, shared by the one who renews it and those who act in it.
#[derive(Clone, Debug)]
pub struct Term(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    until: Instant,
    is_over: bool,
}

impl Term {
    /// A term that ends at `until`, unless it is extended.
    pub fn until(until: Instant) -> Self {
        let is_over = false;
        Self(Arc::new(Mutex::new(State { until, is_over })))
    }

    /// A term that is over at some moment is over for good.
    pub fn lasts(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_over |= now >= state.until;
        !state.is_over
    }

    pub fn extend(&self, until: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.until = state.until.max(until);
    }

    pub fn end(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_over = true;
    }

    pub fn left(&self, now: Instant) -> Duration {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_was_over_does_not_begin_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let term = Term::until(at(10));
        assert!(term.lasts(at(9)));
        term.extend(at(15));
        assert!(term.lasts(at(14)) && term.left(at(14)) == Duration::from_secs(1));
        term.extend(at(12));
        assert!(term.lasts(at(14)), "no shorter");
        assert!(!term.lasts(at(15)));
        term.extend(at(30));
        assert!(!term.lasts(at(16)));

        let ended = Term::until(at(10));
        ended.end();
        ended.extend(at(20));
        assert!(!ended.lasts(at(1)));
    }
}
