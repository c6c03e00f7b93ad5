//! The cache's state, without I/O: objects by key, a ring of recent changes, watchers by what they watch.

use std::borrow::Borrow;
use std::cmp;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::{Change, Expired, Object};
use crate::store::Revision;

/// How many changes, and how many bytes of JSON in them, the ring keeps for watchers that resume.
const RING_CHANGES: usize = 16_384;
const RING_BYTES: usize = 8 << 20;
/// How many changes, and how many bytes of JSON in them, a watcher may lag behind before it is ended. One change may be
/// larger.
const LAG: usize = 1_024;
const LAG_BYTES: usize = 8 << 20;

/// An object ordered by its key, so that the key is kept once.
struct ByKey(Arc<Object>);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

struct Watcher {
    after: Revision,
    changes: mpsc::Sender<Change>,
    /// Bytes of what was sent and is not received.
    queued: Arc<AtomicUsize>,
}

impl Watcher {
    /// False when the client is gone or too slow.
    fn send(&self, change: &Change) -> bool {
        let weight = weight(change);
        let before = self.queued.fetch_add(weight, Ordering::Relaxed);
        let fits = before == 0 || before + weight <= LAG_BYTES;
        fits && self.changes.try_send(change.clone()).is_ok()
    }
}

/// Where a watcher gets what follows.
pub(super) struct Live {
    changes: mpsc::Receiver<Change>,
    queued: Arc<AtomicUsize>,
}

impl Live {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Change>> {
        let next = self.changes.poll_recv(cx);
        if let Poll::Ready(Some(change)) = &next {
            self.queued.fetch_sub(weight(change), Ordering::Relaxed);
        }
        next
    }

    /// Whether nothing is waiting, and more may come.
    pub(super) fn is_abreast(&self) -> bool {
        self.changes.is_empty() && !self.changes.is_closed()
    }

    pub(super) fn close(&mut self) {
        self.changes.close();
    }
}

pub(super) struct State {
    objects: BTreeSet<ByKey>,
    revision: Revision,
    ring: VecDeque<Change>,
    ring_bytes: usize,
    /// A watcher may resume after this revision or a later one.
    oldest: Revision,
    /// By prefix (ending with a slash) or key. A change looks up its own few prefixes, so it costs as much as it has watchers.
    watchers: HashMap<String, Vec<Watcher>>,
}

impl State {
    pub(super) fn new(objects: Vec<Object>, revision: Revision) -> Self {
        Self {
            objects: objects
                .into_iter()
                .map(|object| ByKey(Arc::new(object)))
                .collect(),
            revision,
            ring: VecDeque::new(),
            ring_bytes: 0,
            oldest: revision,
            watchers: HashMap::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key).map(|o| o.0.clone())
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<Arc<Object>> {
        self.below(prefix).cloned().collect()
    }

    /// The objects whose keys start with `prefix`.
    pub(super) fn below(&self, prefix: &str) -> impl Iterator<Item = &Arc<Object>> {
        use std::ops::Bound::{Included, Unbounded};
        self.objects
            .range::<str, _>((Included(prefix), Unbounded))
            .map(|o| &o.0)
            .take_while(move |o| o.key.starts_with(prefix))
    }

    pub(super) fn put(&mut self, object: Object) {
        let object = Arc::new(object);
        let previous = self.objects.replace(ByKey(object.clone())).map(|o| o.0);
        self.record(Change::Put { object, previous });
    }

    /// `key` was deleted at `revision`.
    pub(super) fn delete(&mut self, key: &str, revision: Revision) {
        match self.objects.take(key) {
            Some(ByKey(previous)) => self.record(Change::Delete {
                object: Arc::new(previous.deleted(revision)),
                previous,
            }),
            None => self.advance(revision),
        }
    }

    /// Nothing up to `revision` is still to come.
    pub(super) fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    fn record(&mut self, change: Change) {
        self.advance(change.revision());
        self.dispatch(&change);
        self.ring_bytes += weight(&change);
        self.ring.push_back(change);
        while self.ring.len() > RING_CHANGES || self.ring_bytes > RING_BYTES {
            let Some(old) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= weight(&old);
            self.oldest = old.revision();
        }
    }

    fn dispatch(&mut self, change: &Change) {
        let Some(object) = change.object() else {
            return;
        };
        let key = object.key.as_str();
        let prefixes = key.match_indices('/').map(|(at, _)| &key[..=at]);
        for prefix in prefixes.chain([key]) {
            let Some(watchers) = self.watchers.get_mut(prefix) else {
                continue;
            };
            // A watcher that is gone or too slow is let go; its stream ends once it has read what it was sent.
            watchers.retain(|w| change.revision() <= w.after || w.send(change));
            if watchers.is_empty() {
                self.watchers.remove(prefix);
            }
        }
    }

    /// What a new watcher has missed, and where it gets what follows.
    pub(super) fn watch(
        &mut self,
        prefix: &str,
        after: Option<Revision>,
    ) -> Result<(VecDeque<Change>, Live), Expired> {
        let after = after.unwrap_or(self.revision);
        if after < self.oldest {
            return Err(Expired {
                asked: after,
                oldest: self.oldest,
            });
        }
        let first = self
            .ring
            .partition_point(|change| change.revision() <= after);
        let matches = |change: &&Change| {
            let key = change.object().map_or("", |object| &object.key);
            key == prefix || (prefix.ends_with('/') && key.starts_with(prefix))
        };
        let replay = self.ring.range(first..).filter(matches).cloned().collect();
        let (changes, received) = mpsc::channel(LAG);
        let queued = Arc::new(AtomicUsize::new(0));
        let live = Live {
            changes: received,
            queued: queued.clone(),
        };
        let watchers = self.watchers.entry(prefix.to_owned()).or_default();
        watchers.push(Watcher {
            after,
            changes,
            queued,
        });
        Ok((replay, live))
    }

    /// Forgets the watchers of a prefix whose clients have gone.
    pub(super) fn sweep(&mut self, prefix: &str) {
        if let Some(watchers) = self.watchers.get_mut(prefix) {
            watchers.retain(|w| !w.changes.is_closed());
            if watchers.is_empty() {
                self.watchers.remove(prefix);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn watchers(&self) -> usize {
        self.watchers.values().map(Vec::len).sum()
    }

    /// Starts anew from another picture of the store. What happened in between is unknown, so every watcher is ended.
    pub(super) fn reset(&mut self, objects: Vec<Object>, revision: Revision) {
        *self = Self::new(objects, revision);
    }
}

fn weight(change: &Change) -> usize {
    change.object().map_or(0, |object| object.json.len())
}
