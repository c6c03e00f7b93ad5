//! The cache's state, without I/O: objects by key, a ring of recent changes, watchers by what they watch.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Change, Expired, Object};
use crate::store::Revision;

/// How many changes, and how many bytes of JSON in them, the ring keeps for watchers that resume.
const RING_CHANGES: usize = 16_384;
const RING_BYTES: usize = 8 << 20;
/// How many changes a watcher may lag behind before it is ended.
const LAG: usize = 1_024;

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
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

struct Watcher {
    after: Revision,
    changes: mpsc::Sender<Change>,
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
        use std::ops::Bound::{Included, Unbounded};
        self.objects
            .range::<str, _>((Included(prefix), Unbounded))
            .take_while(|o| o.0.key.starts_with(prefix))
            .map(|o| o.0.clone())
            .collect()
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
            watchers.retain(|w| {
                change.revision() <= w.after || w.changes.try_send(change.clone()).is_ok()
            });
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
    ) -> Result<(VecDeque<Change>, mpsc::Receiver<Change>), Expired> {
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
        let (changes, live) = mpsc::channel(LAG);
        let watchers = self.watchers.entry(prefix.to_owned()).or_default();
        watchers.push(Watcher { after, changes });
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
