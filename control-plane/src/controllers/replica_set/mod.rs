//! ReplicaSet: as many pods as asked for, no more and no fewer.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};

use self::plan::{Plan, plan, pod_of, with_failure};
use super::cache::Key;
use super::driver::{Queue, Result, drive, queue};
use super::pod_control::{PodControl, said};
use super::pods::{controller_of, orphans_in, owned_by, selects, uid};
use super::{Caches, Context};

const WORKERS: usize = 16;

/// Whether the number of pods could be made right, or else what a condition says about it.
type Scaled = std::result::Result<(), (&'static str, kube::Error)>;

struct Controller {
    context: Context,
    pods: PodControl,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let pods = PodControl::start(context, "ReplicaSet", "replicaset-controller");
    subscribe(&context.caches, &keys, &pods);
    let shutdown = context.shutdown.clone();
    let controller = Arc::new(Controller {
        context: context.clone(),
        pods,
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

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>, pods: &PodControl) {
    let (queue, control) = (keys.clone(), pods.clone());
    caches.replica_sets.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            control.forget(uid(&old.metadata));
        }
        queue.add(Key::of(
            &**new.or(old).expect("a change is about something"),
        ));
    });
    let (queue, control, all) = (keys.clone(), pods.clone(), caches.clone());
    caches.pods.on_change(move |old, new| {
        control.observe(old, new);
        for pod in [old, new].into_iter().flatten() {
            match control.owner_of(pod) {
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

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let Some(set) = self.context.caches.replica_sets.get(key) else {
            return Ok(None);
        };
        let owner = uid(&set.metadata);
        let wait = self.pods.wait(owner);
        let caches = &self.context.caches;
        let mut pods = caches.pods.by_index(&owned_by(owner));
        pods.extend(caches.pods.by_index(&orphans_in(&key.namespace)));
        let now = Timestamp::now();
        let mut plan = plan(&set, &pods, &self.related(&set, &pods), now);
        let mut outcome = Ok(());
        if wait.is_none() {
            outcome = self.pods.claim(&*set, &plan.claims, None).await;
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

    /// Creates and deletes. The error comes with the reason that people read.
    async fn scale(&self, set: &ReplicaSet, plan: &Plan) -> Scaled {
        let owner = uid(&set.metadata);
        self.pods.expect(owner, plan.create, &plan.delete);
        let created = self.pods.create(set, &vec![pod_of(set); plan.create]).await;
        created.map_err(|error| ("FailedCreate", error))?;
        let deleted = self.pods.delete(set, &plan.delete).await;
        deleted.map_err(|error| ("FailedDelete", error))
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
