//! In-place resize: CPU and memory of containers that are there change by `pods/resize` (KEP-1287). Pure.
//!
//! What a container was given is noted at its record, so an agent that begins anew knows what is still to be done. Until the
//! node grants a pod what it asks for now, all of it keeps what it has.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::action::{Action, Plan, StopReason, add};
use super::observed::Observed;
use super::spec::{PodView, amount, is_sidecar};
use super::stop::stop;
use crate::runtime::Container;

/// The resources that can be resized.
const RESOURCES: [&str; 2] = ["cpu", "memory"];
/// How long a resize that has to wait does, before the node is looked at again.
const WAIT: SignedDuration = SignedDuration::from_secs(10);

type Amounts = BTreeMap<String, Quantity>;

/// What the node has for a pod, in cores and bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    /// For all pods together.
    pub allocatable: BTreeMap<&'static str, f64>,
    /// What the others were given.
    pub used: BTreeMap<&'static str, f64>,
}

impl Room {
    /// Of a node that has so much and other pods that were given that.
    pub fn of<'a>(allocatable: &Amounts, others: impl Iterator<Item = &'a PodView>) -> Room {
        let mut room = Room::default();
        for name in RESOURCES {
            if let Some(all) = allocatable.get(name).and_then(amount) {
                room.allocatable.insert(name, all);
            }
        }
        for pod in others {
            for name in RESOURCES {
                *room.used.entry(name).or_default() += pod.requests(name);
            }
        }
        room
    }
}

/// What the node says to a resize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted,
    /// Other pods have what it takes.
    Deferred(String),
    /// The node never had that much.
    Infeasible(String),
}

/// What a container is given, as it is noted at its record.
pub(super) fn note(spec: &ContainerSpec) -> String {
    let resources = spec.resources.clone().unwrap_or_default();
    let noted = ResourceRequirements {
        claims: None,
        ..resources
    };
    serde_json::to_string(&noted).unwrap_or_default()
}

/// What a container was given; `None` for one of an agent that did not note it.
pub(super) fn given(container: &Container) -> Option<ResourceRequirements> {
    serde_json::from_str(&container.given).ok()
}

fn amounts(of: &ResourceRequirements) -> [Option<f64>; 4] {
    let get = |all: &Option<Amounts>, name: &str| amount(all.as_ref()?.get(name)?);
    let [cpu, memory] = RESOURCES;
    [
        get(&of.requests, cpu),
        get(&of.limits, cpu),
        get(&of.requests, memory),
        get(&of.limits, memory),
    ]
}

/// Whether a container asks for something else than it was given.
fn differs(spec: &ContainerSpec, container: &Container) -> bool {
    let asked = spec.resources.clone().unwrap_or_default();
    given(container).is_none_or(|given| amounts(&given) != amounts(&asked))
}

/// Containers whose resources may change. What an init container has is for good.
fn resizable(pod: &PodView) -> impl Iterator<Item = &ContainerSpec> {
    let sidecars = pod.init_containers().iter().filter(|spec| is_sidecar(spec));
    sidecars.chain(pod.containers())
}

/// Each container that is there and asks for something else than it was given.
fn pending<'a>(
    pod: &'a PodView,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a ContainerSpec, &'a Container)> {
    resizable(pod).filter_map(|spec| {
        let container = observed.latest(&spec.name)?;
        differs(spec, container).then_some((spec, container))
    })
}

/// Whether the pod asks for something else than its containers were given.
pub(super) fn is_pending(pod: &PodView, observed: &Observed) -> bool {
    pending(pod, observed).next().is_some()
}

/// What the node says to the pod's resize; `None` without one.
pub(super) fn answer(pod: &PodView, observed: &Observed) -> Option<Answer> {
    if !is_pending(pod, observed) {
        return None;
    }
    let room = observed.room.clone().unwrap_or_default();
    let before = with_given(pod, observed);
    let mut deferred = None;
    for name in RESOURCES {
        let (asked, had) = (pod.requests(name), before.requests(name));
        let Some(all) = room.allocatable.get(name) else {
            continue;
        };
        // Less is always fine.
        if asked <= had {
            continue;
        }
        if asked > *all {
            let text = format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                number(name, asked),
                number(name, *all)
            );
            return Some(Answer::Infeasible(text));
        }
        let used = room.used.get(name).copied().unwrap_or_default();
        if asked + used > *all {
            deferred.get_or_insert_with(|| {
                format!(
                    "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                    number(name, asked),
                    number(name, used),
                    number(name, *all)
                )
            });
        }
    }
    Some(deferred.map_or(Answer::Granted, Answer::Deferred))
}

/// As upstream's scheduler counts: thousandths of a CPU, bytes.
fn number(name: &str, amount: f64) -> i64 {
    let factor = if name == "cpu" { 1000.0 } else { 1.0 };
    (amount * factor).round() as i64
}

/// The pod with what its containers were given in the place of what they ask for.
fn with_given(pod: &PodView, observed: &Observed) -> PodView {
    let mut pod = pod.clone();
    set_resources(&mut pod, |spec| observed.latest(&spec.name).and_then(given));
    pod
}

/// The same, from what was told of it.
pub(super) fn as_told(pod: &PodView, status: &PodStatus) -> PodView {
    let mut pod = pod.clone();
    let told: Vec<_> = [&status.init_container_statuses, &status.container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .cloned()
        .collect();
    set_resources(&mut pod, |spec| {
        let status = told.iter().find(|status| status.name == spec.name)?;
        status.resources.clone()
    });
    pod
}

fn set_resources(pod: &mut PodView, of: impl Fn(&ContainerSpec) -> Option<ResourceRequirements>) {
    let Some(spec) = &mut pod.object.spec else {
        return;
    };
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        if let Some(resources) = of(container) {
            container.resources = Some(resources);
        }
    }
}

/// The pod as the node has granted it: what containers and cgroups are made by.
pub(super) fn granted<'a>(pod: &'a PodView, observed: &Observed) -> Cow<'a, PodView> {
    match answer(pod, observed) {
        None | Some(Answer::Granted) => Cow::Borrowed(pod),
        Some(Answer::Deferred(_) | Answer::Infeasible(_)) => Cow::Owned(with_given(pod, observed)),
    }
}

/// Containers that run, and are to have other limits without a restart: by id, with what they are to be given.
pub(super) fn to_update<'a>(
    pod: &'a PodView,
    observed: &'a Observed,
) -> Vec<(&'a ContainerSpec, &'a Container)> {
    pending(pod, observed)
        .filter(|(spec, container)| container.is_running() && !needs_restart(spec, container))
        .collect()
}

/// Whether a resource changes that the container takes notice of at its start only.
fn needs_restart(spec: &ContainerSpec, container: &Container) -> bool {
    let Some(given) = given(container) else {
        return false;
    };
    let asked = amounts(&spec.resources.clone().unwrap_or_default());
    let given = amounts(&given);
    let mut policies = spec.resize_policy.iter().flatten();
    policies.any(|policy| {
        let at = match policy.resource_name.as_str() {
            "cpu" => 0..2,
            "memory" => 2..4,
            _ => return false,
        };
        policy.restart_policy == "RestartContainer" && asked[at.clone()] != given[at]
    })
}

/// Adds what brings the pod's containers nearer to what it asks for.
pub(super) fn advance(plan: &mut Plan, pod: &PodView, observed: &Observed, now: Timestamp) {
    match answer(pod, observed) {
        None | Some(Answer::Infeasible(_)) => return,
        Some(Answer::Deferred(_)) => return plan.wake_at(add(now, WAIT)),
        Some(Answer::Granted) => {}
    }
    for (spec, container) in pending(pod, observed) {
        if container.is_running() && needs_restart(spec, container) {
            let by = add(now, pod.grace());
            stop(plan, container, observed, by, StopReason::Resized, now);
        }
    }
    if to_update(pod, observed).is_empty() {
        return;
    }
    let retry_at = observed
        .resize_failure
        .as_ref()
        .map(|failure| failure.retry_at);
    match retry_at {
        Some(Some(at)) if at > now => plan.wake_at(at),
        _ => plan.actions.push(Action::Resize),
    }
}

/// What the pod's cgroup has to be enough for while its containers change one after the other: what it asks for, and what
/// those that run still have.
pub(super) fn while_changing(pod: &PodView, observed: &Observed) -> [PodView; 2] {
    let mut still = pod.clone();
    set_resources(&mut still, |spec| {
        let latest = observed.latest(&spec.name);
        latest.filter(|it| it.is_running()).and_then(given)
    });
    [still, pod.clone()]
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
