//! From a DaemonSet, its pods and the nodes to what is to be done. No I/O.

#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;

use super::nodes::{Place, REVISION, node_for, place, pod_for, pod_spec};
use crate::controllers::events::Severity;
use crate::controllers::pods::{Claims, available_in, claims, is_ready, phase};

/// No more pods than this are created or deleted in one pass; the rest follows when those were seen.
const BURST: usize = 250;
/// A pod that fails as soon as it is made is not made again at once.
const REST: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) claims: Claims,
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
    pub(super) events: Vec<(Severity, &'static str, String)>,
    /// When a ready pod becomes available without any event.
    pub(super) look_again: Option<Duration>,
}

/// What is known of a set and its nodes.
struct Picture<'a> {
    spec: &'a DaemonSetSpec,
    /// Names the present template.
    revision: &'a str,
    /// Every node, with the set's pods for it, the oldest first.
    nodes: BTreeMap<String, (Place, Vec<Arc<Pod>>)>,
    now: Timestamp,
}

impl Picture<'_> {
    fn is_new(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        let revision = labels.and_then(|labels| labels.get(REVISION));
        revision.is_some_and(|revision| revision == self.revision)
    }

    fn min_ready(&self) -> Duration {
        let seconds = self.spec.min_ready_seconds.unwrap_or_default();
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    fn is_available(&self, pod: &Pod) -> bool {
        available_in(pod, self.min_ready(), self.now) == Some(Duration::ZERO)
    }

    /// How many nodes want a pod.
    fn wanted(&self) -> usize {
        let places = self.nodes.values().map(|(place, _)| *place);
        places.filter(|place| *place == Place::Wanted).count()
    }
}

/// `around` are the pods that the set manages and those in its namespace that nobody manages. `settled`: all that was done
/// before is among them.
pub(super) fn plan(
    set: &DaemonSet,
    revision: &str,
    around: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    settled: bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    plan.claims = claims(&set.metadata, &spec.selector, around);
    let wishes = pod_spec(spec);
    let by_name = |node: &Arc<Node>| {
        let name = node.metadata.name.clone().unwrap_or_default();
        (name, (place(&wishes, node), Vec::new()))
    };
    let mut picture = Picture {
        spec,
        revision,
        nodes: nodes.iter().map(by_name).collect(),
        now,
    };
    for pod in &plan.claims.own {
        let node = node_for(pod).and_then(|node| picture.nodes.get_mut(node));
        if let Some((_, pods)) = node {
            pods.push(pod.clone());
        }
    }
    for (_, pods) in picture.nodes.values_mut() {
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    }
    plan.status = status(set, &picture);
    plan.look_again = soonest(&picture);
    if settled && set.metadata.deletion_timestamp.is_none() {
        let mut missing = Vec::new();
        manage(&picture, &mut plan, &mut missing);
        if missing.is_empty() && plan.delete.is_empty() {
            update::roll(&picture, &mut plan.delete, &mut missing);
        }
        plan.delete.truncate(BURST);
        let made = missing.iter().take(BURST);
        plan.create = made
            .map(|node| pod_for(set, spec, revision, node))
            .collect();
    }
    plan
}

/// When the next ready pod has been so for long enough.
fn soonest(picture: &Picture<'_>) -> Option<Duration> {
    let pods = picture.nodes.values().flat_map(|(_, pods)| pods);
    pods.filter_map(|pod| available_in(pod, picture.min_ready(), picture.now))
        .filter(|wait| !wait.is_zero())
        .min()
}

/// One pod on each node that wants one, and none where there may be none.
fn manage(picture: &Picture<'_>, plan: &mut Plan, missing: &mut Vec<String>) {
    for (node, (place, pods)) in &picture.nodes {
        if pods.is_empty() && *place == Place::Wanted {
            missing.push(node.clone());
        }
        let living = pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        if *place == Place::Barred {
            plan.delete.extend(living.cloned());
            continue;
        }
        let mut running = Vec::new();
        for pod in living {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match phase(pod) {
                ended @ ("Failed" | "Succeeded") => {
                    if let Some(rest) = rest(pod, picture.now) {
                        plan.look_again = Some(plan.look_again.map_or(rest, |it| it.min(rest)));
                        continue;
                    }
                    let (severity, reason) = match ended {
                        "Failed" => (Severity::Warning, "FailedDaemonPod"),
                        _ => (Severity::Normal, "SucceededDaemonPod"),
                    };
                    let message = format!(
                        "Found {} daemon pod {name} on node {node}, will try to delete it",
                        ended.to_lowercase()
                    );
                    plan.events.push((severity, reason, message));
                    plan.delete.push(pod.clone());
                }
                _ => running.push(pod.clone()),
            }
        }
        plan.delete.extend(update::surplus(picture, running));
    }
}

/// How long a pod that has ended keeps its place.
fn rest(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let created = pod.metadata.creation_timestamp.as_ref()?.0;
    let age = Duration::try_from(now.duration_since(created)).unwrap_or_default();
    REST.checked_sub(age).filter(|rest| !rest.is_zero())
}

fn status(set: &DaemonSet, picture: &Picture<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: set.status.as_ref().and_then(|it| it.collision_count),
        conditions: set.status.as_ref().and_then(|it| it.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for (place, pods) in picture.nodes.values() {
        let first = pods.first();
        if *place != Place::Wanted {
            status.number_misscheduled += i32::from(first.is_some());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(pod) = first else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(is_ready(pod));
        available += i32::from(picture.is_available(pod));
        updated += i32::from(picture.is_new(pod));
    }
    let optional = |number: i32| (number > 0).then_some(number);
    status.updated_number_scheduled = optional(updated);
    status.number_available = optional(available);
    status.number_unavailable = optional(status.desired_number_scheduled - available);
    status
}
