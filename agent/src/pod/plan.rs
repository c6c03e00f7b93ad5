//! What is to be done to a pod next. Pure.
//!
//! The actions of one plan do not depend on each other: they may be performed in any order or at once. After them
//! comes another look and another plan, until a plan has no action.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container as ContainerSpec;

use super::action::{Action, Plan, StopReason, add};
use super::backoff;
use super::deletion::LEAST;
use super::demand::is_eviction;
use super::ephemeral;
use super::holder;
use super::host_ports::NODE_PORTS;
use super::image_volumes;
use super::observed::{Contents, Failure, ImageState, Observed, PostStart, Sandbox, Volumes};
use super::probe;
use super::resize::{self, was_stopped};
use super::spec::{Goal, PodView, is_sidecar, spec_hash};
use super::stop::{stop, stop_all};
use super::volumes::has_contents;
use crate::runtime::{Container, ContainerState, Exit};

/// The reason of a pod that has run longer than it may.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

/// The code of a container that was killed.
const KILLED: i32 = 137;

/// The next step of a pod. Without a `pod`, which is then known to the runtime only, it can but be removed.
pub fn plan(pod: Option<&PodView>, goal: Goal, observed: &Observed, now: Timestamp) -> Plan {
    let ended = |container: &&Container| matches!(container.state, ContainerState::Stopped(_));
    let unrecorded: Vec<Action> = observed
        .containers
        .iter()
        .filter(ended)
        .map(|container| Action::Reap {
            id: container.id.clone(),
        })
        .collect();
    if !unrecorded.is_empty() {
        // What happens next depends on how they ended.
        return Plan {
            actions: unrecorded,
            wake: None,
        };
    }
    match (goal, pod) {
        (Goal::Run, Some(pod)) => run(pod, observed, now),
        (Goal::Run, None) => Plan::default(),
        (Goal::Gone { by }, _) => remove(pod, observed, by, now),
    }
}

/// The phase of a pod as far as its containers decide. Whether an active one is `Pending` or `Running`, its status tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Something runs or will run.
    Active,
    /// Every container has ended well, for good.
    Succeeded,
    /// A container has ended badly, for good.
    Failed,
    /// The pod has run longer than `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// The node could not have the pod: another one has its host ports.
    Rejected,
    /// The node was short of something or went down, or the pod used more of its disk than it may.
    Evicted,
}

/// The phase that the pod is in.
pub fn phase(pod: &PodView, observed: &Observed, now: Timestamp) -> Phase {
    // What the API was told is for good, even if the runtime has forgotten why.
    match pod.phase() {
        Some("Succeeded") => return Phase::Succeeded,
        Some("Failed") if pod.status_reason() == Some(DEADLINE_EXCEEDED) => {
            return Phase::DeadlineExceeded;
        }
        Some("Failed") if pod.status_reason() == Some(NODE_PORTS) => return Phase::Rejected,
        // The reason comes first: the phase waits for the containers.
        Some(_) if pod.status_reason().is_some_and(is_eviction) => return Phase::Evicted,
        Some("Failed") => return Phase::Failed,
        _ => {}
    }
    if observed.is_rejected {
        return Phase::Rejected;
    }
    if observed.evicted.is_some() {
        return Phase::Evicted;
    }
    if pod.deadline().is_some_and(|deadline| deadline <= now) {
        return Phase::DeadlineExceeded;
    }
    let exit = |spec: &ContainerSpec| {
        let latest = observed.latest(&spec.name)?;
        latest.state.exit().map(|exit| exit.code)
    };
    let failed_init = pod
        .init_containers()
        .iter()
        .filter(|spec| !is_sidecar(spec))
        .any(|spec| exit(spec).is_some_and(|code| code != 0 && !pod.restarts(spec, code)));
    if failed_init {
        return Phase::Failed;
    }
    let codes: Option<Vec<i32>> = pod
        .containers()
        .iter()
        .map(|spec| {
            let latest = observed.latest(&spec.name);
            exit(spec).filter(|code| !pod.restarts(spec, *code) && !latest.is_some_and(was_stopped))
        })
        .collect();
    match codes {
        None => Phase::Active,
        Some(codes) if codes.iter().all(|code| *code == 0) => Phase::Succeeded,
        Some(_) => Phase::Failed,
    }
}

/// Whether the init containers have done their work since the machine started, which emptied what they prepare. Once a
/// main container was made they have.
pub fn is_initialized(pod: &PodView, observed: &Observed) -> bool {
    let begun = |spec: &ContainerSpec| {
        let latest = observed.latest(&spec.name);
        latest.is_some_and(|container| !container.earlier_boot)
    };
    pod.containers().iter().any(begun)
        || pod
            .init_containers()
            .iter()
            .all(|spec| init_done(spec, observed))
}

fn init_done(spec: &ContainerSpec, observed: &Observed) -> bool {
    let Some(container) = observed.latest(&spec.name) else {
        return false;
    };
    match &container.state {
        ContainerState::Running { .. } => {
            is_sidecar(spec)
                && !observed.awaits_hook(container)
                && probe::is_started(spec, container, observed)
        }
        state => {
            let succeeded = state.exit().is_some_and(|exit| exit.code == 0);
            succeeded && !is_sidecar(spec) && !container.earlier_boot
        }
    }
}

fn run(pod: &PodView, observed: &Observed, now: Timestamp) -> Plan {
    let why = match phase(pod, observed, now) {
        Phase::Active => None,
        Phase::DeadlineExceeded => Some(StopReason::Deadline),
        Phase::Succeeded | Phase::Failed | Phase::Rejected | Phase::Evicted => {
            Some(StopReason::PodEnds)
        }
    };
    if let Some(why) = why {
        let evicted = observed.evicted.as_ref();
        let by = evicted.map_or_else(|| add(now, grace(pod)), |eviction| eviction.by);
        let mut plan = stop_all(Some(pod), observed, by, why, now);
        if plan.actions.is_empty() && plan.wake.is_none() {
            end(&mut plan, pod, observed, now);
        }
        return plan;
    }

    let mut plan = Plan::default();
    if let Some(deadline) = pod.deadline() {
        plan.wake_at(deadline);
    }
    let sandbox_ready = match &observed.sandbox {
        Sandbox::Ready { .. } => true,
        Sandbox::Failed(failure) if is_early(&mut plan, failure, now) => false,
        Sandbox::Unknown | Sandbox::Failed(_) | Sandbox::Gone => {
            plan.actions.push(Action::PrepareSandbox);
            false
        }
    };
    let has_volumes = pod.spec().volumes.iter().flatten().next().is_some();
    let volumes_ready = !has_volumes || observed.volumes == Volumes::Ready;
    if let Some(spec) = &pod.holder {
        advance(&mut plan, pod, spec, observed, sandbox_ready, now);
    }
    let ready = sandbox_ready && volumes_ready && holder::is_ready(pod, observed);
    let mut starting = false;
    for spec in &pod.ephemeral {
        starting |= advance(&mut plan, pod, spec, observed, ready, now) != Step::Rests;
    }
    // One after the other, as upstream: what a container does after its start may be to wait until others can rely on it.
    let mut is_next = ready;
    for spec in wanted(pod, observed) {
        let step = advance(&mut plan, pod, spec, observed, is_next, now);
        starting |= step != Step::Rests;
        is_next &= step != Step::Begins;
    }
    // They may name the pod's addresses, so they come after the sandbox.
    if starting && sandbox_ready && !volumes_ready {
        match &observed.volumes {
            Volumes::Failed(failure) if is_early(&mut plan, failure, now) => {}
            _ => plan.actions.push(Action::PrepareVolumes),
        }
    }
    resize::advance(&mut plan, pod, observed, now);
    refresh(&mut plan, pod, observed, sandbox_ready, now);
    discard_old(&mut plan, pod, observed, now);
    plan
}

/// How long the pod's containers have to end.
fn grace(pod: &PodView) -> SignedDuration {
    pod.grace().max(LEAST)
}

/// Removes what a pod that has ended needs no more. The records of its containers stay, with their logs, until the pod is
/// deleted, unless the node is short of room.
fn end(plan: &mut Plan, pod: &PodView, observed: &Observed, now: Timestamp) {
    if observed.sandbox != Sandbox::Gone {
        plan.actions.push(Action::RemoveSandbox);
        return;
    }
    if observed.volumes != Volumes::Gone {
        plan.actions.push(Action::RemoveVolumes);
    }
    if discards(observed, now) || phase(pod, observed, now) == Phase::Evicted {
        let all = observed.containers.iter();
        plan.actions.extend(all.map(|container| Action::Delete {
            id: container.id.clone(),
        }));
    }
}

fn discards(observed: &Observed, now: Timestamp) -> bool {
    observed.discard_until.is_some_and(|until| until > now)
}

/// Containers that run see what their volumes' sources say now. What is to be prepared is fresh anyway.
fn refresh(plan: &mut Plan, pod: &PodView, observed: &Observed, ready: bool, now: Timestamp) {
    let mut volumes = pod.spec().volumes.iter().flatten();
    let mut containers = observed.containers.iter();
    if plan.actions.contains(&Action::PrepareVolumes)
        || !volumes.any(has_contents)
        || !containers.any(|container| matches!(container.state, ContainerState::Running { .. }))
    {
        return;
    }
    match observed.contents {
        Contents::FreshUntil(at) if at > now => plan.wake_at(at),
        // They may name the pod's addresses.
        _ if ready => plan.actions.push(Action::RefreshVolumes),
        _ => {}
    }
}

/// The containers that should run by now, or be on their way to: sidecars and one init container, or all main ones.
fn wanted<'a>(pod: &'a PodView, observed: &Observed) -> Vec<&'a ContainerSpec> {
    if is_initialized(pod, observed) {
        let sidecars = pod.init_containers().iter().filter(|spec| is_sidecar(spec));
        return sidecars.chain(pod.containers()).collect();
    }
    let mut wanted = Vec::new();
    for spec in pod.init_containers() {
        let done = init_done(spec, observed);
        if is_sidecar(spec) || !done {
            wanted.push(spec);
        }
        if !done {
            break;
        }
    }
    wanted
}

/// How a container is on its way to its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing is to be done: it runs, has ended, or waits for its restart.
    Rests,
    /// It is to start once what failed can be tried again.
    Waits,
    /// It is being started, or does yet what it does after its start.
    Begins,
}

/// Adds what brings one container a step forward. It is not started unless all is `ready` for it.
fn advance(
    plan: &mut Plan,
    pod: &PodView,
    spec: &ContainerSpec,
    observed: &Observed,
    ready: bool,
    now: Timestamp,
) -> Step {
    let latest = observed.latest(&spec.name);
    let changed = |container: &Container| container.spec_hash != spec_hash(spec);
    let (attempt, streak) = match latest {
        None => (0, 0),
        Some(container) => match &container.state {
            ContainerState::Running { .. } if changed(container) => {
                stop(
                    plan,
                    container,
                    observed,
                    add(now, grace(pod)),
                    StopReason::Changed,
                    now,
                );
                return Step::Rests;
            }
            ContainerState::Running { .. } => {
                // It may ask for the pod's address, so it comes after the sandbox.
                let is_connected = matches!(observed.sandbox, Sandbox::Ready { .. });
                if container.hook_due
                    && is_connected
                    && !observed.hooked.contains_key(&container.id)
                {
                    plan.actions.push(Action::PostStart {
                        id: container.id.clone(),
                    });
                }
                if observed.hooked.get(&container.id) == Some(&PostStart::Failed) {
                    let why = StopReason::PostStartFailed;
                    stop(plan, container, observed, add(now, grace(pod)), why, now);
                } else if let Some((question, grace)) = probe::fatal(pod, spec, container, observed)
                {
                    let restarts = is_sidecar(spec) || pod.restarts(spec, KILLED);
                    let why = StopReason::Unhealthy { question, restarts };
                    stop(
                        plan,
                        container,
                        observed,
                        add(now, grace.max(LEAST)),
                        why,
                        now,
                    );
                }
                return match observed.awaits_hook(container) {
                    true => Step::Begins,
                    false => Step::Rests,
                };
            }
            ContainerState::Stopped(_) => return Step::Rests,
            ContainerState::Created
                if changed(container)
                    || observed.stale.contains(&container.id)
                    || holder::is_outlived(container, pod, observed) =>
            {
                plan.actions.push(Action::Delete {
                    id: container.id.clone(),
                });
                return Step::Begins;
            }
            ContainerState::Created if waits(plan, observed, &spec.name, now) => {
                return Step::Waits;
            }
            ContainerState::Created => {
                if ready {
                    plan.actions.push(Action::Start {
                        id: container.id.clone(),
                    });
                }
                return Step::Begins;
            }
            ContainerState::Exited(exit) => match restart(pod, spec, container, exit) {
                // The work of an init container is to be done again.
                None if container.earlier_boot && is_init(pod, spec) => (container.attempt + 1, 0),
                None => return Step::Rests,
                Some(restart) if restart.at > now && !changed(container) => {
                    plan.wake_at(restart.at);
                    return Step::Rests;
                }
                Some(restart) => (container.attempt + 1, restart.streak),
            },
        },
    };
    if waits(plan, observed, &spec.name, now) {
        return Step::Rests;
    }
    match images(plan, pod, spec, observed, now) {
        Images::There if ready => plan.actions.push(Action::Run {
            container: spec.name.clone(),
            attempt,
            streak,
        }),
        Images::There | Images::Fetched => {}
        Images::Failed => return Step::Waits,
    }
    Step::Begins
}

/// Whether a container's images are on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Images {
    There,
    Fetched,
    /// One could not be fetched, and it is too early to try again.
    Failed,
}

/// Looks for the images of a container and of its volumes; has those fetched that are not there.
fn images(
    plan: &mut Plan,
    pod: &PodView,
    spec: &ContainerSpec,
    observed: &Observed,
    now: Timestamp,
) -> Images {
    let own = (!holder::is_one(&spec.name)).then(|| {
        let container = spec.name.clone();
        let image = spec.image.as_deref().unwrap_or_default();
        (image, Action::FetchImage { container })
    });
    let of_volumes = image_volumes::of(pod, spec).map(|(volume, source)| {
        let volume = volume.to_owned();
        let image = image_volumes::reference(source);
        (image, Action::FetchVolumeImage { volume })
    });
    let mut all = Images::There;
    for (image, fetch) in own.into_iter().chain(of_volumes) {
        match observed.images.get(image) {
            Some(ImageState::Present) => continue,
            Some(ImageState::Failed(failure)) if is_early(plan, failure, now) => {
                all = Images::Failed;
                continue;
            }
            None | Some(ImageState::Failed(_)) if plan.actions.contains(&fetch) => {}
            None | Some(ImageState::Failed(_)) => plan.actions.push(fetch),
        }
        if all == Images::There {
            all = Images::Fetched;
        }
    }
    all
}

/// Whether an earlier failure to make the container says to wait.
fn waits(plan: &mut Plan, observed: &Observed, name: &str, now: Timestamp) -> bool {
    let failure = observed.failures.get(name);
    failure.is_some_and(|failure| is_early(plan, failure, now))
}

/// Whether it is too early to try again what failed; if so, the plan wakes for that.
fn is_early(plan: &mut Plan, failure: &Failure, now: Timestamp) -> bool {
    match failure.retry_at {
        Some(at) if at <= now => false,
        Some(at) => {
            plan.wake_at(at);
            true
        }
        None => true,
    }
}

fn is_init(pod: &PodView, spec: &ContainerSpec) -> bool {
    let mut names = pod.init_containers().iter().map(|init| &init.name);
    names.any(|name| *name == spec.name)
}

/// When a container that ended runs again, and the how manyth restart in a row that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    pub at: Timestamp,
    pub streak: u32,
}

/// Whether and when a container that ended runs again.
pub fn restart(
    pod: &PodView,
    spec: &ContainerSpec,
    container: &Container,
    exit: &Exit,
) -> Option<Restart> {
    let again = if ephemeral::is_one(pod, &spec.name) {
        false
    } else if is_sidecar(spec) {
        true
    } else if is_init(pod, spec) {
        // An init container runs until it succeeds, whatever restarts the others.
        exit.code != 0 && pod.restarts(spec, exit.code)
    } else {
        pod.restarts(spec, exit.code) || was_stopped(container)
    };
    again.then(|| {
        let streak = backoff::streak(container.streak, container.created_at, exit.at);
        Restart {
            at: add(exit.at, backoff::delay(streak)),
            streak: streak + 1,
        }
    })
}

/// Removes what came before a container's predecessor, whose log can still be asked for; the predecessor, too, when the node
/// is short of room.
fn discard_old(plan: &mut Plan, pod: &PodView, observed: &Observed, now: Timestamp) {
    let discards = discards(observed, now);
    let kept: BTreeSet<&str> = pod
        .every_container()
        .chain(&pod.holder)
        .flat_map(|spec| {
            let previous = observed.previous(&spec.name).filter(|_| !discards);
            [observed.latest(&spec.name), previous]
        })
        .flatten()
        .map(|container| container.id.as_str())
        .collect();
    let old = observed.containers.iter().filter(|container| {
        matches!(container.state, ContainerState::Exited(_))
            && !kept.contains(container.id.as_str())
    });
    plan.actions.extend(old.map(|container| Action::Delete {
        id: container.id.clone(),
    }));
}

fn remove(pod: Option<&PodView>, observed: &Observed, by: Timestamp, now: Timestamp) -> Plan {
    let mut plan = stop_all(pod, observed, by, StopReason::PodEnds, now);
    if !plan.actions.is_empty() || plan.wake.is_some() {
        return plan;
    }
    if observed.sandbox != Sandbox::Gone {
        plan.actions.push(Action::RemoveSandbox);
    }
    plan.actions
        .extend(observed.containers.iter().map(|container| Action::Delete {
            id: container.id.clone(),
        }));
    if plan.actions.is_empty() {
        plan.actions.push(Action::Finish);
    }
    plan
}
