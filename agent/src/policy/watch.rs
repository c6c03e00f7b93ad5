//! The watches of policy. Those of pods and namespaces run only while there is a policy: without one they would cost a large
//! cluster's node a few megabytes for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use tokio::sync::watch;
use tracing::warn;

use super::convert::{self, Common};
use super::types::{Labels, Pod, Policy};
use super::view::View;
use crate::cluster::watch::{Kind, World, run};
use crate::cluster::{Name, ObjectKey};

/// A handle on what is known of policies. Clones share it.
#[derive(Clone, Debug)]
pub struct Known(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    view: RwLock<View>,
    changed: watch::Sender<()>,
    /// Kinds whose first list is complete.
    listed: Mutex<BTreeSet<&'static str>>,
    /// Kinds whose watch has failed and not worked since, with the error.
    failing: Mutex<BTreeMap<&'static str, String>>,
}

/// Something in the view is not as it was.
pub struct Changed;

impl Known {
    /// Knows nothing yet. `node` is this node.
    pub fn new(node: Name) -> Self {
        Self(Arc::new(Shared {
            view: RwLock::new(View {
                node,
                ..View::default()
            }),
            changed: watch::Sender::new(()),
            listed: Mutex::default(),
            failing: Mutex::default(),
        }))
    }

    /// What is known now. Hold it briefly and never across an await: the watches wait for it.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.0.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of changes from now on.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// The kinds whose watch fails at present, each with its last error.
    pub fn failing(&self) -> BTreeMap<&'static str, String> {
        lock(&self.0.failing).clone()
    }

    /// Watches until the process ends.
    pub async fn watch(self, client: Client) {
        let policies = run::<Policies>(self.clone(), client.clone());
        let (this, mut changed) = (self.clone(), self.subscribe());
        let peers = async move {
            loop {
                until(&mut changed, || !this.view().policies.is_empty()).await;
                let pods = run::<Pods>(this.clone(), client.clone());
                let namespaces = run::<Namespaces>(this.clone(), client.clone());
                // What is cut off is begun anew, from a list.
                tokio::select! {
                    _ = futures::future::join(pods, namespaces) => {}
                    () = until(&mut changed, || this.view().policies.is_empty()) => {}
                }
                this.forget_peers();
            }
        };
        futures::future::join(policies, peers).await;
    }

    /// Nothing is known of pods and namespaces any more.
    fn forget_peers(&self) {
        {
            let mut listed = lock(&self.0.listed);
            listed.remove(Pods::NAME);
            listed.remove(Namespaces::NAME);
            let mut failing = lock(&self.0.failing);
            failing.remove(Pods::NAME);
            failing.remove(Namespaces::NAME);
        }
        self.update(|view| {
            view.pods = BTreeMap::new();
            view.namespaces = BTreeMap::new();
            vec![Changed]
        });
    }

    /// Whether everything that decides has been listed in full.
    fn is_complete(&self, view: &View) -> bool {
        let listed = lock(&self.0.listed);
        let peers = view.policies.is_empty()
            || (listed.contains(Pods::NAME) && listed.contains(Namespaces::NAME));
        listed.contains(Policies::NAME) && peers
    }
}

async fn until(changed: &mut watch::Receiver<()>, reached: impl Fn() -> bool) {
    while !reached() {
        // The sender lives as long as what is watched.
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl World for Known {
    type View = View;
    type Change = Changed;

    fn update(&self, alter: impl FnOnce(&mut View) -> Vec<Changed>) {
        let changed = {
            let mut view = self.0.view.write().unwrap_or_else(PoisonError::into_inner);
            let changed = !alter(&mut view).is_empty();
            let complete = self.is_complete(&view);
            let before = std::mem::replace(&mut view.complete, complete);
            changed || before != complete
        };
        if changed {
            self.0.changed.send_replace(());
        }
    }

    fn listed(&self, kind: &'static str) {
        lock(&self.0.listed).insert(kind);
        self.update(|_| Vec::new());
    }

    fn set_failing(&self, kind: &'static str, error: Option<String>) -> bool {
        let mut failing = lock(&self.0.failing);
        match error {
            Some(error) => failing.insert(kind, error.clone()) != Some(error),
            None => failing.remove(kind).is_some(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Policies;
struct Namespaces;
struct Pods;

impl Kind for Policies {
    type World = Known;
    type Object = NetworkPolicy;
    type Key = ObjectKey;
    type Common = Common;
    const NAME: &'static str = "networkpolicies";

    fn key(object: &NetworkPolicy, common: &mut Common) -> Option<ObjectKey> {
        common.key(&object.metadata)
    }
    fn put(
        view: &mut View,
        key: ObjectKey,
        object: &NetworkPolicy,
        common: &mut Common,
    ) -> Vec<Changed> {
        let (policy, unread) = convert::policy(object, common);
        for what in unread {
            warn!(policy = %key, what, "a part of a NetworkPolicy cannot be read; it allows nothing");
        }
        set(&mut view.policies, key, Some::<Arc<Policy>>(policy.into()))
    }
    fn remove(view: &mut View, key: ObjectKey) -> Vec<Changed> {
        set(&mut view.policies, key, None)
    }
    fn known(view: &View) -> Vec<ObjectKey> {
        view.policies.keys().cloned().collect()
    }
}

impl Kind for Namespaces {
    type World = Known;
    type Object = core::Namespace;
    type Key = Name;
    type Common = Common;
    const NAME: &'static str = "namespaces";

    fn key(object: &core::Namespace, common: &mut Common) -> Option<Name> {
        Some(common.name(object.metadata.name.as_deref()?))
    }
    fn put(
        view: &mut View,
        key: Name,
        object: &core::Namespace,
        common: &mut Common,
    ) -> Vec<Changed> {
        let labels: Labels = convert::namespace(object, common);
        set(&mut view.namespaces, key, Some(labels))
    }
    fn remove(view: &mut View, key: Name) -> Vec<Changed> {
        set(&mut view.namespaces, key, None)
    }
    fn known(view: &View) -> Vec<Name> {
        view.namespaces.keys().cloned().collect()
    }
}

impl Kind for Pods {
    type World = Known;
    type Object = core::Pod;
    type Key = ObjectKey;
    type Common = Common;
    const NAME: &'static str = "pods";

    fn key(object: &core::Pod, common: &mut Common) -> Option<ObjectKey> {
        common.key(&object.metadata)
    }
    fn put(
        view: &mut View,
        key: ObjectKey,
        object: &core::Pod,
        common: &mut Common,
    ) -> Vec<Changed> {
        let node = view.node.clone();
        let pod: Option<Arc<Pod>> = convert::pod(object, &node, common).map(Into::into);
        set(&mut view.pods, key, pod)
    }
    fn remove(view: &mut View, key: ObjectKey) -> Vec<Changed> {
        set(&mut view.pods, key, None)
    }
    fn known(view: &View) -> Vec<ObjectKey> {
        view.pods.keys().cloned().collect()
    }
}

/// Puts or removes an entry. What was so already is no change.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Vec<Changed> {
    let changed = match value {
        None => map.remove(&key).is_some(),
        Some(new) if map.get(&key) == Some(&new) => false,
        Some(new) => {
            map.insert(key, new);
            true
        }
    };
    changed.then_some(Changed).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::policy;
    use super::*;
    use serde_json::json;

    #[test]
    fn without_policies_nothing_else_need_be_known() {
        let known = Known::new("n1".into());
        assert!(!known.view().complete);
        known.listed(Policies::NAME);
        assert!(known.view().complete);
        // The first policy: nothing is concluded until pods and namespaces are known.
        let object = policy(json!({ "metadata": { "namespace": "a", "name": "p" } }));
        let mut common = Common::default();
        let key = Policies::key(&object, &mut common).unwrap();
        known.update(|view| Policies::put(view, key.clone(), &object, &mut common));
        assert!(!known.view().complete);
        known.listed(Pods::NAME);
        assert!(!known.view().complete);
        known.listed(Namespaces::NAME);
        assert!(known.view().complete);
        // The last one goes, and another comes.
        known.update(|view| Policies::remove(view, key.clone()));
        known.forget_peers();
        assert!(known.view().complete);
        known.update(|view| Policies::put(view, key, &object, &mut common));
        assert!(!known.view().complete);
    }
}
