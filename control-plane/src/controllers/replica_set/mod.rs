//! ReplicaSet: as many pods as asked for, no more and no fewer.

mod expectations;
mod plan;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use self::expectations::Expectations;
use self::plan::{Plan, plan, pod_of, with_failure};
use super::cache::Key;
use super::driver::{Queue, Result, drive, queue};
use super::events::{Recorder, Severity, reference};
use super::pods::{controlled_by, controller_of, orphans_in, owned_by, selects, uid};
use super::{Caches, Context};

const WORKERS: usize = 16;

/// Whether the number of pods could be made right, or else what a condition says about it.
type Scaled = std::result::Result<(), (&'static str, kube::Error)>;

struct Controller {
    context: Context,
    events: Recorder,
    expectations: Arc<Mutex<Expectations>>,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let expectations = Arc::new(Mutex::new(Expectations::default()));
    subscribe(&context.caches, &keys, &expectations);
    let shutdown = context.shutdown.clone();
    let events = Recorder::start(context.client.clone(), "replicaset-controller");
    let controller = Arc::new(Controller {
        context: context.clone(),
        events,
        expectations,
    });
    async move {
        controller.context.caches.wait_synced().await;
        drive("replicaset", wakeups, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        })
        .await;
    }
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>, expectations: &Arc<Mutex<Expectations>>) {
    let (queue, seen) = (keys.clone(), expectations.clone());
    caches.replica_sets.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            lock(&seen).forget(uid(&old.metadata));
        }
        queue.add(Key::of(
            &**new.or(old).expect("a change is about something"),
        ));
    });
    let (queue, seen, all) = (keys.clone(), expectations.clone(), caches.clone());
    caches.pods.on_change(move |old, new| {
        observe(&mut lock(&seen), old, new);
        for pod in [old, new].into_iter().flatten() {
            match set_of(pod) {
                Some((key, _)) => queue.add(key),
                None if controller_of(&pod.metadata).is_none() => {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                    for set in all.replica_sets.list_in(namespace) {
                        if set
                            .spec
                            .as_ref()
                            .is_some_and(|spec| selects(&spec.selector, &pod.metadata))
                        {
                            queue.add(Key::of(&*set));
                        }
                    }
                }
                None => {}
            }
        }
    });
}

fn observe(seen: &mut Expectations, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
    let Some((pod, (_, owner))) = new.or(old).and_then(|pod| Some((pod, set_of(pod)?))) else {
        return;
    };
    if old.is_none() {
        seen.created(&owner);
    }
    if new.is_none() || pod.metadata.deletion_timestamp.is_some() {
        seen.deleted(&owner, uid(&pod.metadata));
    }
}

/// The ReplicaSet that manages the pod, and its uid.
fn set_of(pod: &Pod) -> Option<(Key, String)> {
    let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
    Some((
        Key::new(
            pod.metadata.namespace.clone().unwrap_or_default(),
            &owner.name,
        ),
        owner.uid.clone(),
    ))
}

fn lock(expectations: &Mutex<Expectations>) -> MutexGuard<'_, Expectations> {
    expectations.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let Some(set) = self.context.caches.replica_sets.get(key) else {
            return Ok(None);
        };
        let owner = uid(&set.metadata);
        let wait = lock(&self.expectations).wait(owner, Instant::now());
        let caches = &self.context.caches;
        let mut pods = caches.pods.by_index(&owned_by(owner));
        pods.extend(caches.pods.by_index(&orphans_in(&key.namespace)));
        let now = Timestamp::now();
        let mut plan = plan(&set, &pods, &self.related(&set, &pods), now);
        let mut outcome = Ok(());
        if wait.is_none() {
            outcome = self.claim(&set, &plan).await;
        }
        if wait.is_none() && outcome.is_ok() {
            let scaled = self.scale(&set, &plan).await;
            // A conflict says only that our copy was old.
            if !matches!(&scaled, Err((_, kube::Error::Api(status))) if status.is_conflict()) {
                let failure = scaled.as_ref().err();
                let failure = failure.map(|(reason, error)| (*reason, said(error)));
                with_failure(&mut plan.status, set.status.as_ref(), failure, now);
            }
            outcome = scaled.map_err(|(_, error)| error.into());
        }
        self.write_status(&set, plan.status).await?;
        outcome?;
        Ok([wait, plan.look_again].into_iter().flatten().min())
    }

    /// The pods of all ReplicaSets with the same owner: a Deployment's old and new ones together crowd a node.
    fn related(&self, set: &ReplicaSet, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(parent) = controller_of(&set.metadata) else {
            return own.to_vec();
        };
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let siblings = self.context.caches.replica_sets.list_in(namespace);
        let siblings = siblings.iter().filter(|other| {
            controller_of(&other.metadata).is_some_and(|owner| owner.uid == parent.uid)
        });
        siblings
            .flat_map(|other| {
                self.context
                    .caches
                    .pods
                    .by_index(&owned_by(uid(&other.metadata)))
            })
            .collect()
    }

    fn pods(&self, set: &ReplicaSet) -> Api<Pod> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// Takes in and lets go.
    async fn claim(&self, set: &ReplicaSet, plan: &Plan) -> Result<()> {
        let api = self.pods(set);
        for pod in &plan.adopt {
            change_owners(&api, pod, |owners| owners.push(controlled_by(set))).await?;
        }
        for pod in &plan.release {
            change_owners(&api, pod, |owners| {
                owners.retain(|owner| owner.uid != uid(&set.metadata))
            })
            .await?;
        }
        Ok(())
    }

    /// Creates and deletes. The error comes with the reason that people read.
    async fn scale(&self, set: &ReplicaSet, plan: &Plan) -> Scaled {
        let api = self.pods(set);
        let doomed: HashSet<String> = plan
            .delete
            .iter()
            .map(|pod| uid(&pod.metadata).to_owned())
            .collect();
        lock(&self.expectations).expect(uid(&set.metadata), plan.create, doomed, Instant::now());
        let created = self.create(&api, set, plan.create).await;
        created.map_err(|error| ("FailedCreate", error))?;
        let deleted = self.delete(&api, set, &plan.delete).await;
        deleted.map_err(|error| ("FailedDelete", error))
    }

    /// One, two, four …: a template that the server refuses is refused once, not a hundred times.
    async fn create(
        &self,
        api: &Api<Pod>,
        set: &ReplicaSet,
        count: usize,
    ) -> std::result::Result<(), kube::Error> {
        let template = pod_of(set);
        let mut left = count;
        let mut batch = 1;
        while left > 0 {
            let now = batch.min(left);
            let params = PostParams::default();
            let outcomes = join_all((0..now).map(|_| api.create(&params, &template))).await;
            left -= now;
            let mut failed = None;
            for outcome in outcomes {
                match outcome {
                    Ok(pod) => {
                        let message =
                            format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
                        self.events.report(
                            reference(set),
                            Severity::Normal,
                            "SuccessfulCreate",
                            message,
                        );
                    }
                    Err(error) => {
                        lock(&self.expectations).created(uid(&set.metadata));
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                for _ in 0..left {
                    lock(&self.expectations).created(uid(&set.metadata));
                }
                let message = format!("Error creating: {}", said(&error));
                self.events
                    .report(reference(set), Severity::Warning, "FailedCreate", message);
                return Err(error);
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(
        &self,
        api: &Api<Pod>,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
    ) -> std::result::Result<(), kube::Error> {
        let deletions = pods.iter().map(|pod| async move {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let same = Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            };
            let outcome = api
                .delete(name, &DeleteParams::background().preconditions(same))
                .await;
            (pod, name, outcome)
        });
        let mut failed = Ok(());
        for (pod, name, outcome) in join_all(deletions).await {
            match outcome {
                Ok(_) => {
                    let message = format!("Deleted pod: {name}");
                    self.events.report(
                        reference(set),
                        Severity::Normal,
                        "SuccessfulDelete",
                        message,
                    );
                }
                Err(error) => {
                    lock(&self.expectations).deleted(uid(&set.metadata), uid(&pod.metadata));
                    if !matches!(&error, kube::Error::Api(status) if status.is_not_found()) {
                        let message = format!("Error deleting: {}", said(&error));
                        self.events.report(
                            reference(set),
                            Severity::Warning,
                            "FailedDelete",
                            message,
                        );
                        failed = Err(error);
                    }
                }
            }
        }
        failed
    }

    async fn write_status(&self, set: &ReplicaSet, status: ReplicaSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), namespace);
        let mut set = set.clone();
        set.status = Some(status);
        let name = Key::of(&set).name;
        let written = api
            .replace_status(&name, &PostParams::default(), &set)
            .await?;
        self.context.caches.replica_sets.wait_for(&written).await;
        Ok(())
    }
}

async fn change_owners(
    api: &Api<Pod>,
    pod: &Pod,
    change: impl FnOnce(&mut Vec<OwnerReference>),
) -> Result<()> {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    change(&mut owners);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    // The version makes the server refuse if the list has changed since.
    let patch = json!({"metadata": {"resourceVersion": pod.metadata.resource_version, "ownerReferences": owners}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// The server's own words, without the wrapping.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
