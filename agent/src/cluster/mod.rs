//! What the agent knows of the cluster: slim views of the Services, EndpointSlices and Nodes that it watches.
//!
//! One set of watches feeds one [`View`]; the proxy, DNS and the pod network all read it. Who needs to act on changes
//! subscribes: [`Changes`] names what changed, the view says what it is now.

mod backoff;
mod changes;
mod convert;
mod exposed;
mod ignored;
mod types;
mod view;
pub(crate) mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

pub use changes::{Changes, Pending};
#[cfg(test)]
pub(crate) use convert::{Names, service as slim_service, slice as slim_slice};
use futures::FutureExt as _;
use futures::future::BoxFuture;
pub use ignored::{Ignored, Leftovers, Why};
pub use types::{
    Endpoint, Exposed, Hints, HostPort, HostPorts, Locality, Name, Node, ObjectKey, Protocol,
    Service, ServicePort, Slice, SlicePort,
};
pub use view::{Change, View};
use watch::{Kind as _, World};

/// A handle on what is known of the cluster. Clones share it. [`Cluster::default`] knows nothing and watches nothing.
#[derive(Clone, Debug, Default)]
pub struct Cluster(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    view: RwLock<View>,
    subscribers: changes::Subscribers,
    /// Kinds whose first list is complete.
    listed: Mutex<BTreeSet<&'static str>>,
    /// Kinds whose watch has failed and not worked since, with the error.
    failing: Mutex<BTreeMap<&'static str, String>>,
}

impl Cluster {
    /// The watches that feed it, each to be run as a task. None ever ends.
    pub fn watches(&self, client: &kube::Client) -> [BoxFuture<'static, ()>; 3] {
        let (cluster, client) = (|| self.clone(), || client.clone());
        [
            watch::run::<watch::Services>(cluster(), client()).boxed(),
            watch::run::<watch::Slices>(cluster(), client()).boxed(),
            watch::run::<watch::Nodes>(cluster(), client()).boxed(),
        ]
    }

    /// What is known now. Hold it briefly and never across an await: the watches wait for it.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.0.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes from now on; everything that is already known is pending at first.
    pub fn subscribe(&self) -> Changes {
        // Under the view's lock, so that no change falls between the copy and the subscription.
        let view = self.view();
        let services = view
            .services
            .keys()
            .chain(view.slices_of.keys())
            .chain(view.host_ports.keys())
            .cloned()
            .map(Change::Service);
        let nodes = view.nodes.keys().cloned().map(Change::Node);
        self.0.subscribers.add(
            services
                .chain(nodes)
                .chain(view.synced.then_some(Change::Synced))
                .chain(view.host_ports_known.then_some(Change::HostPortsKnown)),
        )
    }

    /// Alters the view, then tells the subscribers what `alter` says has changed.
    pub fn update(&self, alter: impl FnOnce(&mut View) -> Vec<Change>) {
        let changes = {
            let mut view = self.0.view.write().unwrap_or_else(PoisonError::into_inner);
            alter(&mut view)
        };
        if !changes.is_empty() {
            self.0.subscribers.publish(&changes);
        }
    }

    /// Marks the first list of everything as complete. The watches call it by themselves.
    pub fn set_synced(&self) {
        self.update(|view| {
            let first = !std::mem::replace(&mut view.synced, true);
            first.then_some(Change::Synced).into_iter().collect()
        });
    }

    /// The kinds whose watch fails at present, each with its last error. What is known of them may be old.
    pub fn failing(&self) -> BTreeMap<&'static str, String> {
        self.0
            .failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl World for Cluster {
    type View = View;
    type Change = Change;

    fn update(&self, alter: impl FnOnce(&mut View) -> Vec<Change>) {
        Cluster::update(self, alter);
    }

    /// A watch failed with `error`, or works again. Returns whether that is news.
    fn set_failing(&self, kind: &'static str, error: Option<String>) -> bool {
        let mut failing = self
            .0
            .failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => failing.insert(kind, error.clone()) != Some(error),
            None => failing.remove(kind).is_some(),
        }
    }

    /// The first list of one kind is complete.
    fn listed(&self, kind: &'static str) {
        let mut listed = self.0.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.insert(kind);
        let all = [
            watch::Services::NAME,
            watch::Slices::NAME,
            watch::Nodes::NAME,
        ];
        if all.iter().all(|kind| listed.contains(kind)) {
            drop(listed);
            self.set_synced();
        }
    }
}
