//! Pods that controllers make and remove in an owner's name: told as Events, and expected until the cache has seen them.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cache::{Cache, Key};
use super::driver::{Error, Queue, Result};
use super::events::{Recorder, Severity, reference};
use super::expectations::Expectations;
use super::pods::{Claims, controlled_by, controller_of, uid};
use super::{Caches, Context};

/// How Events tell what was done, as upstream's controllers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wording {
    /// `Created pod: NAME`
    Pod,
    /// `create Pod NAME in StatefulSet OWNER successful`
    PodInOwner,
}

/// The pods of one kind's objects.
#[derive(Clone)]
pub(super) struct PodControl {
    client: kube::Client,
    /// The owners' kind.
    kind: &'static str,
    wording: Wording,
    pub(super) events: Recorder,
    expectations: Arc<Mutex<Expectations>>,
}

impl PodControl {
    /// `component` is the Events' source.
    pub(super) fn start(context: &Context, kind: &'static str, component: &'static str) -> Self {
        Self {
            client: context.client.clone(),
            kind,
            wording: Wording::Pod,
            events: Recorder::start(context.client.clone(), component),
            expectations: Arc::default(),
        }
    }

    pub(super) fn worded(self, wording: Wording) -> Self {
        Self { wording, ..self }
    }

    pub(super) fn expectations(&self) -> MutexGuard<'_, Expectations> {
        self.expectations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The object that manages the pod, and its uid.
    pub(super) fn owner_of(&self, pod: &Pod) -> Option<(Key, String)> {
        let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == self.kind)?;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        Some((Key::new(namespace, &owner.name), owner.uid.clone()))
    }

    /// Takes note of a change of the cache.
    pub(super) fn observe(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let Some((pod, (_, owner))) = new.or(old).and_then(|pod| Some((pod, self.owner_of(pod)?)))
        else {
            return;
        };
        if old.is_none() {
            self.expectations().created(&owner);
        }
        if new.is_none() || pod.metadata.deletion_timestamp.is_some() {
            self.expectations().deleted(&owner, uid(&pod.metadata));
        }
    }

    /// Queues an owner at each change of its pods, and whoever `takes` a pod that nobody manages.
    pub(super) fn follow<K>(
        &self,
        caches: &Caches,
        owners: &Arc<Cache<K>>,
        queue: &Queue<Key>,
        takes: impl Fn(&K, &Pod) -> bool + Send + Sync + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (control, owners, queue) = (self.clone(), owners.clone(), queue.clone());
        caches.pods.on_change(move |old, new| {
            control.observe(old, new);
            for pod in [old, new].into_iter().flatten() {
                if let Some((key, _)) = control.owner_of(pod) {
                    queue.add(key);
                } else if controller_of(&pod.metadata).is_none() {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                    let mut all = owners.list_in(namespace);
                    all.retain(|owner| takes(owner, pod));
                    all.iter().for_each(|owner| queue.add(Key::of(&**owner)));
                }
            }
        });
    }

    /// The owner is gone.
    pub(super) fn forget(&self, owner: &str) {
        self.expectations().forget(owner);
    }

    /// How long to wait at most before the cache shows what was done for the owner; `None`: it does.
    pub(super) fn wait(&self, owner: &str) -> Option<Duration> {
        self.expectations().wait(owner, Instant::now())
    }

    /// Until the cache has seen so many new pods and these going, it is known to be behind.
    pub(super) fn expect(&self, owner: &str, creates: usize, doomed: &[Arc<Pod>]) {
        let doomed: HashSet<String> = doomed
            .iter()
            .map(|pod| uid(&pod.metadata).to_owned())
            .collect();
        self.expectations()
            .expect(owner, creates, doomed, Instant::now());
    }

    /// Takes in and lets go. What is taken in gets `finalizer`, too.
    pub(super) async fn claim<K>(
        &self,
        owner: &K,
        claims: &Claims,
        finalizer: Option<&str>,
    ) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let api = self.api(namespace);
        if !claims.adopt.is_empty() {
            // The cache may not know yet that the owner goes and leaves its pods behind.
            let owners: Api<K> = Api::namespaced(self.client.clone(), namespace);
            let name = owner.meta().name.as_deref().unwrap_or_default();
            let now = owners.get_metadata(name).await?.metadata;
            if now.uid != owner.meta().uid || now.deletion_timestamp.is_some() {
                return Err(Error::Object(format!(
                    "{} {namespace}/{name} is going and takes no pods in",
                    self.kind
                )));
            }
        }
        for pod in &claims.adopt {
            let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
            finalizers.extend(finalizer.map(str::to_owned));
            let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
            owners.push(controlled_by(owner));
            change(&api, pod, owners, finalizers).await?;
        }
        for pod in &claims.release {
            let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
            finalizers.retain(|name| Some(name.as_str()) != finalizer);
            let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
            owners.retain(|one| one.uid != uid(owner.meta()));
            change(&api, pod, owners, finalizers).await?;
        }
        Ok(())
    }

    /// Creates all of `pods`, which have to be expected. One, two, four …: a template that the server refuses is refused
    /// once, not a hundred times.
    pub(super) async fn create<K>(
        &self,
        owner: &K,
        pods: &[Pod],
    ) -> std::result::Result<(), kube::Error>
    where
        K: Resource<DynamicType = ()>,
    {
        let api = self.api(owner.meta().namespace.as_deref().unwrap_or_default());
        let params = PostParams::default();
        let mut left = pods;
        let mut batch = 1;
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let outcomes = join_all(now.iter().map(|pod| api.create(&params, pod))).await;
            let mut failed = None;
            for (pod, outcome) in now.iter().zip(outcomes) {
                match outcome {
                    Ok(pod) => self.tell(owner, Done::Create, &pod, None),
                    Err(error) => {
                        self.expectations().created(uid(owner.meta()));
                        failed = Some((pod, error));
                    }
                }
            }
            if let Some((pod, error)) = failed {
                for _ in later {
                    self.expectations().created(uid(owner.meta()));
                }
                self.tell(owner, Done::Create, pod, Some(&error));
                return Err(error);
            }
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes all of `pods`, which have to be expected.
    pub(super) async fn delete<K>(
        &self,
        owner: &K,
        pods: &[Arc<Pod>],
    ) -> std::result::Result<(), kube::Error>
    where
        K: Resource<DynamicType = ()>,
    {
        let api = self.api(owner.meta().namespace.as_deref().unwrap_or_default());
        let api = &api;
        let deletions = pods.iter().map(|pod| async move {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let same = Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            };
            let params = DeleteParams::background().preconditions(same);
            (pod, api.delete(name, &params).await)
        });
        let mut failed = Ok(());
        for (pod, outcome) in join_all(deletions).await {
            match outcome {
                Ok(_) => self.tell(owner, Done::Delete, pod, None),
                Err(error) => {
                    self.expectations()
                        .deleted(uid(owner.meta()), uid(&pod.metadata));
                    if !matches!(&error, kube::Error::Api(status) if status.is_not_found()) {
                        self.tell(owner, Done::Delete, pod, Some(&error));
                        failed = Err(error);
                    }
                }
            }
        }
        failed
    }

    fn tell<K>(&self, owner: &K, done: Done, pod: &Pod, error: Option<&kube::Error>)
    where
        K: Resource<DynamicType = ()>,
    {
        let about = reference(owner);
        let owner = owner.meta().name.as_deref().unwrap_or_default();
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        let error = error.map(said);
        let message = self
            .wording
            .say(done, pod, self.kind, owner, error.as_deref());
        let (severity, reason) = match (done, error.is_some()) {
            (Done::Create, false) => (Severity::Normal, "SuccessfulCreate"),
            (Done::Create, true) => (Severity::Warning, "FailedCreate"),
            (Done::Delete, false) => (Severity::Normal, "SuccessfulDelete"),
            (Done::Delete, true) => (Severity::Warning, "FailedDelete"),
        };
        self.events.report(about, severity, reason, message);
    }
}

/// What became of a pod, or should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Create,
    Delete,
}

impl Wording {
    fn say(self, done: Done, pod: &str, kind: &str, owner: &str, error: Option<&str>) -> String {
        match (self, done, error) {
            (Self::Pod, Done::Create, None) => format!("Created pod: {pod}"),
            (Self::Pod, Done::Delete, None) => format!("Deleted pod: {pod}"),
            (Self::Pod, Done::Create, Some(error)) => format!("Error creating: {error}"),
            (Self::Pod, Done::Delete, Some(error)) => format!("Error deleting: {error}"),
            (Self::PodInOwner, _, error) => {
                let verb = match done {
                    Done::Create => "create",
                    Done::Delete => "delete",
                };
                let outcome = match error {
                    None => "successful".to_owned(),
                    Some(error) => format!("failed error: {error}"),
                };
                format!("{verb} Pod {pod} in {kind} {owner} {outcome}")
            }
        }
    }
}

/// Writes whose a pod is and who holds it.
async fn change(
    api: &Api<Pod>,
    pod: &Pod,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
) -> Result<()> {
    let mut metadata = json!({"ownerReferences": owners});
    if pod.metadata.finalizers.clone().unwrap_or_default() != finalizers {
        metadata["finalizers"] = json!(finalizers);
    }
    patch(api, pod, metadata).await?;
    Ok(())
}

/// Removes a finalizer from a pod.
pub(super) async fn let_go(
    api: &Api<Pod>,
    pod: &Pod,
    finalizer: &str,
) -> std::result::Result<(), kube::Error> {
    let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|name| name != finalizer);
    match patch(api, pod, json!({"finalizers": finalizers})).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        outcome => outcome,
    }
}

async fn patch(
    api: &Api<Pod>,
    pod: &Pod,
    mut metadata: Value,
) -> std::result::Result<(), kube::Error> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    // The version makes the server refuse if the lists have changed since.
    metadata["resourceVersion"] = json!(pod.metadata.resource_version);
    let patch = json!({"metadata": metadata});
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// The server's own words, without the wrapping.
pub(super) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
