//! Where objects live: revisioned keys, compare-and-swap, watch. [`Store`] has two implementations, embedded and etcd,
//! with the same answers to the same history.
//!
//! Keys are `/registry/<group>/<resource>/<namespace>/<name>` (no group segment for the core group, no namespace segment
//! for cluster-scoped kinds). Values are the objects' JSON without `metadata.resourceVersion`: that is the revision of the
//! last write, which the store knows. What several API servers have to agree on and is no object is under `/registry/kernelet/`.

pub mod cache;
pub mod compaction;
pub mod embedded;
pub mod etcd;
#[cfg(test)]
mod suite;

use bytes::Bytes;
use futures::stream::BoxStream;

/// A point in the store's history. Every write takes the next one; the store starts at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A key with its value as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// When this key last came into being.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
}

/// What a write demands of the key's present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Modified(Revision),
}

impl Expect {
    /// Whether the key may be written whose entry is `current`.
    fn is_met_by(self, current: Option<&Entry>) -> bool {
        match self {
            Expect::Absent => current.is_none(),
            Expect::Modified(revision) => current.is_some_and(|entry| entry.modified == revision),
        }
    }
}

/// A change of one key, if that is as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    /// None deletes.
    pub value: Option<Bytes>,
    pub expect: Expect,
}

impl Write {
    /// Writes `value` if the key is as expected.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>, expect: Expect) -> Self {
        Self {
            key: key.into(),
            value: Some(value.into()),
            expect,
        }
    }

    /// Deletes the key if it was last written at `modified`.
    pub fn delete(key: impl Into<String>, modified: Revision) -> Self {
        Self {
            key: key.into(),
            value: None,
            expect: Expect::Modified(modified),
        }
    }
}

/// Part of the keyspace, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub entries: Vec<Entry>,
    /// How many more entries follow the last one.
    pub remaining: u64,
    /// The revision that this is a picture of.
    pub revision: Revision,
}

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put {
        entry: Entry,
        previous: Option<Entry>,
    },
    /// `revision` is the delete's own; `previous` is what was deleted.
    Delete { previous: Entry, revision: Revision },
}

impl Event {
    /// The revision that this change is.
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put { entry, .. } => entry.modified,
            Event::Delete { revision, .. } => *revision,
        }
    }

    /// The key that it changed.
    pub fn key(&self) -> &str {
        match self {
            Event::Put { entry, .. } => &entry.key,
            Event::Delete { previous, .. } => &previous.key,
        }
    }
}

/// What a watch yields: every change in order, each once, and from time to time a proof that nothing older is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    Event(Event),
    Progress(Revision),
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not as [`Expect`] demanded. `current` is what is there.
    #[error("{key}: the expected state is not the present one")]
    Conflict { key: String, current: Option<Entry> },
    /// History before `oldest` is gone: list again and watch from there.
    #[error("revision {asked:?} has been compacted; the oldest kept is {oldest:?}")]
    Compacted { asked: Revision, oldest: Revision },
    /// A revision that has not happened yet.
    #[error("revision {asked:?} is in the future; the store is at {current:?}")]
    Future { asked: Revision, current: Revision },
    /// The store cannot answer now. The write may or may not have happened.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The disk or the database file failed.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A revisioned key-value store with the semantics of etcd's KV and Watch services, as far as Kubernetes uses them.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest entry of a key, and the revision of the answer.
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError>;
    /// The entries whose keys start with `prefix` and are greater than `after`, at most `limit` (0: all), at revision `at`
    /// (None: now).
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Range, StoreError>;
    /// Does all of the writes, of different keys, or none: the first whose key is not as expected is the conflict.
    /// Acknowledged means durable. Gives the revision of the first write; those of the others are the same or the next ones.
    async fn commit(&self, writes: Vec<Write>) -> Result<Revision, StoreError>;
    /// Writes `value` if the key is as expected.
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Revision, StoreError> {
        self.commit(vec![Write::put(key, value, expect)]).await
    }
    /// Deletes the key if it was last written at `modified`.
    async fn delete(&self, key: &str, modified: Revision) -> Result<Revision, StoreError> {
        self.commit(vec![Write::delete(key, modified)]).await
    }
    /// Every change under `prefix` later than `after`. Ends with an error when it cannot go on without a gap.
    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Watched, StoreError>>, StoreError>;
    /// The revision of the last write, as a linearizable read.
    async fn revision(&self) -> Result<Revision, StoreError>;
    /// Forgets history older than `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
