//! By when a pod that is being deleted has to be gone. Pure.

use jiff::{SignedDuration, Timestamp};

use super::spec::PodView;

/// The least time that containers get to end by themselves, as upstream gives them.
pub const LEAST: SignedDuration = SignedDuration::from_secs(2);

/// A deletion as this node saw it. The object's `deletionTimestamp` is of no use: another machine's clock made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    grace: SignedDuration,
    pub(super) by: Timestamp,
}

impl Deletion {
    /// What `pod` asks for, after what was known before. Somebody in a hurry may shorten the time, nobody prolongs it.
    pub(super) fn seen(
        before: Option<Deletion>,
        pod: &PodView,
        now: Timestamp,
    ) -> Option<Deletion> {
        if !pod.is_being_deleted() {
            return before;
        }
        let asked = pod.object.metadata.deletion_grace_period_seconds;
        let grace = asked.map_or(pod.grace(), SignedDuration::from_secs);
        let grace = grace.max(LEAST);
        let by = now.checked_add(grace).unwrap_or(Timestamp::MAX);
        Some(match before {
            Some(before) if before.grace <= grace => before,
            Some(before) => Deletion {
                grace,
                by: by.min(before.by),
            },
            None => Deletion { grace, by },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deleted(grace: i64) -> PodView {
        let object = json!({
            "metadata": {
                "name": "p", "namespace": "d", "uid": "u",
                "deletionTimestamp": "2001-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace,
            },
            "spec": {"containers": []},
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn the_time_begins_when_this_node_sees_the_deletion() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000_000 + seconds).unwrap();
        let first = Deletion::seen(None, &deleted(30), at(0));
        assert_eq!(first.unwrap().by, at(30), "whatever the API server's clock");
        let again = Deletion::seen(first, &deleted(30), at(10));
        assert_eq!(again, first, "another look changes nothing");
        let sooner = Deletion::seen(first, &deleted(5), at(10));
        assert_eq!(sooner.unwrap().by, at(15));
        assert_eq!(Deletion::seen(sooner, &deleted(60), at(11)), sooner);
        let late = Deletion::seen(first, &deleted(20), at(25));
        assert_eq!(late.unwrap().by, at(30), "it is never prolonged");
        let at_once = Deletion::seen(None, &deleted(0), at(0));
        assert_eq!(at_once.unwrap().by, at(2), "time for a signal");
    }
}
