//! The watch cache: the whole keyspace and its recent changes in memory, fed by one watch of the store. It answers get,
//! list and watch, and keeps each object's bytes as they go on the wire, so that a read or a thousand watchers cost
//! copies, not serialization.

mod feed;
mod object;
mod state;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Revision, Store, StoreError};

pub use object::{Change, Index, Object};
use state::State;
pub use watch::{Expired, Watch};

/// What the cache holds: everything that this control plane stores.
const PREFIX: &str = "/registry/";
/// What of it is no object, and not held.
const PRIVATE: &str = "/registry/kernelet/";
/// So many revisions before the newest the cache begins, if the store still knows them: clients that were watching another
/// server, or this one before it was started again, go on from where they are. Compaction leaves more.
const PAST: u64 = 8_192;
/// How long a read waits for the cache to reach the revision that it needs.
const PATIENCE: Duration = Duration::from_secs(3);

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// As new as the store at the time of the call (`resourceVersion` unset).
    Latest,
    /// At least this revision (`resourceVersion=N`).
    NotOlderThan(Revision),
    /// Whatever is in memory (`resourceVersion=0`).
    Any,
}

/// Objects in key order, as of `revision`.
#[derive(Clone, Debug)]
pub struct Listing {
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
}

/// Why a read was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The asked revision did not arrive in time: it is from the future, or the store's watch is behind or broken.
    #[error("revision {} is not here yet; the cache is at {}", asked.0, current.0)]
    Behind { asked: Revision, current: Revision },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The cache. Dropping the last handle ends its watch of the store.
pub struct Cache {
    store: Arc<dyn Store>,
    index: Index,
    state: RwLock<State>,
    /// The revision of `state`, for those who wait for one. Moved after `state`.
    reached: tokio::sync::watch::Sender<Revision>,
    /// Tells that the watch of the store is behind the store itself.
    stalled: Arc<Notify>,
    /// Ends the watch of the store.
    _following: DropGuard,
}

impl Cache {
    /// Loads everything as it was a while ago, and follows the store from there to the present and on. `index` gives the
    /// fields that selectors can ask of an object, from its key and JSON. Waits for the store as long as it is away.
    pub async fn start(store: Arc<dyn Store>, index: Index) -> Result<Arc<Self>, StoreError> {
        let present = store.revision().await?;
        let (objects, revision) = feed::load_past(&*store, index, present).await?;
        let stop = CancellationToken::new();
        let cache = Arc::new(Self {
            store,
            index,
            state: RwLock::new(State::new(objects, revision)),
            reached: tokio::sync::watch::Sender::new(revision),
            stalled: Arc::default(),
            _following: stop.clone().drop_guard(),
        });
        let follow = feed::follow(Arc::downgrade(&cache), revision);
        tokio::spawn(async move { stop.run_until_cancelled(follow).await });
        let mut reached = cache.reached.subscribe();
        // The sender lives in the cache, so the wait itself cannot fail.
        while tokio::time::timeout(PATIENCE, reached.wait_for(|at| *at >= present))
            .await
            .is_err()
        {
            tracing::warn!(
                revision = cache.revision().0,
                present = present.0,
                "the store does not deliver what is in it; waiting for it"
            );
        }
        Ok(cache)
    }

    /// The object at `key`, and the revision of the answer.
    pub async fn get(
        &self,
        key: &str,
        freshness: Freshness,
    ) -> Result<(Option<Arc<Object>>, Revision), ReadError> {
        self.fresh(freshness).await?;
        Ok(self.read(|state| (state.get(key), state.revision())))
    }

    /// The object at `key` if it is in memory as it was written at `revision`.
    pub fn at(&self, key: &str, revision: Revision) -> Option<Arc<Object>> {
        let object = self.read(|state| state.get(key))?;
        (object.revision == revision).then_some(object)
    }

    /// The objects whose keys start with `prefix`, which ends with a slash.
    pub async fn list(&self, prefix: &str, freshness: Freshness) -> Result<Listing, ReadError> {
        self.fresh(freshness).await?;
        Ok(self.read(|state| Listing {
            objects: state.list(prefix),
            revision: state.revision(),
        }))
    }

    /// How many objects have keys that start with `prefix`, as far as the cache has come.
    pub fn count(&self, prefix: &str) -> usize {
        self.read(|state| state.below(prefix).count())
    }

    /// The changes later than `after` (None: later than now) under `prefix` if that ends with a slash, else to that one key.
    ///
    /// The stream ends when the watcher is too slow or the cache cannot go on without a gap; the client then watches again
    /// from where it is, and lists again if that is refused.
    pub fn watch(
        self: &Arc<Self>,
        prefix: &str,
        after: Option<Revision>,
    ) -> Result<Watch, Expired> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (replay, live) = state.watch(prefix, after)?;
        Ok(Watch::new(self.clone(), prefix.to_owned(), replay, live))
    }

    /// The revision that the cache has reached.
    pub fn revision(&self) -> Revision {
        *self.reached.borrow()
    }

    /// Waits until the cache has reached `revision`, so that a writer reads its own write.
    pub async fn wait(&self, revision: Revision) -> Result<(), ReadError> {
        let mut reached = self.reached.subscribe();
        let arrived = reached.wait_for(|at| *at >= revision);
        // The sender lives in `self`, so the wait itself cannot fail.
        match tokio::time::timeout(PATIENCE, arrived).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ReadError::Behind {
                asked: revision,
                current: self.revision(),
            }),
        }
    }

    async fn fresh(&self, freshness: Freshness) -> Result<(), ReadError> {
        match freshness {
            Freshness::Any => Ok(()),
            Freshness::NotOlderThan(revision) => self.wait(revision).await,
            Freshness::Latest => {
                let present = self.store.revision().await?;
                let waited = self.wait(present).await;
                if waited.is_err() {
                    // It may be a watch of a member of etcd that is cut off, which is not noticed for long.
                    self.stalled.notify_waiters();
                }
                waited
            }
        }
    }

    /// Forgets the watchers of a prefix that have been dropped.
    fn sweep(&self, prefix: &str) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.sweep(prefix);
    }

    fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state, then tells those who wait for its revision.
    fn update(&self, f: impl FnOnce(&mut State)) {
        let revision = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            f(&mut state);
            state.revision()
        };
        self.reached.send_replace(revision);
    }
}
