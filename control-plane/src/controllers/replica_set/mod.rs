//! ReplicaSet and ReplicationController: as many pods as asked for, no more and no fewer.

mod kind;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};

use self::kind::Replicated;
use self::plan::{Plan, plan, pod_of, with_failure};
use super::cache::Key;
use super::driver::{Queue, Result, queue};
use super::pod_control::{PodControl, said};
use super::pods::{controlled_by, controller_of, orphans_in, owned_by, selects, uid};
use super::{Caches, Context};

const WORKERS: usize = 16;

/// Whether the number of pods could be made right, or else what a condition says about it.
type Scaled = std::result::Result<(), (&'static str, kube::Error)>;

struct Controller {
    context: Context,
    pods: PodControl,
}

/// Registers with the caches for both kinds; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let sets = start_of::<ReplicaSet>(context);
    let controllers = start_of::<ReplicationController>(context);
    async move {
        tokio::join!(sets, controllers);
    }
}

fn start_of<K: Replicated>(context: &Context) -> impl Future<Output = ()> + use<K> {
    let (keys, wakeups) = queue();
    let pods = PodControl::start(context, K::KIND, K::CONTROLLER);
    subscribe::<K>(&context.caches, &keys, &pods);
    let controller = Controller {
        context: context.clone(),
        pods,
    };
    let context = context.clone();
    context.drive(K::CONTROLLER, wakeups, WORKERS, async move |_, key| {
        controller.reconcile::<K>(key).await
    })
}

fn subscribe<K: Replicated>(caches: &Arc<Caches>, keys: &Queue<Key>, pods: &PodControl) {
    let (queue, control) = (keys.clone(), pods.clone());
    K::cache(caches).on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            control.forget(uid(old.meta()));
        }
        queue.add(Key::of(
            &**new.or(old).expect("a change is about something"),
        ));
    });
    pods.follow(caches, K::cache(caches), keys, |owner, pod| {
        let spec = owner.as_set().spec;
        spec.is_some_and(|spec| selects(&spec.selector, &pod.metadata))
    });
}

impl Controller {
    async fn reconcile<K: Replicated>(&self, key: &Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(owner) = K::cache(caches).get(key) else {
            return Ok(None);
        };
        let set = owner.as_set();
        let wait = self.pods.wait(uid(&set.metadata));
        let mut pods = caches.pods.by_index(&owned_by(uid(&set.metadata)));
        pods.extend(caches.pods.by_index(&orphans_in(&key.namespace)));
        let now = Timestamp::now();
        let mut plan = plan(&set, &pods, &self.related(&set, &pods), now);
        let mut outcome = Ok(());
        if wait.is_none() {
            outcome = self.pods.claim(&*owner, &plan.claims, None).await;
        }
        if wait.is_none() && outcome.is_ok() {
            let scaled = self.scale(&*owner, &set, &plan).await;
            // A conflict says only that our copy was old.
            if !matches!(&scaled, Err((_, kube::Error::Api(status))) if status.is_conflict()) {
                let failure = scaled.as_ref().err();
                let failure = failure.map(|(reason, error)| (*reason, said(error)));
                with_failure(&mut plan.status, set.status.as_ref(), failure, now);
            }
            outcome = scaled.map_err(|(_, error)| error.into());
        }
        if set.status.as_ref() != Some(&plan.status) {
            self.write_status(&*owner, plan.status).await?;
        }
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
    async fn scale<K: Replicated>(&self, owner: &K, set: &ReplicaSet, plan: &Plan) -> Scaled {
        self.pods
            .expect(uid(&set.metadata), plan.create, &plan.delete);
        let pod = pod_of(set, controlled_by(owner));
        let created = self.pods.create(owner, &vec![pod; plan.create]).await;
        created.map_err(|error| ("FailedCreate", error))?;
        let deleted = self.pods.delete(owner, &plan.delete).await;
        deleted.map_err(|error| ("FailedDelete", error))
    }

    async fn write_status<K: Replicated>(&self, owner: &K, status: ReplicaSetStatus) -> Result<()> {
        let Key { namespace, name } = Key::of(owner);
        let api: Api<K> = Api::namespaced(self.context.client.clone(), &namespace);
        let written = api
            .replace_status(&name, &PostParams::default(), &owner.with_status(status))
            .await?;
        K::cache(&self.context.caches).wait_for(&written).await;
        Ok(())
    }
}
