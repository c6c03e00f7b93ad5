//! From a StatefulSet, its pods and their claims to what is to be done. No I/O.
//!
//! ```text
//! wanted, from the lowest on     one that has ended goes; one that is missing is made; its claims are there before it
//! too many, from the highest on  they go
//! of an old revision, from the highest on, down to the partition     they go, and come back as new ones
//! ```
//!
//! With `OrderedReady` each step waits for the one before it to be done, and for the pods before it to be available.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;

use super::identity::{claim_names, claims_for, ordinal_of, ordinals, pod_for, revision_of};
use super::retention::{Policy, is_stale, owners};
use crate::controllers::events::Severity;
use crate::controllers::pods::{
    Claims, available_in, claims, controller_of, has_ended, is_ready, phase,
};

/// No more pods than this are created or deleted in one pass; the rest follows when those were seen.
const BURST: usize = 250;

/// One template of the set's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revision<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a PodTemplateSpec,
}

/// What is there.
#[derive(Clone, Copy)]
pub(super) struct Picture<'a> {
    pub(super) set: &'a StatefulSet,
    /// What the pods are before a rollout.
    pub(super) current: Revision<'a>,
    /// What they are to be.
    pub(super) update: Revision<'a>,
    /// The pods that the set manages and those in its namespace that nobody manages.
    pub(super) around: &'a [Arc<Pod>],
    /// The volume claims in its namespace, by name.
    pub(super) volumes: &'a BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// All that was done before is among them.
    pub(super) settled: bool,
    pub(super) now: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) claims: Claims,
    /// To be made before the pods, with the name of the pod that each is for.
    pub(super) make_claims: Vec<(String, PersistentVolumeClaim)>,
    /// Whose claims shall be, before pods are deleted.
    pub(super) own_claims: Vec<(Arc<PersistentVolumeClaim>, Vec<OwnerReference>)>,
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
    pub(super) events: Vec<(Severity, &'static str, String)>,
    /// When a ready pod becomes available without any event.
    pub(super) look_again: Option<Duration>,
}

/// The set's pods by their numbers. As many may be wanted as a number can say, so only those that are there take memory.
struct Pods<'a> {
    picture: &'a Picture<'a>,
    spec: &'a StatefulSetSpec,
    wanted: Range<i32>,
    present: BTreeMap<i32, Arc<Pod>>,
}

impl Pods<'_> {
    /// Those that are wanted and there, from the first on.
    fn kept(&self) -> impl DoubleEndedIterator<Item = (i32, &Arc<Pod>)> {
        let kept = self.present.range(self.wanted.clone());
        kept.map(|(ordinal, pod)| (*ordinal, pod))
    }

    /// Those that are too many, from the last on.
    fn surplus(&self) -> impl Iterator<Item = (i32, &Arc<Pod>)> {
        let surplus = self.present.iter().rev();
        surplus
            .filter(|(ordinal, _)| !self.wanted.contains(ordinal))
            .map(|(ordinal, pod)| (*ordinal, pod))
    }

    fn available_in(&self, pod: &Pod) -> Option<Duration> {
        let seconds = self.spec.min_ready_seconds.unwrap_or_default();
        let min_ready = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        available_in(pod, min_ready, self.picture.now).filter(|_| phase(pod) == "Running")
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.available_in(pod) == Some(Duration::ZERO)
    }

    /// A new pod is of the revision that its place has at this point of the rollout.
    fn made(&self, ordinal: i32) -> Pod {
        let Picture {
            set,
            current,
            update,
            ..
        } = *self.picture;
        let first = self.wanted.start;
        let old = match rolling(self.spec) {
            None => 0,
            Some(Some(partition)) => partition,
            Some(None) => {
                let status = set.status.as_ref();
                let current = status.and_then(|status| status.current_replicas);
                current.unwrap_or_default()
            }
        };
        let of = if ordinal < first.saturating_add(old) {
            current
        } else {
            update
        };
        pod_for(set, self.spec, of.template, of.name, ordinal)
    }
}

/// The partition of rolling updates, if it is given; `None` for sets whose pods people delete themselves.
fn rolling(spec: &StatefulSetSpec) -> Option<Option<i32>> {
    let strategy = spec.update_strategy.as_ref();
    let kind = strategy.and_then(|strategy| strategy.type_.as_deref());
    if kind.is_some_and(|kind| kind != "RollingUpdate") {
        return None;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    Some(rolling.and_then(|rolling| rolling.partition))
}

fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_healthy(pod: &Pod) -> bool {
    is_running_and_ready(pod) && !is_terminating(pod)
}

pub(super) fn plan(picture: &Picture<'_>) -> Plan {
    let mut plan = Plan::default();
    let set = picture.set;
    let Some(spec) = &set.spec else { return plan };
    // A pod of another name is nobody of this set's, whatever its labels.
    let named =
        |pod: &&Arc<Pod>| controller_of(&pod.metadata).is_some() || ordinal_of(set, pod).is_some();
    let around: Vec<Arc<Pod>> = picture.around.iter().filter(named).cloned().collect();
    plan.claims = claims(&set.metadata, &spec.selector, &around);
    let own = plan.claims.own.iter();
    let numbered = own.filter_map(|pod| Some((ordinal_of(set, pod)?, pod.clone())));
    let pods = Pods {
        picture,
        spec,
        wanted: ordinals(spec),
        present: numbered.collect(),
    };
    plan.look_again = pods
        .present
        .values()
        .filter_map(|pod| pods.available_in(pod))
        .filter(|wait| !wait.is_zero())
        .min();
    if picture.settled && set.metadata.deletion_timestamp.is_none() {
        manage(&pods, &mut plan);
        plan.delete.truncate(BURST);
        plan.own_claims = owned(&pods);
    }
    plan.status = status(&pods, &plan.delete);
    plan
}

fn manage(pods: &Pods<'_>, plan: &mut Plan) {
    let ordered = pods.spec.pod_management_policy.as_deref() != Some("Parallel");
    if !fill(pods, ordered, plan) && ordered {
        return;
    }
    if !shrink(pods, ordered, plan) && ordered {
        return;
    }
    // Whoever waits for pods to come or go does not take others away.
    if plan.create.is_empty() && plan.delete.is_empty() {
        plan.delete.extend(next_old(pods));
    }
}

/// Makes what is missing. False: there is something to wait for.
fn fill(pods: &Pods<'_>, ordered: bool, plan: &mut Plan) -> bool {
    let picture = pods.picture;
    let mut done = true;
    for ordinal in pods.wanted.clone() {
        match pods.present.get(&ordinal) {
            None if plan.create.len() == BURST => return false,
            None => {
                done = false;
                let made = pods.made(ordinal);
                let name = made.metadata.name.clone().unwrap_or_default();
                let volumes = claim_names(pods.spec, &name);
                let mut there = volumes.filter_map(|name| picture.volumes.get(&name));
                if !there.any(|claim| is_stale(claim, &name, None)) {
                    plan.make_claims.extend(missing_claims(pods, &name));
                    plan.create.push(made);
                }
            }
            Some(pod) if has_ended(pod) => {
                done = false;
                if !is_terminating(pod) {
                    plan.events.push(recreated(picture.set, pod));
                    plan.delete.push(pod.clone());
                }
            }
            Some(pod) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                if phase(pod) == "Pending" {
                    plan.make_claims.extend(missing_claims(pods, name));
                }
                done &= !is_terminating(pod) && pods.is_available(pod);
            }
        }
        if ordered && !done {
            return false;
        }
    }
    done
}

fn missing_claims(pods: &Pods<'_>, pod: &str) -> Vec<(String, PersistentVolumeClaim)> {
    let claims = claims_for(pods.picture.set, pods.spec, pod).into_iter();
    let missing = claims.filter(|claim| {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        !pods.picture.volumes.contains_key(name)
    });
    missing.map(|claim| (pod.to_owned(), claim)).collect()
}

fn recreated(set: &StatefulSet, pod: &Pod) -> (Severity, &'static str, String) {
    let name = |meta: &Option<String>| meta.clone().unwrap_or_default();
    let (namespace, set, pod_name) = (
        name(&set.metadata.namespace),
        name(&set.metadata.name),
        name(&pod.metadata.name),
    );
    let (severity, reason, what) = match phase(pod) {
        "Failed" => (Severity::Warning, "RecreatingFailedPod", "failed"),
        _ => (Severity::Normal, "RecreatingTerminatedPod", "terminated"),
    };
    let message = format!("StatefulSet {namespace}/{set} is recreating {what} Pod {pod_name}");
    (severity, reason, message)
}

/// Takes away what is too many; all that are wanted are well. False: there is something to wait for.
fn shrink(pods: &Pods<'_>, ordered: bool, plan: &mut Plan) -> bool {
    // One that is not well holds up those before it, and is not held up by itself.
    let unhealthy = pods.surplus().find(|(_, pod)| !is_healthy(pod));
    let unhealthy = unhealthy.map(|(ordinal, _)| ordinal);
    for (ordinal, pod) in pods.surplus() {
        let held_up = !pods.is_available(pod) && unhealthy != Some(ordinal);
        if ordered && (is_terminating(pod) || held_up) {
            return false;
        }
        if !is_terminating(pod) {
            plan.delete.push(pod.clone());
            if ordered {
                return false;
            }
        }
    }
    pods.surplus().next().is_none()
}

/// The next pod that a rollout replaces. It waits for each that it has replaced.
fn next_old(pods: &Pods<'_>) -> Option<Arc<Pod>> {
    let partition = rolling(pods.spec)?.unwrap_or_default();
    let first = pods.wanted.start.saturating_add(partition);
    for (_, pod) in pods.kept().rev().take_while(|(at, _)| *at >= first) {
        let is_old = revision_of(pod) != Some(pods.picture.update.name);
        if is_old && !is_terminating(pod) {
            return Some(pod.clone());
        }
        if !is_healthy(pod) {
            return None;
        }
    }
    None
}

/// Whose the claims of the pods shall be that are there.
fn owned(pods: &Pods<'_>) -> Vec<(Arc<PersistentVolumeClaim>, Vec<OwnerReference>)> {
    let picture = pods.picture;
    let policy = Policy::of(pods.spec);
    let mut changes = Vec::new();
    for (ordinal, pod) in &pods.present {
        let condemned = !pods.wanted.contains(ordinal);
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        for claim in claim_names(pods.spec, name).filter_map(|name| picture.volumes.get(&name)) {
            // What goes with an earlier pod is not held back.
            if is_stale(claim, name, Some(pod)) {
                continue;
            }
            if let Some(owners) = owners(policy, picture.set, pod, condemned, claim) {
                changes.push((claim.clone(), owners));
            }
        }
    }
    changes
}

/// `doomed` count no more as pods of the current revision.
fn status(pods: &Pods<'_>, doomed: &[Arc<Pod>]) -> StatefulSetStatus {
    let Picture {
        set,
        current,
        update,
        ..
    } = *pods.picture;
    let before = set.status.clone().unwrap_or_default();
    let count = |holds: &dyn Fn(&Pod) -> bool| {
        let number = pods.present.values().filter(|pod| holds(pod)).count();
        i32::try_from(number).unwrap_or(i32::MAX)
    };
    let of = |pod: &Pod, revision: Revision<'_>| {
        !is_terminating(pod) && revision_of(pod) == Some(revision.name)
    };
    let is_doomed = |pod: &Pod| {
        doomed
            .iter()
            .any(|other| other.metadata.uid == pod.metadata.uid)
    };
    let (replicas, ready) = (count(&|_| true), count(&is_running_and_ready));
    let mut status = StatefulSetStatus {
        replicas,
        ready_replicas: Some(ready),
        available_replicas: Some(count(&|pod| pods.is_available(pod))),
        current_replicas: Some(count(&|pod| of(pod, current) && !is_doomed(pod))),
        updated_replicas: Some(count(&|pod| of(pod, update) && !is_doomed(pod))),
        current_revision: Some(current.name.to_owned()),
        update_revision: Some(update.name.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: before.collision_count.or(Some(0)),
        conditions: before.conditions,
    };
    let all_new = status.updated_replicas == Some(replicas) && ready == replicas;
    if rolling(pods.spec).is_some() && all_new {
        status.current_revision = status.update_revision.clone();
        status.current_replicas = status.updated_replicas;
    }
    status
}
