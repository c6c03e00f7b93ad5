//! StatefulSet: pods with names and volumes of their own, made and removed one after the other.

mod identity;
mod plan;
mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams, ResourceExt as _};
use serde_json::json;

use self::identity::revision_of;
use self::plan::{Picture, Plan, Revision, plan};
use super::cache::Key;
use super::driver::{Queue, Result, queue};
use super::events::{Severity, reference};
use super::pod_control::{PodControl, Wording, said};
use super::pods::{controller_of, orphans_in, owned_by, selects, uid};
use super::revisions::{Kept, keep, newest, outdated, remove, template_of};
use super::{Caches, Context};

const WORKERS: usize = 4;
const KIND: &str = "StatefulSet";
/// Where a revision's own label has the hash of its template.
const HASH: &str = "controller.kubernetes.io/hash";

struct Controller {
    context: Context,
    pods: PodControl,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let pods = PodControl::start(context, KIND, "statefulset-controller");
    let pods = pods.worded(Wording::PodInOwner);
    subscribe(&context.caches, &keys, &pods);
    let controller = Controller {
        context: context.clone(),
        pods,
    };
    let context = context.clone();
    context.drive("statefulset", wakeups, WORKERS, async move |_, key| {
        controller.reconcile(key).await
    })
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>, pods: &PodControl) {
    let (queue, control) = (keys.clone(), pods.clone());
    caches.stateful_sets.on_change(move |old, new| {
        if let (Some(old), None) = (old, new) {
            control.forget(uid(&old.metadata));
        }
        if let Some(set) = new {
            queue.add(Key::of(&**set));
        }
    });
    let queue = keys.clone();
    caches.controller_revisions.on_change(move |old, new| {
        let Some(revision) = new.or(old) else { return };
        let owner = controller_of(&revision.metadata).filter(|owner| owner.kind == KIND);
        if let Some(owner) = owner {
            queue.add(Key::new(
                revision.namespace().unwrap_or_default(),
                &owner.name,
            ));
        }
    });
    let (queue, sets) = (keys.clone(), caches.stateful_sets.clone());
    caches.volume_claims.on_change(move |old, new| {
        let Some(claim) = new.or(old) else { return };
        for set in sets.list_in(claim.metadata.namespace.as_deref().unwrap_or_default()) {
            let spec = set.spec.as_ref();
            if spec.is_some_and(|spec| spec.volume_claim_templates.is_some()) {
                queue.add(Key::of(&*set));
            }
        }
    });
    pods.follow(caches, &caches.stateful_sets, keys, |set, pod| {
        let spec = set.spec.as_ref();
        spec.is_some_and(|spec| selects(&spec.selector, &pod.metadata))
    });
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(set) = caches.stateful_sets.get(key) else {
            return Ok(None);
        };
        let Some(spec) = &set.spec else {
            return Ok(None);
        };
        let before = set.status.clone().unwrap_or_default();
        let owner = uid(&set.metadata);
        let revisions = caches.controller_revisions.by_index(&owned_by(owner));
        let collisions = before.collision_count;
        let newest = newest(&*set, &spec.template, collisions, HASH, &revisions);
        if set.metadata.deletion_timestamp.is_none()
            && keep(&self.context, &key.namespace, &newest).await? == Kept::NameTaken
        {
            let mut status = before;
            *status.collision_count.get_or_insert(0) += 1;
            self.write_status(&set, status).await?;
            return Ok(None);
        }
        let update = Revision {
            name: newest
                .revision()
                .metadata
                .name
                .as_deref()
                .unwrap_or_default(),
            template: &spec.template,
        };
        let earlier = before.current_revision.as_deref().and_then(|name| {
            let mut revisions = revisions.iter();
            let revision = revisions.find(|one| one.metadata.name.as_deref() == Some(name))?;
            Some((name, template_of(revision)?))
        });
        let current = earlier
            .as_ref()
            .map_or(update, |(name, template)| Revision { name, template });
        let wait = self.pods.wait(owner);
        let mut around = caches.pods.by_index(&owned_by(owner));
        around.extend(caches.pods.by_index(&orphans_in(&key.namespace)));
        let volumes = match spec.volume_claim_templates {
            Some(_) => self.volumes(&key.namespace),
            None => BTreeMap::new(),
        };
        let mut plan = plan(&Picture {
            set: &set,
            current,
            update,
            around: &around,
            volumes: &volumes,
            settled: wait.is_none(),
            now: Timestamp::now(),
        });
        let mut outcome = Ok(());
        if wait.is_none() {
            for (severity, reason, message) in std::mem::take(&mut plan.events) {
                let about = reference(&*set);
                self.pods.events.report(about, severity, reason, message);
            }
            outcome = self.perform(&set, &plan).await;
        }
        if wait.is_none() && outcome.is_ok() {
            let own = plan.claims.own.iter();
            let live: Vec<&str> = own.filter_map(|pod| revision_of(pod)).collect();
            let is_live = |one: &ControllerRevision| {
                let name = one.metadata.name.as_deref().unwrap_or_default();
                name == current.name || name == update.name || live.contains(&name)
            };
            let old = outdated(spec.revision_history_limit, &revisions, is_live);
            outcome = remove(&self.context, &key.namespace, &old).await;
        }
        // What could not be done does not keep people from seeing what is.
        self.write_status(&set, plan.status).await?;
        outcome?;
        Ok([wait, plan.look_again].into_iter().flatten().min())
    }

    /// The claims of a namespace, by name.
    fn volumes(&self, namespace: &str) -> BTreeMap<String, Arc<PersistentVolumeClaim>> {
        let claims = self.context.caches.volume_claims.list_in(namespace);
        let named = claims
            .into_iter()
            .map(|claim| (claim.metadata.name.clone().unwrap_or_default(), claim));
        named.collect()
    }

    async fn perform(&self, set: &StatefulSet, plan: &Plan) -> Result<()> {
        self.pods.claim(set, &plan.claims, None).await?;
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), namespace);
        for (pod, claim) in &plan.make_claims {
            self.make_claim(&claims, set, pod, claim).await?;
        }
        for (claim, owners) in &plan.own_claims {
            // The version makes the server refuse if the owners have changed since.
            let version = &claim.metadata.resource_version;
            let patch =
                json!({"metadata": {"ownerReferences": owners, "resourceVersion": version}});
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            claims
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        let owner = uid(&set.metadata);
        self.pods.expect(owner, plan.create.len(), &plan.delete);
        let deleted = self.pods.delete(set, &plan.delete).await;
        let created = self.pods.create(set, &plan.create).await;
        Ok(deleted.and(created)?)
    }

    async fn make_claim(
        &self,
        api: &Api<PersistentVolumeClaim>,
        set: &StatefulSet,
        pod: &str,
        claim: &PersistentVolumeClaim,
    ) -> Result<()> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let owner = set.metadata.name.as_deref().unwrap_or_default();
        let tell = |severity, reason, outcome: String| {
            let message = format!("create Claim {name} Pod {pod} in StatefulSet {owner} {outcome}");
            let about = reference(set);
            self.pods.events.report(about, severity, reason, message);
        };
        match api.create(&PostParams::default(), claim).await {
            Ok(_) => tell(Severity::Normal, "SuccessfulCreate", "success".to_owned()),
            // The cache does not show it yet.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => {
                let outcome = format!("failed error: {}", said(&error));
                tell(Severity::Warning, "FailedCreate", outcome);
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let Key { namespace, name } = Key::of(set);
        let api: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut set = set.clone();
        set.status = Some(status);
        let written = api
            .replace_status(&name, &PostParams::default(), &set)
            .await?;
        self.context.caches.stateful_sets.wait_for(&written).await;
        Ok(())
    }
}
