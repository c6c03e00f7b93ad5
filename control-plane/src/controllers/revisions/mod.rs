//! The templates that a workload has had, as ControllerRevisions: what a rollout goes back to.

mod history;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

pub(super) use self::history::{Newest, newest, outdated, template_of};
use super::Context;
use super::driver::Result;
use super::pods::controller_of;

/// Whether the present template is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    /// Its name is another's; the next one is `collisions + 1`.
    NameTaken,
}

fn api(context: &Context, namespace: &str) -> Api<ControllerRevision> {
    Api::namespaced(context.client.clone(), namespace)
}

/// Keeps the present template as the newest revision.
pub(super) async fn keep(context: &Context, namespace: &str, newest: &Newest) -> Result<Kept> {
    let api = api(context, namespace);
    let ours = controller_of(&newest.revision().metadata);
    let is_ours = |owner: &OwnerReference| ours.is_some_and(|ours| ours.uid == owner.uid);
    let written = match newest {
        Newest::Is(_) => return Ok(Kept::Yes),
        Newest::Renumber(revision, number) => {
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({"revision": number});
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?
        }
        Newest::Make(revision) => match api.create(&PostParams::default(), revision).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let name = revision.metadata.name.as_deref().unwrap_or_default();
                let there = api.get(name).await?;
                if there.data != revision.data {
                    return Ok(Kept::NameTaken);
                }
                match controller_of(&there.metadata) {
                    // Ours, which the cache does not show yet.
                    Some(owner) if is_ours(owner) => return Ok(Kept::Yes),
                    Some(_) => return Ok(Kept::NameTaken),
                    // An earlier owner of this name left it behind, and its pods carry its name.
                    None => {
                        let owners = &revision.metadata.owner_references;
                        let version = &there.metadata.resource_version;
                        let patch = json!({"metadata": {"ownerReferences": owners, "resourceVersion": version}});
                        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                            .await?
                    }
                }
            }
            outcome => outcome?,
        },
    };
    let cache = &context.caches.controller_revisions;
    cache.wait_for(&written).await;
    Ok(Kept::Yes)
}

/// Removes revisions that are of no use any more.
pub(super) async fn remove(
    context: &Context,
    namespace: &str,
    old: &[Arc<ControllerRevision>],
) -> Result<()> {
    let api = api(context, namespace);
    for one in old {
        let name = one.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            outcome => drop(outcome?),
        }
    }
    Ok(())
}
