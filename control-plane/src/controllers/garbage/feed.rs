//! Where the graph's knowledge comes from: the controllers' caches, and a watch of metadata for each further kind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject, PartialObjectMeta, Resource};
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::graph::{Graph, Thing};
use super::lock;
use crate::controllers::cache::{Cache, WatchBackoff, report_watch_error};
use crate::controllers::caches::Caches;
use crate::controllers::driver::{Error, Queue, Result};
use crate::controllers::kinds::{ServedKind, name_of, served};
use crate::controllers::{Context, pods::uid};

/// Kinds that appear later are found after this at most.
const REDISCOVER: Duration = Duration::from_secs(30);

/// Kinds that the shared caches follow, as `apiVersion/kind`.
const CACHED: [&str; 11] = [
    "certificates.k8s.io/v1/CertificateSigningRequest",
    "apps/v1/Deployment",
    "v1/Endpoints",
    "v1/Namespace",
    "v1/Node",
    "v1/Pod",
    "apps/v1/ReplicaSet",
    "v1/ResourceQuota",
    "v1/ServiceAccount",
    "v1/Service",
    "discovery.k8s.io/v1/EndpointSlice",
];

pub(super) fn from_caches(into: &Sink) {
    let caches = &into.caches;
    subscribe(&caches.csrs, into);
    subscribe(&caches.deployments, into);
    subscribe(&caches.endpoints, into);
    subscribe(&caches.namespaces, into);
    subscribe(&caches.nodes, into);
    subscribe(&caches.pods, into);
    subscribe(&caches.replica_sets, into);
    subscribe(&caches.resource_quotas, into);
    subscribe(&caches.service_accounts, into);
    subscribe(&caches.services, into);
    subscribe(&caches.slices, into);
}

/// Where what is heard of objects goes.
#[derive(Clone)]
pub(super) struct Sink {
    pub(super) caches: Arc<Caches>,
    pub(super) graph: Arc<Mutex<Graph>>,
    pub(super) uids: Queue<String>,
}

impl Sink {
    fn put(&self, api_version: &str, kind: &str, meta: &ObjectMeta) {
        let thing = Thing::of(api_version, kind, meta);
        wake(&self.uids, lock(&self.graph).put(uid(meta), thing));
    }

    fn remove(&self, uid: &str) {
        let (namespace, woken) = {
            let mut graph = lock(&self.graph);
            let namespace = graph.get(uid).map(|thing| thing.place.namespace.clone());
            (namespace, graph.remove(uid))
        };
        wake(&self.uids, woken);
        if let Some(namespace) = namespace {
            self.caches.gone.tell(&namespace);
        }
    }
}

fn subscribe<K>(cache: &Arc<Cache<K>>, into: &Sink)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let into = into.clone();
    cache.on_change(move |old, new| {
        let known = old.map(|old| uid(old.meta()));
        let now = new.map(|new| uid(new.meta()));
        // A name that was taken over by another object between two lists.
        if let Some(gone) = known.filter(|known| now != Some(known)) {
            into.remove(gone);
        }
        if let Some(new) = new {
            into.put(&K::api_version(&()), &K::kind(&()), new.meta());
        }
    });
}

fn wake(queue: &Queue<String>, uids: BTreeSet<String>) {
    uids.into_iter().for_each(|uid| queue.add(uid));
}

/// The served kinds, as far as they were asked for.
#[derive(Default)]
pub(super) struct Kinds {
    known: tokio::sync::RwLock<HashMap<String, ServedKind>>,
}

impl Kinds {
    async fn refresh(&self, client: &kube::Client) -> Result<Vec<ServedKind>> {
        let kinds = served(client).await?;
        let named = kinds.iter().map(|kind| (kind.name(), kind.clone()));
        *self.known.write().await = named.collect();
        Ok(kinds)
    }

    pub(super) async fn find(
        &self,
        client: &kube::Client,
        api_version: &str,
        kind: &str,
    ) -> Result<ServedKind> {
        let name = name_of(api_version, kind);
        if let Some(known) = self.known.read().await.get(&name) {
            return Ok(known.clone());
        }
        self.refresh(client).await?;
        let known = self.known.read().await.get(&name).cloned();
        // Not to know an owner's kind is no proof that the owner is gone.
        known.ok_or_else(|| {
            Error::Object(format!(
                "{name} is not served, so nobody can say what became of its objects"
            ))
        })
    }
}

/// Follows the metadata of every kind that no shared cache has, until shutdown.
pub(super) async fn follow_others(context: &Context, kinds: &Kinds, into: &Sink) {
    let mut followed: HashSet<String> = HashSet::new();
    let mut watches = JoinSet::new();
    loop {
        match kinds.refresh(&context.client).await {
            Ok(kinds) => {
                let unlisted = lock(&into.graph).unlisted().join(", ");
                if !unlisted.is_empty() {
                    warn!(
                        kinds = unlisted,
                        "not all kinds can be listed; what is deleted in the foreground or leaves its dependents waits"
                    );
                }
                let served: HashSet<String> = kinds.iter().map(ServedKind::name).collect();
                let mut new = kinds;
                // Leases too: a node's is owned by its Node, though it is renewed every few seconds.
                new.retain(|kind| {
                    let can_follow = kind.can("list") && kind.can("watch") && !kind.is_event();
                    can_follow
                        && !CACHED.contains(&kind.name().as_str())
                        && followed.insert(kind.name())
                });
                lock(&into.graph).follow(&served, new.iter().map(ServedKind::name));
                for kind in new {
                    let api = Api::all_with(context.client.clone(), &kind.resource);
                    let (into, shutdown) = (into.clone(), context.shutdown.clone());
                    watches.spawn(follow_one(api, kind, into, shutdown));
                }
            }
            Err(error) => warn!(%error, "cannot ask which kinds are served, trying again"),
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = tokio::time::sleep(REDISCOVER) => {}
        }
    }
}

async fn follow_one(
    api: Api<PartialObjectMeta<DynamicObject>>,
    kind: ServedKind,
    into: Sink,
    shutdown: CancellationToken,
) {
    let events = watcher(api, watcher::Config::default()).backoff(WatchBackoff::new());
    let mut events = std::pin::pin!(events);
    // What this watch has put into the graph, and what a running list has named.
    let mut known: HashSet<String> = HashSet::new();
    let mut listed: HashSet<String> = HashSet::new();
    let put = |meta: &ObjectMeta| {
        into.put(&kind.resource.api_version, &kind.resource.kind, meta);
    };
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            // Cancel-safe: a stream's `next` holds no state of its own.
            event = events.next() => event,
        };
        match event {
            Some(Ok(watcher::Event::Init)) => listed.clear(),
            Some(Ok(watcher::Event::InitApply(object))) => {
                put(&object.metadata);
                listed.insert(uid(&object.metadata).to_owned());
                // A list that breaks off is followed by another, which may not name it any more.
                known.insert(uid(&object.metadata).to_owned());
            }
            Some(Ok(watcher::Event::InitDone)) => {
                for gone in known.difference(&listed) {
                    into.remove(gone);
                }
                known = std::mem::take(&mut listed);
                lock(&into.graph).listed(&kind.name());
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                put(&object.metadata);
                known.insert(uid(&object.metadata).to_owned());
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                known.remove(uid(&object.metadata));
                into.remove(uid(&object.metadata));
            }
            Some(Err(error)) => report_watch_error(&kind.resource.kind, &error),
            None => return,
        }
    }
}
