//! Deployment: rolls pods from one template to the next through ReplicaSets, never beyond its fences.
//!
//! ```text
//!            template changed                     all pods new and available
//!  settled ────────────────────▶ rolling ───────────────────────────────────▶ settled
//!                                 │   ▲ resized: all sets in proportion
//!                                 └───┘
//! ```
//! Each pass does one step from what the ReplicaSets' status says; their changes bring the next one.

mod plan;
mod rollout;
mod sets;
mod status;
pub(super) mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use self::plan::{Change, Plan, plan};
use self::sets::{REVISION, Set, is_recreate};
use super::cache::Key;
use super::driver::{Queue, Result, is_namespace_going, queue};
use super::events::{Recorder, Severity, reference};
use super::pods::{controlled_by, controller_of, has_ended, owned_by, selects, uid};
use super::{Caches, Context};

const WORKERS: usize = 16;

struct Controller {
    context: Context,
    events: Recorder,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    subscribe(&context.caches, &keys);
    let events = Recorder::start(context.client.clone(), "deployment-controller");
    let controller = Controller {
        context: context.clone(),
        events,
    };
    let context = context.clone();
    context.drive("deployment", wakeups, WORKERS, async move |_, key| {
        controller.reconcile(key).await
    })
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>) {
    let queue = keys.clone();
    caches.deployments.on_change(move |old, new| {
        if let Some(deployment) = new.or(old) {
            queue.add(Key::of(&**deployment));
        }
    });
    let (queue, all) = (keys.clone(), caches.clone());
    caches.replica_sets.on_change(move |old, new| {
        for set in [old, new].into_iter().flatten() {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            match controller_of(&set.metadata) {
                Some(owner) if owner.kind == "Deployment" => {
                    queue.add(Key::new(namespace, &owner.name))
                }
                Some(_) => {}
                None => {
                    for deployment in all.deployments.list_in(namespace) {
                        if deployment
                            .spec
                            .as_ref()
                            .is_some_and(|spec| selects(&spec.selector, &set.metadata))
                        {
                            queue.add(Key::of(&*deployment));
                        }
                    }
                }
            }
        }
    });
    let (queue, all) = (keys.clone(), caches.clone());
    caches.pods.on_change(move |old, new| {
        // Only Recreate asks about pods: it waits for the last old one to go.
        let Some(pod) = new.or(old).filter(|pod| new.is_none() || has_ended(pod)) else {
            return;
        };
        let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")
        else {
            return;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(set) = all.replica_sets.get(&Key::new(namespace, &owner.name)) else {
            return;
        };
        if let Some(owner) = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment")
        {
            queue.add(Key::new(namespace, &owner.name));
        }
    });
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(deployment) = caches.deployments.get(key) else {
            return Ok(None);
        };
        let owned = self.claim(&deployment).await?;
        let plan = plan(
            &deployment,
            &owned,
            |old| is_recreate(&deployment) && self.any_pod_of(old),
            Timestamp::now(),
        );
        self.perform(&deployment, plan).await
    }

    /// The ReplicaSets that are this Deployment's, after taking in strays that its selector selects.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
        let mut owned = Vec::new();
        for set in self.context.caches.replica_sets.list_in(namespace) {
            match controller_of(&set.metadata) {
                Some(owner) if owner.uid == uid(&deployment.metadata) => owned.push(set),
                None if deployment.metadata.deletion_timestamp.is_none()
                    && set.metadata.deletion_timestamp.is_none()
                    && selector.is_some_and(|selector| selects(selector, &set.metadata)) =>
                {
                    owned.push(Arc::new(self.adopt(deployment, &set).await?));
                }
                _ => {}
            }
        }
        Ok(owned)
    }

    async fn adopt(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<ReplicaSet> {
        let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
        owners.push(controlled_by(deployment));
        let patch = json!({"metadata": {"resourceVersion": set.metadata.resource_version, "ownerReferences": owners}});
        let name = set.metadata.name.as_deref().unwrap_or_default();
        Ok(self
            .sets(deployment)
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?)
    }

    fn any_pod_of(&self, sets: &[Set]) -> bool {
        let pods = &self.context.caches.pods;
        let still_there = |pod: &Arc<Pod>| !has_ended(pod);
        sets.iter().any(|set| {
            pods.by_index(&owned_by(uid(&set.wanted.metadata)))
                .iter()
                .any(still_there)
        })
    }

    fn sets(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    async fn perform(&self, deployment: &Deployment, mut plan: Plan) -> Result<Option<Duration>> {
        let api = self.sets(deployment);
        if let Some(set) = &plan.create {
            match api.create(&PostParams::default(), set).await {
                Ok(created) => {
                    self.tell_scaled(deployment, set, 0);
                    self.context.caches.replica_sets.wait_for(&created).await;
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    if !self.is_ours(deployment, set).await? {
                        // Another Deployment's set has this name: the next pass takes another one.
                        *plan.status.collision_count.get_or_insert_default() += 1;
                    }
                }
                Err(error) => {
                    self.tell_refused(deployment, set, &error).await?;
                    return Err(error.into());
                }
            }
        }
        for Change {
            wanted,
            replicas_before,
        } in &plan.update
        {
            let name = wanted.metadata.name.as_deref().unwrap_or_default();
            api.replace(name, &PostParams::default(), wanted).await?;
            self.tell_scaled(deployment, wanted, *replicas_before);
        }
        for name in &plan.delete {
            let stale = self
                .context
                .caches
                .replica_sets
                .get(&Key::new(&Key::of(deployment).namespace, name));
            let same = Preconditions {
                uid: stale.and_then(|set| set.metadata.uid.clone()),
                resource_version: None,
            };
            api.delete(name, &DeleteParams::background().preconditions(same))
                .await?;
        }
        self.write(deployment, plan.revision.as_deref(), plan.status)
            .await?;
        Ok(plan.look_again)
    }

    /// Says in Event and status why there is no new set. Retries fail alike, and write nothing more.
    async fn tell_refused(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        error: &kube::Error,
    ) -> Result<()> {
        let kube::Error::Api(answer) = error else {
            return Ok(());
        };
        if is_namespace_going(answer) {
            return Ok(());
        }
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "Failed to create new replica set \"{name}\": {}",
            answer.message
        );
        self.events.report(
            reference(deployment),
            Severity::Warning,
            "ReplicaSetCreateError",
            message.clone(),
        );
        let status = status::refused(deployment, message, Timestamp::now());
        self.write(deployment, None, status).await
    }

    /// Whether the stored set of that name is the one that we meant to create.
    async fn is_ours(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<bool> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let Some(found) = self.sets(deployment).get_opt(name).await? else {
            return Ok(true);
        };
        let ours = controller_of(&found.metadata)
            .is_some_and(|owner| owner.uid == uid(&deployment.metadata));
        let templates = found
            .spec
            .and_then(|spec| spec.template)
            .zip(set.spec.as_ref().and_then(|s| s.template.as_ref()));
        Ok(ours && templates.is_some_and(|(found, meant)| template::same(&found, meant)))
    }

    async fn write(
        &self,
        deployment: &Deployment,
        revision: Option<&str>,
        status: DeploymentStatus,
    ) -> Result<()> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), namespace);
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let mut written = None;
        if let Some(revision) = revision {
            let version = &deployment.metadata.resource_version;
            let patch = json!({"metadata": {"annotations": {REVISION: revision}, "resourceVersion": version}});
            written = Some(
                api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?,
            );
        }
        if deployment.status.as_ref() != Some(&status) {
            // A write of the status carries the metadata, so it has to start from the newest.
            let mut deployment = written.unwrap_or_else(|| deployment.clone());
            deployment.status = Some(status);
            written = Some(
                api.replace_status(name, &PostParams::default(), &deployment)
                    .await?,
            );
        }
        if let Some(written) = written {
            self.context.caches.deployments.wait_for(&written).await;
        }
        Ok(())
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &ReplicaSet, before: i32) {
        let after = set
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or_default();
        if after == before {
            return;
        }
        let direction = if after > before { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Scaled {direction} replica set {name} from {before} to {after}");
        self.events.report(
            reference(deployment),
            Severity::Normal,
            "ScalingReplicaSet",
            message,
        );
    }
}
