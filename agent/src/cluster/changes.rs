//! Who is told of changes, and how: each subscriber has a set of what is pending, so a burst costs one entry an object
//! and a slow subscriber never holds anybody up or misses anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::Notify;

use super::view::Change;

/// Pending changes, each with the moment at which it was first seen.
pub type Pending = BTreeMap<Change, Instant>;

#[derive(Debug, Default)]
struct Mailbox {
    pending: Mutex<Pending>,
    arrived: Notify,
}

impl Mailbox {
    fn add(&self, changes: impl IntoIterator<Item = Change>, now: Instant) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            pending.entry(change).or_insert(now);
        }
        drop(pending);
        self.arrived.notify_one();
    }

    fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One subscriber's end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Changes(Arc<Mailbox>);

impl Changes {
    /// Waits until something is pending and takes all of it. Cancel-safe: what is not returned stays pending.
    pub async fn next(&mut self) -> Pending {
        loop {
            let pending = self.0.take();
            if !pending.is_empty() {
                return pending;
            }
            // `notify_one` leaves a permit when nobody waits yet, so nothing added in between is slept through.
            self.0.arrived.notified().await;
        }
    }

    /// Takes what is pending without waiting.
    pub fn try_next(&mut self) -> Pending {
        self.0.take()
    }
}

/// The publisher's end.
#[derive(Debug, Default)]
pub(super) struct Subscribers(Mutex<Vec<Weak<Mailbox>>>);

impl Subscribers {
    /// A new subscriber, for whom `known` is pending already.
    pub(super) fn add(&self, known: impl IntoIterator<Item = Change>) -> Changes {
        let mailbox = Arc::new(Mailbox::default());
        mailbox.add(known, Instant::now());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(&mailbox));
        Changes(mailbox)
    }

    pub(super) fn publish(&self, changes: &[Change]) {
        let now = Instant::now();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|subscriber| {
                let Some(mailbox) = subscriber.upgrade() else {
                    return false;
                };
                mailbox.add(changes.iter().cloned(), now);
                true
            });
    }
}
