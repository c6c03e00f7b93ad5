//! What was asked of the API server and has not come back through the watch yet. Until it has, the cache is known to be
//! behind, and counting pods in it would create or delete them twice.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// A watch that lost an event must not stop the controller for ever.
const EXPIRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Pending {
    creates: usize,
    /// By the pod's uid: a pod that is being deleted is seen several times.
    deletes: HashSet<String>,
    since: Instant,
}

/// By the owner's uid.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    pending: HashMap<String, Pending>,
}

impl Expectations {
    pub(super) fn expect(
        &mut self,
        owner: &str,
        creates: usize,
        deletes: HashSet<String>,
        now: Instant,
    ) {
        if creates > 0 || !deletes.is_empty() {
            self.pending.insert(
                owner.to_owned(),
                Pending {
                    creates,
                    deletes,
                    since: now,
                },
            );
        }
    }

    /// A pod appeared, or its creation failed.
    pub(super) fn created(&mut self, owner: &str) {
        if let Some(pending) = self.pending.get_mut(owner) {
            pending.creates = pending.creates.saturating_sub(1);
            self.settle(owner);
        }
    }

    /// A pod terminates, is gone, or could not be deleted.
    pub(super) fn deleted(&mut self, owner: &str, pod: &str) {
        if let Some(pending) = self.pending.get_mut(owner) {
            pending.deletes.remove(pod);
            self.settle(owner);
        }
    }

    pub(super) fn forget(&mut self, owner: &str) {
        self.pending.remove(owner);
    }

    /// How long to wait at most before the cache may be trusted; `None`: it may be now.
    pub(super) fn wait(&self, owner: &str, now: Instant) -> Option<Duration> {
        let pending = self.pending.get(owner)?;
        let waited = now.saturating_duration_since(pending.since);
        (waited < EXPIRY).then(|| EXPIRY - waited)
    }

    fn settle(&mut self, owner: &str) {
        if self
            .pending
            .get(owner)
            .is_some_and(|pending| pending.creates == 0 && pending.deletes.is_empty())
        {
            self.pending.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_trusted_when_all_that_was_asked_for_was_seen() {
        let mut expectations = Expectations::default();
        let now = Instant::now();
        assert_eq!(expectations.wait("rs", now), None);
        expectations.expect("rs", 2, HashSet::from(["p".to_owned()]), now);
        expectations.created("rs");
        expectations.created("rs");
        assert!(expectations.wait("rs", now).is_some());
        expectations.deleted("rs", "other");
        expectations.deleted("rs", "p");
        assert_eq!(expectations.wait("rs", now), None);
    }

    #[test]
    fn a_lost_event_is_not_waited_for_for_ever() {
        let mut expectations = Expectations::default();
        let now = Instant::now();
        expectations.expect("rs", 1, HashSet::new(), now);
        assert_eq!(
            expectations.wait("rs", now + EXPIRY - Duration::from_secs(1)),
            Some(Duration::from_secs(1))
        );
        assert_eq!(expectations.wait("rs", now + EXPIRY), None);
    }
}
