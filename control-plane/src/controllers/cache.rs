//! One watch for each kind, shared by all controllers: a map of the objects as last seen, and who wants to hear of changes.
//!
//! Handlers run inline, in the order of the watch, with the object before and after; they do no more than queue a key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, Resource};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Namespace (empty for a cluster-wide kind) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Before and after; `None` means that it was not there.
type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// The words under which an object can be found with [`Cache::by_index`].
type Index<K> = fn(&K) -> Vec<String>;

struct Objects<K> {
    by_key: BTreeMap<Key, Arc<K>>,
    by_word: HashMap<String, BTreeSet<Key>>,
}

/// What the API server last said about one kind.
pub(crate) struct Cache<K> {
    objects: RwLock<Objects<K>>,
    index: Option<Index<K>>,
    /// Drops the fields that no controller reads.
    slim: fn(&mut K),
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    /// Ticks at every change.
    changes: watch::Sender<u64>,
}

/// Longer than a watch ever lags behind a write while the server is well.
pub(super) const READ_OWN_WRITE: Duration = Duration::from_secs(1);

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new(slim: fn(&mut K), index: Option<Index<K>>) -> Arc<Self> {
        Arc::new(Self {
            objects: RwLock::new(Objects {
                by_key: BTreeMap::new(),
                by_word: HashMap::new(),
            }),
            index,
            slim,
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
            changes: watch::Sender::new(0),
        })
    }

    /// Handlers are to be added before [`Cache::run`], so that they see every object once.
    pub(crate) fn on_change(
        &self,
        handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static,
    ) {
        write(&self.handlers).push(Box::new(handler));
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        read(&self.objects).by_key.get(key).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        read(&self.objects).by_key.values().cloned().collect()
    }

    pub(crate) fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        read(&self.objects)
            .by_key
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub(crate) fn by_index(&self, word: &str) -> Vec<Arc<K>> {
        let objects = read(&self.objects);
        let Some(keys) = objects.by_word.get(word) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| objects.by_key.get(key).cloned())
            .collect()
    }

    pub(crate) async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Waits, not for long, until the watch has delivered `written`, so that the next decision knows of it.
    pub(crate) async fn wait_for(&self, written: &K) {
        let key = Key::of(written);
        let wanted = version(written);
        let mut changes = self.changes.subscribe();
        let seen = changes.wait_for(|_| {
            self.get(&key)
                .is_some_and(|known| version(&*known) >= wanted)
        });
        // Whoever deleted it meanwhile made the wait vain; the clock ends it.
        let _ = tokio::time::timeout(READ_OWN_WRITE, seen).await;
    }

    /// Follows the API server until `shutdown`; survives every error with a back-off. Whether it ends or is dropped, there are
    /// no handlers any more then.
    pub(crate) fn run(
        self: Arc<Self>,
        api: Api<K>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        self.run_selected(api, watcher::Config::default(), shutdown)
    }

    /// The same, of the objects that `config` selects.
    pub(super) fn run_selected(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        // Here, and not in what is polled: that may be dropped before.
        let following = Following(self);
        async move { following.0.follow(api, config, shutdown).await }
    }

    async fn follow(&self, api: Api<K>, config: watcher::Config, shutdown: CancellationToken) {
        let events = watcher(api, config).backoff(WatchBackoff::new());
        let mut events = std::pin::pin!(events);
        let mut listed: BTreeMap<Key, Arc<K>> = BTreeMap::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                // Cancel-safe: a stream's `next` holds no state of its own.
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    let object = self.slimmed(object);
                    listed.insert(Key::of(&*object), object);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    self.replace_all(std::mem::take(&mut listed));
                    self.synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => self.apply(self.slimmed(object)),
                Some(Ok(watcher::Event::Delete(object))) => self.remove(&Key::of(&object)),
                Some(Err(error)) => report_watch_error(K::kind(&()).as_ref(), &error),
                None => return,
            }
        }
    }

    fn slimmed(&self, mut object: K) -> Arc<K> {
        object.meta_mut().managed_fields = None;
        (self.slim)(&mut object);
        Arc::new(object)
    }

    /// What a watch event does; tests call it instead of a watch.
    pub(crate) fn apply(&self, object: Arc<K>) {
        let key = Key::of(&*object);
        let old = {
            let mut objects = write(&self.objects);
            let old = objects.by_key.insert(key.clone(), object.clone());
            self.reindex(&mut objects, &key, old.as_deref(), Some(&object));
            old
        };
        self.tell(old.as_ref(), Some(&object));
    }

    pub(crate) fn remove(&self, key: &Key) {
        let old = {
            let mut objects = write(&self.objects);
            let old = objects.by_key.remove(key);
            self.reindex(&mut objects, key, old.as_deref(), None);
            old
        };
        if old.is_some() {
            self.tell(old.as_ref(), None);
        }
    }

    fn replace_all(&self, listed: BTreeMap<Key, Arc<K>>) {
        let gone: Vec<Key> = read(&self.objects)
            .by_key
            .keys()
            .filter(|key| !listed.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            self.remove(&key);
        }
        for object in listed.into_values() {
            let known = self.get(&Key::of(&*object));
            if known
                .is_none_or(|known| known.meta().resource_version != object.meta().resource_version)
            {
                self.apply(object);
            }
        }
    }

    fn reindex(&self, objects: &mut Objects<K>, key: &Key, old: Option<&K>, new: Option<&K>) {
        let Some(index) = self.index else { return };
        let before = old.map(index).unwrap_or_default();
        let after = new.map(index).unwrap_or_default();
        if before == after {
            return;
        }
        for word in before {
            if let Some(keys) = objects.by_word.get_mut(&word) {
                keys.remove(key);
                if keys.is_empty() {
                    objects.by_word.remove(&word);
                }
            }
        }
        for word in after {
            objects.by_word.entry(word).or_default().insert(key.clone());
        }
    }

    fn tell(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for handler in read(&self.handlers).iter() {
            handler(old, new);
        }
        self.changes.send_modify(|count| *count += 1);
    }
}

/// A cache that is followed. Handlers hold other caches, and those the handlers that hold this one: without an end they would
/// keep each other, and all objects with them, whenever another control plane leads.
struct Following<K>(Arc<Cache<K>>);

impl<K> Drop for Following<K> {
    fn drop(&mut self) {
        // Dropped without the lock: a handler may be the last to hold a cache.
        let handlers = std::mem::take(&mut *write(&self.0.handlers));
        drop(handlers);
    }
}

/// The revision of the object's last write.
pub(super) fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// The first retries are quick, because in the one-process default the API server starts beside its clients.
#[derive(Debug)]
pub(crate) struct WatchBackoff {
    next: Duration,
}

impl WatchBackoff {
    const FIRST: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(10);

    pub(crate) fn new() -> Self {
        Self { next: Self::FIRST }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = self.next;
        self.next = (delay * 2).min(Self::MAX);
        Some(delay)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

pub(crate) fn report_watch_error(kind: &str, error: &watcher::Error) {
    match error {
        watcher::Error::WatchError(status) if status.code == 410 => {
            debug!(kind, "watch is too old, listing again")
        }
        watcher::Error::WatchFailed(error) => debug!(kind, %error, "watch broke off, resuming"),
        error => warn!(kind, %error, "cannot follow this kind, trying again"),
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is still whole.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(name: &str, version: &str, word: &str) -> Arc<ConfigMap> {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.into());
        map.metadata.labels = Some([("word".to_owned(), word.to_owned())].into());
        Arc::new(map)
    }

    fn words(map: &ConfigMap) -> Vec<String> {
        map.metadata
            .labels
            .iter()
            .flatten()
            .map(|(_, word)| word.clone())
            .collect()
    }

    #[test]
    fn a_changed_object_moves_to_its_new_index_word() {
        let cache = Cache::new(|_| (), Some(words));
        cache.apply(map("a", "1", "red"));
        cache.apply(map("a", "2", "blue"));
        assert!(cache.by_index("red").is_empty());
        assert_eq!(cache.by_index("blue").len(), 1);
        cache.remove(&Key::new("ns", "a"));
        assert!(cache.by_index("blue").is_empty());
    }

    #[test]
    fn a_relist_tells_only_what_differs() {
        let cache = Cache::new(|_| (), None);
        cache.apply(map("kept", "1", "x"));
        cache.apply(map("gone", "2", "x"));
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = told.clone();
        cache.on_change(move |old, new| {
            log.lock().unwrap().push((
                old.map(|o| Key::of(&**o).name),
                new.map(|o| Key::of(&**o).name),
            ));
        });
        let listed = [map("kept", "1", "x"), map("new", "3", "x")]
            .into_iter()
            .map(|o| (Key::of(&*o), o))
            .collect();
        cache.replace_all(listed);
        assert_eq!(
            *told.lock().unwrap(),
            vec![
                (Some("gone".to_owned()), None),
                (None, Some("new".to_owned()))
            ]
        );
    }

    #[test]
    fn a_namespace_lists_only_its_own() {
        let cache = Cache::new(|_| (), None);
        cache.apply(map("a", "1", "x"));
        let mut other = (*map("a", "1", "x")).clone();
        other.metadata.namespace = Some("ns2".into());
        cache.apply(Arc::new(other));
        assert_eq!(cache.list_in("ns").len(), 1);
        assert_eq!(cache.list().len(), 2);
    }
}
