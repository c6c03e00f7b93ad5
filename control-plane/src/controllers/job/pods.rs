//! A job's pods: how they are told apart, and what a new one looks like. No I/O.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::jiff::Timestamp;

use crate::controllers::pods::{controlled_by, ready_since};
use crate::resources::job::INDEXED;

/// Holds a pod until its end is counted.
pub(super) const TRACKED: &str = "batch.kubernetes.io/job-tracking";
pub(super) const JOB_NAME: &str = "job-name";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

pub(super) fn is_tracked(pod: &Pod) -> bool {
    let mut finalizers = pod.metadata.finalizers.iter().flatten();
    finalizers.any(|finalizer| finalizer == TRACKED)
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some(INDEXED)
}

fn number(pod: &Pod, annotation: &str) -> Option<i32> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(annotation)?.parse().ok()
}

/// The index of an indexed job's pod, if it has one that the job has, too.
pub(super) fn index(pod: &Pod, spec: &JobSpec) -> Option<i32> {
    let completions = spec.completions.unwrap_or_default();
    number(pod, INDEX).filter(|index| (0..completions).contains(index))
}

/// How often the index failed before this pod: counted, and ignored.
pub(super) fn failures(pod: &Pod) -> (i32, i32) {
    let or_none = |annotation| number(pod, annotation).unwrap_or_default();
    (or_none(FAILURES), or_none(IGNORED))
}

/// When the pod ended, as well as it is known.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let ends = containers.into_iter().flatten().filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        ended.finished_at.as_ref().map(|time| time.0)
    });
    let time = |time: &Option<_>| {
        time.as_ref()
            .map(|time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| time.0)
    };
    ends.max()
        .or_else(|| time(&pod.metadata.deletion_timestamp))
        .or_else(|| ready_since(pod))
        .or_else(|| time(&pod.metadata.creation_timestamp))
}

/// A pod of a job that is not indexed.
pub(super) fn plain(job: &Job, spec: &JobSpec) -> Pod {
    let described = spec.template.metadata.clone().unwrap_or_default();
    let mut pod = Pod {
        spec: spec.template.spec.clone(),
        ..Pod::default()
    };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.namespace = job.metadata.namespace.clone();
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod.metadata.labels = described.labels;
    pod.metadata.annotations = described.annotations;
    let finalizers = pod
        .metadata
        .finalizers
        .insert(described.finalizers.unwrap_or_default());
    if !finalizers.iter().any(|finalizer| finalizer == TRACKED) {
        finalizers.push(TRACKED.to_owned());
    }
    pod.metadata.owner_references = Some(vec![controlled_by(job)]);
    pod
}

/// The pod of an index. `failures` are those of the index before, where they count for it alone.
pub(super) fn of_index(job: &Job, spec: &JobSpec, index: i32, failures: Option<(i32, i32)>) -> Pod {
    let mut pod = plain(job, spec);
    let name = job.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_owned(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some((counted, ignored)) = failures {
        annotations.insert(FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED.to_owned(), ignored.to_string());
        }
    }
    let inner = pod.spec.get_or_insert_default();
    if inner.hostname.as_deref().unwrap_or_default().is_empty() {
        inner.hostname = Some(format!("{name}-{index}"));
    }
    let init = inner.init_containers.iter_mut().flatten();
    for container in inner.containers.iter_mut().chain(init) {
        let variables = container.env.get_or_insert_default();
        if variables.iter().all(|known| known.name != INDEX_VARIABLE) {
            variables.push(index_variable());
        }
    }
    pod
}

fn index_variable() -> EnvVar {
    EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}
