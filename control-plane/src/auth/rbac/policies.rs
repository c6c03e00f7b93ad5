//! The policy in force: made of what the cache holds, and anew whenever a role or a binding changes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::{Policy, RoleRef, Roles};
use crate::store::Revision;
use crate::store::cache::{Cache, Change, Freshness, Object, ReadError};

const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";
/// How long to wait before everything is read again.
const RETRY: Duration = Duration::from_secs(1);
/// So many changes that are there at once are taken up together.
const AT_ONCE: usize = 256;

/// The policy in force.
#[derive(Default)]
pub struct Policies {
    current: ArcSwap<Policy>,
}

impl Policies {
    /// The policy at this moment.
    pub fn current(&self) -> Arc<Policy> {
        self.current.load_full()
    }

    /// Takes up what is stored, then follows its changes in a task of its own.
    pub async fn follow(self: &Arc<Self>, cache: &Arc<Cache>) -> Result<(), ReadError> {
        let (mut roles, revision) = self.adopt(cache).await?;
        let (this, cache) = (Arc::clone(self), Arc::clone(cache));
        tokio::spawn(async move {
            let mut after = Some(revision);
            loop {
                match cache.watch(PREFIX, after) {
                    Ok(changes) => {
                        let mut changes = changes.ready_chunks(AT_ONCE);
                        while let Some(changes) = changes.next().await {
                            changes.iter().for_each(|change| note(&mut roles, change));
                            this.current.store(Arc::new(Policy::new(&roles)));
                            after = changes.last().map(Change::revision);
                        }
                    }
                    // The watch fell behind: look at everything again.
                    Err(_) => match this.adopt(&cache).await {
                        Ok((all, revision)) => (roles, after) = (all, Some(revision)),
                        Err(error) => {
                            tracing::warn!(%error, "cannot read the roles");
                            tokio::time::sleep(RETRY).await;
                        }
                    },
                }
            }
        });
        Ok(())
    }

    async fn adopt(&self, cache: &Cache) -> Result<(Roles, Revision), ReadError> {
        let listing = cache.list(PREFIX, Freshness::Latest).await?;
        let mut roles = Roles::default();
        listing
            .objects
            .iter()
            .for_each(|object| put(&mut roles, object));
        self.current.store(Arc::new(Policy::new(&roles)));
        Ok((roles, listing.revision))
    }
}

/// From a key of the store: plural, namespace (empty for what has none) and name.
fn place(key: &str) -> Option<(&str, &str, &str)> {
    let mut parts = key.strip_prefix(PREFIX)?.split('/');
    let (plural, first) = (parts.next()?, parts.next()?);
    Some(match parts.next() {
        Some(name) => (plural, first, name),
        None => (plural, "", first),
    })
}

fn note(roles: &mut Roles, change: &Change) {
    match change {
        Change::Put { object, .. } => put(roles, object),
        Change::Delete { object, .. } => remove(roles, &object.key),
        Change::Bookmark(_) => {}
    }
}

fn put(roles: &mut Roles, object: &Object) {
    let Some((plural, namespace, name)) = place(&object.key) else {
        return;
    };
    // What cannot be read grants nothing.
    remove(roles, &object.key);
    let key = (namespace.to_owned(), name.to_owned());
    match plural {
        "clusterroles" => with(object, |role| roles.put_cluster_role(name, role)),
        "roles" => with(object, |role| roles.put_role(namespace, name, role)),
        "rolebindings" => with(object, |binding| drop(roles.bindings.insert(key, binding))),
        "clusterrolebindings" => with(object, |binding| {
            roles.cluster_bindings.insert(name.to_owned(), binding);
        }),
        _ => {}
    }
}

fn with<T: DeserializeOwned>(object: &Object, take: impl FnOnce(T)) {
    match serde_json::from_slice(&object.json) {
        Ok(read) => take(read),
        Err(error) => tracing::error!(key = object.key, %error, "this grants nothing"),
    }
}

fn remove(roles: &mut Roles, key: &str) {
    let Some((plural, namespace, name)) = place(key) else {
        return;
    };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match plural {
        "clusterroles" => drop(roles.rules.remove(&RoleRef::ClusterRole(name))),
        "roles" => drop(roles.rules.remove(&RoleRef::Role(namespace, name))),
        "rolebindings" => drop(roles.bindings.remove(&(namespace, name))),
        "clusterrolebindings" => drop(roles.cluster_bindings.remove(&name)),
        _ => {}
    }
}
