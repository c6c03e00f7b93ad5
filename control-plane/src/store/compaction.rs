//! Forgetting old history in time, the same for every store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Revision, Store, StoreError};

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Nothing younger is forgotten, so that a client may pause this long within a paged list.
    pub age: Duration,
    /// This many revisions are kept however old they are.
    pub least: u64,
    /// More than this many are not kept however young they are: the disk is finite.
    pub most: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(5 * 60),
            least: 10_000,
            most: 200_000,
        }
    }
}

/// Up to where history may go. `past` are revisions with the moments when they were the newest, oldest first.
pub fn target(
    policy: Policy,
    past: &VecDeque<(Instant, Revision)>,
    now: Instant,
    newest: Revision,
) -> Option<Revision> {
    let old = past
        .iter()
        .rev()
        .find(|(seen, _)| now.duration_since(*seen) >= policy.age);
    let by_age = old.map_or(0, |(_, revision)| {
        revision.0.min(newest.0.saturating_sub(policy.least))
    });
    let by_number = newest.0.saturating_sub(policy.most);
    Some(Revision(by_age.max(by_number))).filter(|target| target.0 > 1)
}

/// Compacts the store by `policy` until dropped, looking `every` so often.
pub async fn run(store: Arc<dyn Store>, policy: Policy, every: Duration) {
    let mut past = VecDeque::new();
    let mut done = None;
    loop {
        let newest = match store.revision().await {
            Ok(newest) => newest,
            Err(error) => {
                tracing::warn!(%error, "cannot see how much history there is");
                tokio::time::sleep(every).await;
                continue;
            }
        };
        let now = Instant::now();
        past.push_back((now, newest));
        let target = target(policy, &past, now, newest);
        // One that is old enough suffices; what came before it decides nothing any more.
        while past
            .get(1)
            .is_some_and(|(seen, _)| now.duration_since(*seen) >= policy.age)
        {
            past.pop_front();
        }
        if let Some(target) = target
            && done < Some(target)
        {
            match store.compact(target).await {
                Ok(()) | Err(StoreError::Compacted { .. }) => done = Some(target),
                Err(error) => {
                    tracing::warn!(%error, revision = target.0, "cannot forget old history")
                }
            }
        }
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        age: Duration::from_secs(300),
        least: 100,
        most: 1_000,
    };

    fn at(newest: u64, past: &[(u64, u64)]) -> Option<u64> {
        let now = Instant::now() + Duration::from_hours(1);
        let past = past
            .iter()
            .map(|(ago, revision)| (now - Duration::from_secs(*ago), Revision(*revision)))
            .collect();
        target(POLICY, &past, now, Revision(newest)).map(|r| r.0)
    }

    #[test]
    fn young_history_stays() {
        assert_eq!(at(900, &[]), None);
        assert_eq!(at(900, &[(299, 500), (0, 900)]), None);
    }

    #[test]
    fn old_history_goes_but_for_the_least() {
        assert_eq!(at(900, &[(400, 300), (301, 500), (10, 800)]), Some(500));
        assert_eq!(at(900, &[(301, 880)]), Some(800));
        assert_eq!(at(90, &[(301, 88)]), None);
    }

    #[test]
    fn never_more_than_the_most() {
        assert_eq!(at(5_000, &[(10, 4_000)]), Some(4_000));
    }
}
