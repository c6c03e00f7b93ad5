//! DaemonSet: one pod on each node that suits it.

mod nodes;
mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};

use self::nodes::REVISION;
use self::plan::plan;
use super::cache::Key;
use super::driver::{Queue, Result, queue};
use super::events::reference;
use super::pod_control::PodControl;
use super::pods::{controller_of, orphans_in, owned_by, selects, uid};
use super::revisions::{Kept, keep, newest, outdated, remove};
use super::{Caches, Context};

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    pods: PodControl,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let pods = PodControl::start(context, "DaemonSet", "daemonset-controller");
    subscribe(&context.caches, &keys, &pods);
    let controller = Controller {
        context: context.clone(),
        pods,
    };
    let context = context.clone();
    context.drive("daemonset", wakeups, WORKERS, async move |_, key| {
        controller.reconcile(key).await
    })
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>, pods: &PodControl) {
    let (queue, control) = (keys.clone(), pods.clone());
    caches.daemon_sets.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            control.forget(uid(&old.metadata));
        }
        if let Some(set) = new {
            queue.add(Key::of(&**set));
        }
    });
    let (queue, sets) = (keys.clone(), caches.daemon_sets.clone());
    caches.nodes.on_change(move |old, new| {
        if old.map(|node| place_of(node)) != new.map(|node| place_of(node)) {
            sets.list()
                .iter()
                .for_each(|set| queue.add(Key::of(&**set)));
        }
    });
    let queue = keys.clone();
    caches.controller_revisions.on_change(move |old, new| {
        let owner = new
            .or(old)
            .and_then(|one| controller_of(&one.metadata).cloned());
        let namespace = new.or(old).and_then(|one| one.metadata.namespace.clone());
        if let Some(owner) = owner.filter(|owner| owner.kind == "DaemonSet") {
            queue.add(Key::new(namespace.unwrap_or_default(), owner.name));
        }
    });
    pods.follow(caches, &caches.daemon_sets, keys, |set, pod| {
        let spec = set.spec.as_ref();
        spec.is_some_and(|spec| selects(&spec.selector, &pod.metadata))
    });
}

/// Which template something is of, by its label.
fn of(meta: &ObjectMeta) -> Option<&str> {
    meta.labels.as_ref()?.get(REVISION).map(String::as_str)
}

fn hash_of(revision: &ControllerRevision) -> &str {
    of(&revision.metadata).unwrap_or_default()
}

/// All of a node that says whether a pod may be there.
fn place_of(node: &Node) -> impl PartialEq + use<> {
    let spec = node.spec.as_ref();
    (
        node.metadata.labels.clone(),
        spec.and_then(|spec| spec.taints.clone()),
    )
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(set) = caches.daemon_sets.get(key) else {
            return Ok(None);
        };
        let Some(spec) = &set.spec else {
            return Ok(None);
        };
        let owner = uid(&set.metadata);
        let revisions = caches.controller_revisions.by_index(&owned_by(owner));
        let collisions = set.status.as_ref().and_then(|it| it.collision_count);
        let newest = newest(&*set, &spec.template, collisions, REVISION, &revisions);
        let revision = hash_of(newest.revision());
        if set.metadata.deletion_timestamp.is_none()
            && keep(&self.context, &key.namespace, &newest).await? == Kept::NameTaken
        {
            let mut status = set.status.clone().unwrap_or_default();
            *status.collision_count.get_or_insert(0) += 1;
            self.write_status(&set, status).await?;
            return Ok(None);
        }
        let wait = self.pods.wait(owner);
        let mut pods = caches.pods.by_index(&owned_by(owner));
        pods.extend(caches.pods.by_index(&orphans_in(&key.namespace)));
        let (nodes, now) = (caches.nodes.list(), Timestamp::now());
        let plan = plan(&set, revision, &pods, &nodes, wait.is_none(), now);
        if wait.is_none() {
            self.pods.claim(&*set, &plan.claims, None).await?;
            for (severity, reason, message) in plan.events {
                let about = reference(&*set);
                self.pods.events.report(about, severity, reason, message);
            }
            self.pods.expect(owner, plan.create.len(), &plan.delete);
            let deleted = self.pods.delete(&*set, &plan.delete).await;
            let created = self.pods.create(&*set, &plan.create).await;
            deleted.and(created)?;
            let live: BTreeSet<&str> = plan
                .claims
                .own
                .iter()
                .filter_map(|pod| of(&pod.metadata))
                .collect();
            let is_live = |one: &ControllerRevision| {
                let hash = hash_of(one);
                hash == revision || live.contains(hash)
            };
            let old = outdated(spec.revision_history_limit, &revisions, is_live);
            remove(&self.context, &key.namespace, &old).await?;
        }
        self.write_status(&set, plan.status).await?;
        Ok([wait, plan.look_again].into_iter().flatten().min())
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let Key { namespace, name } = Key::of(set);
        let api: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut set = set.clone();
        set.status = Some(status);
        let written = api
            .replace_status(&name, &PostParams::default(), &set)
            .await?;
        self.context.caches.daemon_sets.wait_for(&written).await;
        Ok(())
    }
}
