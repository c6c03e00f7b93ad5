//! Pods that found no node: when each is tried again. No I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::snapshot::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Tried again after this even if nothing changed: an event may have been lost.
const RESYNC: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Waiting {
    pod: PodInfo,
    attempts: u32,
    /// Not before this, whatever changes.
    backed_off_until: Instant,
    /// Not later than this, even if nothing changes.
    resync_at: Instant,
    /// Something changed since the last try.
    nudged: bool,
}

impl Waiting {
    fn due(&self) -> Instant {
        if self.nudged {
            self.backed_off_until
        } else {
            self.resync_at
        }
    }
}

/// By the pod's uid.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: HashMap<String, Waiting>,
    /// Failed tries of pods that are being tried.
    attempts: HashMap<String, u32>,
}

impl Queue {
    /// The pod found no node or could not be bound to it.
    pub(super) fn put_off(&mut self, pod: PodInfo, now: Instant) {
        let attempts = self.attempts.remove(&pod.uid).unwrap_or_default() + 1;
        let backoff = FIRST_BACKOFF
            .saturating_mul(1 << (attempts - 1).min(10))
            .min(MAX_BACKOFF);
        self.waiting.insert(
            pod.uid.clone(),
            Waiting {
                pod,
                attempts,
                backed_off_until: now + backoff,
                resync_at: now + RESYNC,
                nudged: false,
            },
        );
    }

    /// A node or a pod changed so that others might fit now.
    pub(super) fn nudge_all(&mut self) {
        self.waiting
            .values_mut()
            .for_each(|waiting| waiting.nudged = true);
    }

    /// A pod came, went or changed so that those that mind other pods might fit now.
    pub(super) fn nudge_minding(&mut self) {
        self.waiting
            .values_mut()
            .filter(|waiting| waiting.pod.minds_others())
            .for_each(|waiting| waiting.nudged = true);
    }

    /// Tried again when its back-off is over, without waiting for a change.
    pub(super) fn nudge(&mut self, uid: &str) {
        if let Some(waiting) = self.waiting.get_mut(uid) {
            waiting.nudged = true;
        }
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid)
    }

    /// The pod itself was seen again. If what it asks for changed it is tried again.
    pub(super) fn refresh(&mut self, pod: PodInfo) {
        if let Some(waiting) = self.waiting.get_mut(&pod.uid) {
            waiting.nudged |= waiting.pod != pod;
            waiting.pod = pod;
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.waiting.remove(uid);
        self.attempts.remove(uid);
    }

    /// Forgets the pods that `is_there` does not know.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.waiting.retain(|uid, _| is_there(uid));
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(Waiting::due).min()
    }

    /// Takes out the pods whose time has come, the most important first.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PodInfo> {
        let due: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.due() <= now)
            .map(|(uid, _)| uid.clone())
            .collect();
        let mut pods = Vec::with_capacity(due.len());
        for uid in due {
            if let Some(waiting) = self.waiting.remove(&uid) {
                self.attempts.insert(uid, waiting.attempts);
                pods.push(waiting.pod);
            }
        }
        pods.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.uid.cmp(&b.uid)));
        pods
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Toleration;

    use super::*;
    use crate::controllers::testing;

    fn pod(name: &str) -> PodInfo {
        PodInfo::of(&testing::pod(name).build())
    }

    #[test]
    fn a_pod_waits_for_a_change_and_for_its_back_off() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.put_off(pod("a"), start);
        assert!(
            queue.take_due(start + Duration::from_secs(1)).is_empty(),
            "nothing changed"
        );
        queue.nudge_all();
        assert!(queue.take_due(start).is_empty(), "too early");
        assert_eq!(queue.next_due(), Some(start + FIRST_BACKOFF));
        assert_eq!(queue.take_due(start + FIRST_BACKOFF).len(), 1);
        queue.put_off(pod("a"), start);
        queue.nudge_all();
        assert_eq!(
            queue.next_due(),
            Some(start + 2 * FIRST_BACKOFF),
            "a second failure waits longer"
        );
    }

    #[test]
    fn a_pod_that_asks_for_something_else_is_tried_again() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.put_off(pod("a"), start);
        queue.refresh(pod("a"));
        assert_eq!(queue.next_due(), Some(start + RESYNC), "only seen again");
        let tolerant = testing::pod("a").with(|pod| {
            pod.spec.as_mut().unwrap().tolerations = Some(vec![Toleration::default()]);
        });
        queue.refresh(PodInfo::of(&tolerant.build()));
        assert_eq!(queue.next_due(), Some(start + FIRST_BACKOFF));
    }

    #[test]
    fn a_lost_change_costs_a_minute_at_most() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.put_off(pod("a"), start);
        assert_eq!(queue.take_due(start + RESYNC).len(), 1);
    }

    #[test]
    fn the_more_important_pod_goes_first() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.put_off(pod("a"), start);
        queue.put_off(
            PodInfo {
                priority: 5,
                ..pod("b")
            },
            start,
        );
        queue.nudge_all();
        let names: Vec<String> = queue
            .take_due(start + MAX_BACKOFF)
            .into_iter()
            .map(|pod| pod.name)
            .collect();
        assert_eq!(names, ["b", "a"]);
    }
}
