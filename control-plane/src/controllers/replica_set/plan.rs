//! From a ReplicaSet and the pods around it to what is to be done. No I/O.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;

use crate::controllers::pods::{
    Claims, available_in, claims, is_active, is_ready, node_of, phase, ready_since, uid,
};

/// No more pods than this are created or deleted in one pass; the rest follows when those were seen.
const BURST: usize = 500;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) claims: Claims,
    pub(super) create: usize,
    pub(super) delete: Vec<Arc<Pod>>,
    /// When a ready pod becomes available without any event.
    pub(super) look_again: Option<Duration>,
    pub(super) status: ReplicaSetStatus,
}

/// `pods` are those that the ReplicaSet manages and those in its namespace that nobody manages;
/// `related` are all pods of ReplicaSets with the same owner.
pub(super) fn plan(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    related: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let set_lives = set.metadata.deletion_timestamp.is_none();
    plan.claims = claims(&set.metadata, &spec.selector, pods);
    let own = plan.claims.own.clone();
    let active: Vec<&Arc<Pod>> = own.iter().filter(|pod| is_active(pod)).collect();
    if set_lives {
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        match active.len().cmp(&wanted) {
            Ordering::Less => plan.create = (wanted - active.len()).min(BURST),
            Ordering::Greater => {
                plan.delete = surplus(&active, related, (active.len() - wanted).min(BURST), now)
            }
            Ordering::Equal => {}
        }
    }
    (plan.status, plan.look_again) = status(set, &active, now);
    plan
}

/// The `count` pods that are missed least.
fn surplus(
    active: &[&Arc<Pod>],
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for node in related
        .iter()
        .filter(|pod| is_active(pod))
        .filter_map(|pod| node_of(pod))
    {
        *on_node.entry(node).or_default() += 1;
    }
    let crowd = |pod: &Pod| {
        node_of(pod)
            .and_then(|node| on_node.get(node))
            .copied()
            .unwrap_or_default()
    };
    let mut ranked: Vec<&Arc<Pod>> = active.to_vec();
    ranked.sort_by(|a, b| missed_less(a, b, &crowd, now));
    ranked.into_iter().take(count).cloned().collect()
}

/// `Less` when `a` goes first.
fn missed_less(a: &Pod, b: &Pod, crowd: &impl Fn(&Pod) -> usize, now: Timestamp) -> Ordering {
    let bound = |pod: &Pod| node_of(pod).is_some();
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    // Times are compared by their order of magnitude, so that pods of about one age are chosen between at random (by
    // uid), not always the same node's.
    let age_rank = |since: Option<Timestamp>| {
        let age = since.map_or(0, |since| now.duration_since(since).as_secs());
        u64::try_from(age)
            .unwrap_or_default()
            .checked_ilog2()
            .map_or(0, |log| log + 1)
    };
    bound(a)
        .cmp(&bound(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| age_rank(ready_since(a)).cmp(&age_rank(ready_since(b))))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age_rank(created(a)).cmp(&age_rank(created(b))))
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .max()
        .unwrap_or_default()
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or_default()
}

fn status(
    set: &ReplicaSet,
    active: &[&Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready =
        Duration::from_secs(u64::try_from(spec.min_ready_seconds.unwrap_or_default()).unwrap_or(0));
    let template_labels = spec
        .template
        .and_then(|template| template.metadata)
        .and_then(|meta| meta.labels);
    let template_labels = template_labels.unwrap_or_default();
    let waits: Vec<Duration> = active
        .iter()
        .filter_map(|pod| available_in(pod, min_ready, now))
        .collect();
    let fully_labeled = active.iter().filter(|pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    });
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let optional = |n: usize| (n > 0).then_some(count(n));
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: optional(fully_labeled.count()),
        ready_replicas: optional(active.iter().filter(|pod| is_ready(pod)).count()),
        available_replicas: optional(waits.iter().filter(|wait| wait.is_zero()).count()),
        observed_generation: set.metadata.generation,
        conditions: set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
        terminating_replicas: None,
    };
    (
        status,
        waits.into_iter().filter(|wait| !wait.is_zero()).min(),
    )
}

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Sets or clears condition ReplicaFailure; `old` is the status as it is stored.
///
/// A failure of the same kind is told once for each generation: messages name the pod that was to be made, so that each
/// try's differs, and a status that is written for every try would bring on the next one at once.
pub(super) fn with_failure(
    status: &mut ReplicaSetStatus,
    old: Option<&ReplicaSetStatus>,
    failure: Option<(&str, String)>,
    now: Timestamp,
) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == REPLICA_FAILURE);
    let known = known.map(|at| conditions.remove(at));
    let is_same_try = old.is_some_and(|old| old.observed_generation == status.observed_generation);
    let failure = failure.map(|(reason, message)| ReplicaSetCondition {
        type_: REPLICA_FAILURE.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
    });
    conditions.extend(match (known, failure) {
        (Some(known), Some(new)) if is_same_try && known.reason == new.reason => Some(known),
        (Some(known), Some(new)) => Some(ReplicaSetCondition {
            last_transition_time: known.last_transition_time,
            ..new
        }),
        (_, failure) => failure,
    });
    status.conditions = (!conditions.is_empty()).then_some(conditions);
}

/// The pod that the template describes. The server completes its name.
pub(super) fn pod_of(set: &ReplicaSet, owner: OwnerReference) -> Pod {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let described = template.metadata.unwrap_or_default();
    let mut pod = Pod {
        spec: template.spec,
        ..Pod::default()
    };
    pod.metadata.namespace = set.metadata.namespace.clone();
    pod.metadata.generate_name = set.metadata.name.as_ref().map(|name| format!("{name}-"));
    pod.metadata.labels = described.labels;
    pod.metadata.annotations = described.annotations;
    pod.metadata.finalizers = described.finalizers;
    pod.metadata.owner_references = Some(vec![owner]);
    pod
}
