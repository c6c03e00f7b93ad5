//! Garbage collection: what is owned goes when its last owner goes, in the background, in the foreground or not at all.
//!
//! The graph knows every object of every kind by its metadata. Kinds that other controllers follow come from their caches,
//! the rest is followed here, without bodies.

mod feed;
mod graph;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{
    Api, DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::core::ObjectMeta;
use serde_json::json;
use tracing::debug;

use self::feed::{Kinds, Sink};
use self::graph::{Action, FOREGROUND, Graph, ORPHAN, Place, Unknown};
use super::Context;
use super::driver::{Result, drive, queue};
use super::events::{Recorder, Severity};
use super::kinds::ServedKind;

const WORKERS: usize = 16;
/// An owner that exists and is not in the graph may go before its kind's watch begins, so that no event tells of it.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// How often an object whose dependents may be unknown is looked at.
const UNTIL_LISTED: Duration = Duration::from_millis(200);

struct Controller {
    context: Context,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Kinds>,
    events: Recorder,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (uids, wakeups) = queue();
    let graph = Arc::new(Mutex::new(Graph::default()));
    let sink = Sink {
        caches: context.caches.clone(),
        graph: graph.clone(),
        uids,
    };
    feed::from_caches(&sink);
    let kinds = Arc::new(Kinds::default());
    let controller = Controller {
        context: context.clone(),
        graph: graph.clone(),
        kinds: kinds.clone(),
        events: Recorder::start(context.client.clone(), "garbage-collector-controller"),
    };
    let context = context.clone();
    async move {
        context.caches.wait_synced().await;
        let others = feed::follow_others(&context, &kinds, &sink);
        let work = drive(
            "garbage",
            wakeups,
            WORKERS,
            context.shutdown.clone(),
            |uid: String| {
                let controller = &controller;
                async move { controller.reconcile(&uid).await }
            },
        );
        tokio::join!(others, work);
    }
}

/// What becomes of the dependents of an object that goes: what somebody wrote down on it before, if `foreground` is not due.
fn propagation(meta: &ObjectMeta, foreground: bool) -> PropagationPolicy {
    let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|it| it == finalizer);
    if foreground {
        PropagationPolicy::Foreground
    } else if has(ORPHAN) {
        PropagationPolicy::Orphan
    } else if has(FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    }
}

fn lock(graph: &Mutex<Graph>) -> MutexGuard<'_, Graph> {
    graph.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    async fn reconcile(&self, uid: &str) -> Result<Option<Duration>> {
        let (mut absent, mut present) = (HashSet::new(), HashSet::new());
        let mut action = lock(&self.graph).decide(uid, &absent, &present);
        if let Action::Verify(unknown) = &action {
            for owner in unknown {
                let Some(found) = self.exists(owner).await? else {
                    self.tell_no_namespace(uid, owner);
                    return Ok(None);
                };
                if found { &mut present } else { &mut absent }.insert(owner.uid.clone());
            }
            action = lock(&self.graph).decide(uid, &absent, &present);
        }
        let Some(place) = lock(&self.graph).get(uid).map(|thing| thing.place.clone()) else {
            return Ok(None);
        };
        match action {
            Action::Nothing if present.is_empty() => Ok(None),
            Action::Nothing => Ok(Some(LOOK_AGAIN)),
            Action::Wait => Ok(Some(UNTIL_LISTED)),
            // The graph changed meanwhile; look again.
            Action::Verify(_) => Ok(Some(Duration::from_millis(1))),
            Action::Delete { foreground } => self.delete(uid, &place, foreground).await,
            Action::Disown(owners) => self.disown(uid, &place, &owners).await,
            Action::Orphan(dependents) => {
                for dependent in &dependents {
                    let place = lock(&self.graph)
                        .get(dependent)
                        .map(|thing| thing.place.clone());
                    if let Some(place) = place {
                        self.disown(dependent, &place, &BTreeSet::from([uid.to_owned()]))
                            .await?;
                    }
                }
                self.release(uid, &place, ORPHAN).await
            }
            Action::ReleaseForeground => self.release(uid, &place, FOREGROUND).await,
        }
    }

    async fn kind(&self, place: &Place) -> Result<ServedKind> {
        self.kinds
            .find(&self.context.client, &place.api_version, &place.kind)
            .await
    }

    async fn api(&self, place: &Place) -> Result<Api<DynamicObject>> {
        Ok(self.api_of(place, &self.kind(place).await?))
    }

    fn api_of(&self, place: &Place, kind: &ServedKind) -> Api<DynamicObject> {
        let client = self.context.client.clone();
        match kind.namespaced {
            true => Api::namespaced_with(client, &place.namespace, &kind.resource),
            false => Api::all_with(client, &kind.resource),
        }
    }

    /// `None` when nobody can say: a reference from a cluster-wide object names no namespace to look in.
    async fn exists(&self, owner: &Unknown) -> Result<Option<bool>> {
        let kind = self.kind(&owner.place).await?;
        if kind.namespaced && owner.place.namespace.is_empty() {
            return Ok(None);
        }
        let api = self.api_of(&owner.place, &kind);
        let found = api.get_metadata_opt(&owner.place.name).await?;
        let is_same = |found: PartialObjectMeta<_>| found.metadata.uid.as_ref() == Some(&owner.uid);
        Ok(Some(found.is_some_and(is_same)))
    }

    fn tell_no_namespace(&self, uid: &str, owner: &Unknown) {
        let Some(place) = lock(&self.graph).get(uid).map(|thing| thing.place.clone()) else {
            return;
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
            owner.place.api_version,
            owner.place.kind,
            owner.place.namespace,
            owner.place.name,
            owner.uid,
            place.namespace
        );
        let about = ObjectReference {
            api_version: Some(place.api_version),
            kind: Some(place.kind),
            name: Some(place.name),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let reason = "OwnerRefInvalidNamespace";
        self.events
            .report(about, Severity::Warning, reason, message);
    }

    /// The object as it is stored now, if it is still the same.
    async fn live(
        &self,
        uid: &str,
        place: &Place,
    ) -> Result<Option<(Api<DynamicObject>, ObjectMeta)>> {
        let api = self.api(place).await?;
        let found = api.get_metadata_opt(&place.name).await?;
        Ok(found
            .filter(|found| found.metadata.uid.as_deref() == Some(uid))
            .map(|found| (api, found.metadata)))
    }

    async fn delete(&self, uid: &str, place: &Place, foreground: bool) -> Result<Option<Duration>> {
        let Some((api, meta)) = self.live(uid, place).await? else {
            return Ok(None);
        };
        // The version: whoever gave it a new owner meanwhile wins.
        let params = DeleteParams {
            propagation_policy: Some(propagation(&meta, foreground)),
            ..DeleteParams::default()
        };
        let same = Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: meta.resource_version,
        };
        debug!(?place, "deleting: its owners are gone");
        api.delete(&place.name, &params.preconditions(same)).await?;
        Ok(None)
    }

    async fn disown(
        &self,
        uid: &str,
        place: &Place,
        owners: &BTreeSet<String>,
    ) -> Result<Option<Duration>> {
        let Some((api, meta)) = self.live(uid, place).await? else {
            return Ok(None);
        };
        let mut left = meta.owner_references.unwrap_or_default();
        left.retain(|owner| !owners.contains(&owner.uid));
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "ownerReferences": left}});
        api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(None)
    }

    async fn release(&self, uid: &str, place: &Place, finalizer: &str) -> Result<Option<Duration>> {
        let Some((api, meta)) = self.live(uid, place).await? else {
            return Ok(None);
        };
        let mut left = meta.finalizers.unwrap_or_default();
        left.retain(|name| name != finalizer);
        let patch =
            json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": left}});
        api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependent_that_goes_keeps_its_own_wish_for_its_dependents() {
        let policy = |finalizers: &[&str], foreground| {
            let finalizers = finalizers.iter().map(|it| (*it).to_owned()).collect();
            let meta = ObjectMeta {
                finalizers: Some(finalizers),
                ..ObjectMeta::default()
            };
            format!("{:?}", propagation(&meta, foreground))
        };
        assert_eq!(policy(&["example.com/hold"], false), "Background");
        assert_eq!(policy(&[ORPHAN], false), "Orphan");
        assert_eq!(policy(&[FOREGROUND], false), "Foreground");
        assert_eq!(policy(&[ORPHAN], true), "Foreground");
    }
}
