//! PodDisruptionBudgets: how many of a budget's pods are healthy, and how many may be evicted now.

mod plan;
pub(super) mod stale;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams, Resource};

use self::plan::{Plan, Scale, plan};
use super::cache::{Cache, Key};
use super::driver::{Queue, Result, queue};
use super::events::{Recorder, Severity, reference};
use super::pods::{controller_of, selects, uid};
use super::{Caches, Context};

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    events: Recorder,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    subscribe(&context.caches, &keys);
    let controller = Controller {
        context: context.clone(),
        events: Recorder::start(context.client.clone(), "controllermanager"),
    };
    let context = context.clone();
    context.drive("disruption", wakeups, WORKERS, async move |_, key| {
        controller.reconcile(key).await
    })
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>) {
    let queue = keys.clone();
    caches.pod_disruption_budgets.on_change(move |_, new| {
        if let Some(budget) = new {
            queue.add(Key::of(&**budget));
        }
    });
    let (queue, budgets) = (keys.clone(), caches.pod_disruption_budgets.clone());
    caches.pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let about = budgets.list_in(namespace).into_iter();
            about
                .filter(|budget| is_about(budget, pod))
                .for_each(|budget| queue.add(Key::of(&*budget)));
        }
    });
    on_scale(caches, keys, &caches.deployments, |it| {
        it.spec.as_ref()?.replicas
    });
    on_scale(caches, keys, &caches.replica_sets, |it| {
        it.spec.as_ref()?.replicas
    });
    on_scale(caches, keys, &caches.stateful_sets, |it| {
        it.spec.as_ref()?.replicas
    });
    on_scale(caches, keys, &caches.replication_controllers, |it| {
        it.spec.as_ref()?.replicas
    });
}

/// Another number of pods that are wanted changes what a share of them is.
fn on_scale<K>(
    caches: &Arc<Caches>,
    keys: &Queue<Key>,
    cache: &Arc<Cache<K>>,
    replicas: fn(&K) -> Option<i32>,
) where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (queue, budgets) = (keys.clone(), caches.pod_disruption_budgets.clone());
    cache.on_change(move |old, new| {
        let wanted = |object: Option<&Arc<K>>| object.map(|object| replicas(object));
        if let Some(object) = new.or(old)
            && wanted(old) != wanted(new)
        {
            for budget in budgets.list_in(&Key::of(&**object).namespace) {
                queue.add(Key::of(&*budget));
            }
        }
    });
}

fn is_about(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|it| it.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, &pod.metadata))
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(budget) = caches.pod_disruption_budgets.get(key) else {
            return Ok(None);
        };
        let mut pods = caches.pods.list_in(&key.namespace);
        pods.retain(|pod| is_about(&budget, pod));
        let scale_of = |owner: &OwnerReference| scale_of(caches, &key.namespace, owner);
        let plan = plan(&budget, &pods, scale_of, Timestamp::now());
        let changed = budget.status.as_ref() != Some(&plan.status);
        if changed {
            self.tell(&budget, &pods, &plan);
            let mut new = (*budget).clone();
            new.status = Some(plan.status);
            let api: Api<PodDisruptionBudget> =
                Api::namespaced(self.context.client.clone(), &key.namespace);
            let written = api
                .replace_status(&key.name, &PostParams::default(), &new)
                .await?;
            caches.pod_disruption_budgets.wait_for(&written).await;
        }
        Ok(plan.look_again)
    }

    /// What people should know of, once for each time that it changes something.
    fn tell(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>], plan: &Plan) {
        let report = |severity, reason, message: String| {
            self.events
                .report(reference(budget), severity, reason, message);
        };
        if pods.is_empty() {
            let message = "No matching pods found".to_owned();
            report(Severity::Normal, "NoPods", message);
        }
        if let Some(why) = &plan.failure {
            report(
                Severity::Warning,
                "CalculateExpectedPodCountFailed",
                format!("Failed to calculate the number of expected pods: {why}"),
            );
        }
        if plan.unmanaged {
            report(
                Severity::Warning,
                "UnmanagedPods",
                "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.".to_owned(),
            );
        }
        for pod in &plan.stayed {
            let Key { namespace, name } = Key::of(budget);
            let message =
                format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't");
            self.events
                .report(reference(&**pod), Severity::Warning, "NotDeleted", message);
        }
    }
}

/// What wants the pods that `owner` manages: of a Deployment's ReplicaSet, the Deployment.
fn scale_of(caches: &Caches, namespace: &str, owner: &OwnerReference) -> Option<Scale> {
    let key = Key::new(namespace, &owner.name);
    let (uid, replicas) = match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => {
            let set = caches.replica_sets.get(&key)?;
            if uid(&set.metadata) != owner.uid {
                return None;
            }
            let parent = controller_of(&set.metadata).filter(|it| it.kind == "Deployment");
            if let Some(parent) = parent {
                let deployment = caches.deployments.get(&Key::new(namespace, &parent.name))?;
                let replicas = deployment.spec.as_ref()?.replicas;
                return (uid(&deployment.metadata) == parent.uid)
                    .then(|| (parent.uid.clone(), replicas.unwrap_or(1)));
            }
            (uid(&set.metadata).to_owned(), set.spec.as_ref()?.replicas)
        }
        ("apps/v1", "StatefulSet") => {
            let set = caches.stateful_sets.get(&key)?;
            (uid(&set.metadata).to_owned(), set.spec.as_ref()?.replicas)
        }
        ("v1", "ReplicationController") => {
            let controller = caches.replication_controllers.get(&key)?;
            let uid = uid(&controller.metadata).to_owned();
            (uid, controller.spec.as_ref()?.replicas)
        }
        _ => return None,
    };
    (uid == owner.uid).then(|| (uid, replicas.unwrap_or(1)))
}
