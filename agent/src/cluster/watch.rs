//! The watches: one task a kind, from the API server to the view that the kind belongs to: [`View`] for those here.
//!
//! A failed watch keeps what is known and tries again with back-off. A list adds and changes at once, and removes what
//! it did not name only when it is complete.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tracing::{debug, info, warn};

use super::Cluster;
use super::backoff::Retry;
use super::convert::{self, Names};
use super::types::{Name, ObjectKey};
use super::view::{Change, View};
use crate::chain::chain;

/// What watches feed: a view, and those who are told of its changes.
pub(crate) trait World: Clone + Send + Sync {
    type View;
    type Change;

    /// Alters the view, then tells what `alter` says has changed.
    fn update(&self, alter: impl FnOnce(&mut Self::View) -> Vec<Self::Change>);
    /// The first list of one kind is complete.
    fn listed(&self, kind: &'static str);
    /// A watch failed with `error`, or works again. Returns whether that is news.
    fn set_failing(&self, kind: &'static str, error: Option<String>) -> bool;
}

/// A kind that is watched: how its objects become part of the view.
pub(crate) trait Kind: Sized {
    type World: World;
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;
    type Key: Ord + Clone + Send + Sync;
    /// What slim objects share.
    type Common: Default + Send;
    const NAME: &'static str;

    fn key(object: &Self::Object, common: &mut Self::Common) -> Option<Self::Key>;
    fn put(
        view: &mut ViewOf<Self>,
        key: Self::Key,
        object: &Self::Object,
        common: &mut Self::Common,
    ) -> Vec<ChangeOf<Self>>;
    fn remove(view: &mut ViewOf<Self>, key: Self::Key) -> Vec<ChangeOf<Self>>;
    fn known(view: &ViewOf<Self>) -> Vec<Self::Key>;
}

type ViewOf<K> = <<K as Kind>::World as World>::View;
type ChangeOf<K> = <<K as Kind>::World as World>::Change;

pub(super) struct Services;
pub(super) struct Slices;
pub(super) struct Nodes;

impl Kind for Services {
    type World = Cluster;
    type Common = Names;
    type Object = core::Service;
    type Key = ObjectKey;
    const NAME: &'static str = "services";

    fn key(object: &core::Service, names: &mut Names) -> Option<ObjectKey> {
        convert::key(&object.metadata, names)
    }
    fn put(
        view: &mut View,
        key: ObjectKey,
        object: &core::Service,
        names: &mut Names,
    ) -> Vec<Change> {
        view.set_service(key, Some(convert::service(object, names)))
            .into_iter()
            .collect()
    }
    fn remove(view: &mut View, key: ObjectKey) -> Vec<Change> {
        view.set_service(key, None).into_iter().collect()
    }
    fn known(view: &View) -> Vec<ObjectKey> {
        view.services.keys().cloned().collect()
    }
}

impl Kind for Slices {
    type World = Cluster;
    type Common = Names;
    type Object = EndpointSlice;
    type Key = ObjectKey;
    const NAME: &'static str = "endpointslices";

    fn key(object: &EndpointSlice, names: &mut Names) -> Option<ObjectKey> {
        convert::key(&object.metadata, names)
    }
    fn put(
        view: &mut View,
        key: ObjectKey,
        object: &EndpointSlice,
        names: &mut Names,
    ) -> Vec<Change> {
        // A slice that lost its label is nobody's any more, so it goes.
        view.set_slice(key, convert::slice(object, names))
    }
    fn remove(view: &mut View, key: ObjectKey) -> Vec<Change> {
        view.set_slice(key, None)
    }
    fn known(view: &View) -> Vec<ObjectKey> {
        view.slices.keys().cloned().collect()
    }
}

impl Kind for Nodes {
    type World = Cluster;
    type Common = Names;
    type Object = core::Node;
    type Key = Name;
    const NAME: &'static str = "nodes";

    fn key(object: &core::Node, names: &mut Names) -> Option<Name> {
        object.metadata.name.as_deref().map(|name| names.get(name))
    }
    fn put(view: &mut View, name: Name, object: &core::Node, names: &mut Names) -> Vec<Change> {
        view.set_node(name, Some(convert::node(object, names)))
            .into_iter()
            .collect()
    }
    fn remove(view: &mut View, name: Name) -> Vec<Change> {
        view.set_node(name, None).into_iter().collect()
    }
    fn known(view: &View) -> Vec<Name> {
        view.nodes.keys().cloned().collect()
    }
}

/// Watches one kind until the process ends.
pub(crate) async fn run<K: Kind>(world: K::World, client: Client) {
    let config = watcher::Config::default()
        .page_size(PAGE_SIZE)
        .timeout(WATCH_TIMEOUT_S);
    let stream = watcher(Api::<K::Object>::all(client), config).backoff(Retry::new());
    feed::<K>(world, stream).await;
}

/// One page of full objects is held at a time: a few megabytes, and few round trips.
const PAGE_SIZE: u32 = 1000;
/// A watch is renewed this often, so a connection that died in silence is noticed.
const WATCH_TIMEOUT_S: u32 = 60;

async fn feed<K: Kind>(
    world: K::World,
    stream: impl Stream<Item = watcher::Result<Event<K::Object>>>,
) {
    let mut stream = std::pin::pin!(stream);
    let mut state = Feed::<K>::default();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                // A list that begins proves nothing yet; one that names objects, or an event, does.
                if !matches!(event, Event::Init) && world.set_failing(K::NAME, None) {
                    info!(kind = K::NAME, "watch works again");
                }
                state.apply(&world, event);
            }
            Err(error) => {
                let error = chain(&error);
                if world.set_failing(K::NAME, Some(error.clone())) {
                    warn!(
                        kind = K::NAME,
                        error, "watch failed; keeping what is known and trying again"
                    );
                }
            }
        }
    }
    debug!(kind = K::NAME, "watch ended");
}

struct Feed<K: Kind> {
    common: K::Common,
    /// What the list in progress has named so far.
    listed: BTreeSet<K::Key>,
}

impl<K: Kind> Default for Feed<K> {
    fn default() -> Self {
        Self {
            common: K::Common::default(),
            listed: BTreeSet::new(),
        }
    }
}

impl<K: Kind> Feed<K> {
    fn apply(&mut self, world: &K::World, event: Event<K::Object>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                if let Some(key) = K::key(&object, &mut self.common) {
                    self.listed.insert(key.clone());
                    world.update(|view| K::put(view, key, &object, &mut self.common));
                }
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                world.update(|view| {
                    let gone = K::known(view)
                        .into_iter()
                        .filter(|key| !listed.contains(key));
                    gone.flat_map(|key| K::remove(view, key)).collect()
                });
                world.listed(K::NAME);
            }
            Event::Apply(object) => {
                if let Some(key) = K::key(&object, &mut self.common) {
                    world.update(|view| K::put(view, key, &object, &mut self.common));
                }
            }
            Event::Delete(object) => {
                if let Some(key) = K::key(&object, &mut self.common) {
                    world.update(|view| K::remove(view, key));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ObjectMeta;

    fn service(name: &str, ip: &str) -> core::Service {
        core::Service {
            metadata: ObjectMeta {
                namespace: Some("ns".into()),
                name: Some(name.into()),
                ..ObjectMeta::default()
            },
            spec: Some(core::ServiceSpec {
                cluster_ip: Some(ip.into()),
                ..core::ServiceSpec::default()
            }),
            ..core::Service::default()
        }
    }

    fn changed(name: &str) -> Change {
        Change::Service(ObjectKey::new("ns", name))
    }

    fn names(cluster: &Cluster) -> Vec<String> {
        cluster
            .view()
            .services
            .keys()
            .map(|key| key.name.to_string())
            .collect()
    }

    #[test]
    fn a_list_removes_only_when_it_is_complete() {
        let cluster = Cluster::default();
        let mut feed = Feed::<Services>::default();
        for event in [
            Event::Init,
            Event::InitApply(service("a", "10.96.0.1")),
            Event::InitApply(service("b", "10.96.0.2")),
            Event::InitDone,
        ] {
            feed.apply(&cluster, event);
        }
        let mut changes = cluster.subscribe();
        changes.try_next();

        feed.apply(&cluster, Event::Init);
        feed.apply(&cluster, Event::InitApply(service("c", "10.96.0.3")));
        assert_eq!(names(&cluster), ["a", "b", "c"]);
        // The list broke off and starts again: what the first try named does not count.
        feed.apply(&cluster, Event::Init);
        feed.apply(&cluster, Event::InitApply(service("a", "10.96.0.1")));
        assert_eq!(names(&cluster), ["a", "b", "c"]);
        feed.apply(&cluster, Event::InitDone);
        assert_eq!(names(&cluster), ["a"]);
        let pending: Vec<_> = changes.try_next().into_keys().collect();
        assert_eq!(
            pending,
            [changed("b"), changed("c")],
            "what did not change is not told"
        );
    }

    #[tokio::test]
    async fn a_watch_error_keeps_the_view() {
        let cluster = Cluster::default();
        let events = [
            Ok(Event::Init),
            Ok(Event::InitApply(service("a", "10.96.0.1"))),
            Ok(Event::InitDone),
            Err(watcher::Error::NoResourceVersion),
        ];
        feed::<Services>(cluster.clone(), futures::stream::iter(events)).await;
        assert_eq!(names(&cluster), ["a"]);
        assert!(cluster.failing().contains_key("services"));
        let events = [
            Ok(Event::Apply(service("b", "10.96.0.2"))),
            Ok(Event::Delete(service("a", "10.96.0.1"))),
        ];
        feed::<Services>(cluster.clone(), futures::stream::iter(events)).await;
        assert_eq!(names(&cluster), ["b"]);
        assert!(cluster.failing().is_empty());
    }

    #[test]
    fn synced_comes_once_after_every_kind_was_listed() {
        let cluster = Cluster::default();
        let mut changes = cluster.subscribe();
        Feed::<Services>::default().apply(&cluster, Event::InitDone);
        Feed::<Slices>::default().apply(&cluster, Event::InitDone);
        Feed::<Services>::default().apply(&cluster, Event::InitDone);
        assert!(!cluster.view().synced);
        Feed::<Nodes>::default().apply(&cluster, Event::InitDone);
        assert!(cluster.view().synced);
        assert_eq!(
            changes.try_next().into_keys().collect::<Vec<_>>(),
            [Change::Synced]
        );
        Feed::<Nodes>::default().apply(&cluster, Event::InitDone);
        assert!(changes.try_next().is_empty());
    }
}
