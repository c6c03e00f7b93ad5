//! What is known of a pod on this node: what the runtime says, and what the worker itself did.
//!
//! Only the containers matter for correctness. The rest is memory that saves work or explains a wait; a worker that
//! starts anew begins without it and finds it again by acting.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::action::add;
use super::deletion::LEAST as LEAST_GRACE;
use super::demand::Eviction;
use super::resize::Room;
use super::spec::{Question, container_id, spare_container_id};
use crate::runtime::{Container, ContainerState, Handler};

/// What is known of a pod on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandbox: Sandbox,
    /// With what the pod's containers run, if not with the default: known once the sandbox is ready.
    pub handler: Option<Handler>,
    pub volumes: Volumes,
    pub contents: Contents,
    /// Every container the pod has or had, in no particular order.
    pub containers: Vec<Container>,
    /// By the name that the spec uses.
    pub images: BTreeMap<String, ImageState>,
    /// Why a container could not be made, by its name in the spec.
    pub failures: BTreeMap<String, Failure>,
    /// Containers that were asked to stop, by id.
    pub stops: BTreeMap<String, Stop>,
    /// Whether the hooks before the stop run yet of containers, by id, that stop after others.
    pub early_hooks: BTreeMap<String, bool>,
    /// Containers, by id, that an earlier agent made and did not start. It may have been killed while it did, and the runtime
    /// still be busy with that.
    pub stale: BTreeSet<String>,
    /// Containers, by their name in the spec, that are made by their spare id.
    pub spare: BTreeSet<String>,
    /// What this agent has done of containers' hooks after the start, by their id.
    pub hooked: BTreeMap<String, PostStart>,
    /// The node could not have the pod.
    pub is_rejected: bool,
    /// It has to go for want of something.
    pub evicted: Option<Eviction>,
    /// Until then containers that have ended are kept no longer than they are needed.
    pub discard_until: Option<Timestamp>,
    /// What the node has for the pod, of one that asks for other resources than it was given.
    pub room: Option<Room>,
    /// Why its containers could not be given what it asks for.
    pub resize_failure: Option<Failure>,
    /// Probes that were tried, or taken over from an earlier agent.
    pub probes: BTreeMap<ProbeId, ProbeState>,
}

/// The namespaces, network and cgroup that the pod's containers share, and the files that the agent gives each pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Not looked at since the worker began. Preparing it is right whether or not it is there.
    #[default]
    Unknown,
    Ready {
        /// Empty for a pod on the node's network.
        addresses: Vec<IpAddr>,
    },
    Failed(Failure),
    /// Taken apart for good.
    Gone,
}

/// The pod's volumes. Only a container that is yet to be started needs them: those that run have theirs mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Volumes {
    /// Not looked at since the worker began.
    #[default]
    Unknown,
    Ready,
    Failed(Failure),
    /// Removed for good.
    Gone,
}

/// What is in the pod's volumes, where that has a source elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// Not looked at since the worker began, or since something changed that they show.
    #[default]
    Unknown,
    /// To be looked at again at this time.
    FreshUntil(Timestamp),
}

/// Whether an image can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    Present,
    Failed(Failure),
}

/// The reason of a container that the runtime did not make.
pub const CREATE_ERROR: &str = "CreateContainerError";

/// The reason of a container that the runtime made and did not start.
pub const RUN_ERROR: &str = "RunContainerError";

/// A step that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One word for a status: `ErrImagePull`, `CreateContainerConfigError` …
    pub reason: &'static str,
    pub message: String,
    /// How many times in a row it failed.
    pub tries: u32,
    /// When to try again; `None` when only another spec can help.
    pub retry_at: Option<Timestamp>,
}

/// How far the stopping of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to, and is killed at this time, unless its hook leaves it too little.
    Asked { kill_at: Timestamp, hook: StopHook },
    /// It was killed; its end is only a matter of hearing of it.
    Killed,
}

/// How far that is which a container does after its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostStart {
    Runs,
    Done,
    /// The container has to end.
    Failed,
}

/// How far that is which a container does before it is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopHook {
    /// There is nothing to do.
    None,
    Runs,
    Ended {
        at: Timestamp,
    },
}

impl StopHook {
    /// When a container is killed that is to be gone at a time: after its hook it has a moment in any case.
    pub fn kill_at(self, at: Timestamp) -> Timestamp {
        match self {
            StopHook::None => at,
            StopHook::Runs => add(at, LEAST_GRACE),
            StopHook::Ended { at: ended } => at.max(add(ended, LEAST_GRACE)),
        }
    }
}

/// One probe of one container, which is named by its id: its successor is probed anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId {
    pub container: String,
    pub question: Question,
}

/// What all tries so far came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// Neither threshold was reached. One of the numbers, of tries in a row, is zero.
    Undecided { successes: u32, failures: u32 },
    /// With so many failures in a row since.
    Passed { failures: u32 },
    /// With so many successes in a row since.
    Failed { successes: u32 },
}

impl Default for ProbeState {
    fn default() -> Self {
        ProbeState::Undecided {
            successes: 0,
            failures: 0,
        }
    }
}

impl ProbeState {
    pub fn passed(self) -> bool {
        matches!(self, ProbeState::Passed { .. })
    }

    pub fn failed(self) -> bool {
        matches!(self, ProbeState::Failed { .. })
    }
}

impl Observed {
    /// The newest container of this name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers
            .iter()
            .filter(|container| container.name == name)
            .max_by_key(|container| container.attempt)
    }

    /// The container of this name before the newest.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        let latest = self.latest(name)?;
        self.containers
            .iter()
            .filter(|container| container.name == name && container.attempt < latest.attempt)
            .max_by_key(|container| container.attempt)
    }

    /// Notes why a container could not be made, or started: then it is removed by now.
    pub fn fail(&mut self, container: String, failure: Failure) {
        let named = |unstarted: &&Container| unstarted.name == container;
        let removed = self.unstarted().find(named).map(|it| it.id.clone());
        if let Some(id) = removed {
            self.remove(&id);
        }
        if failure.reason == CREATE_ERROR {
            // An image may have been removed since it was looked at.
            self.images.retain(|_, state| *state != ImageState::Present);
        }
        self.failures.insert(container, failure);
    }

    /// How many times in a row making a container failed, by its name in the spec.
    pub fn tries(&self, container: &str) -> u32 {
        self.failures
            .get(container)
            .map_or(0, |failure| failure.tries)
    }

    /// Whether a process of the pod runs.
    pub fn any_running(&self) -> bool {
        let mut states = self.containers.iter().map(|container| &container.state);
        states.any(|state| matches!(state, ContainerState::Running { .. }))
    }

    /// How far a probe of a container is.
    pub fn probe(&self, container: &str, question: Question) -> ProbeState {
        let id = ProbeId {
            container: container.to_owned(),
            question,
        };
        self.probes.get(&id).copied().unwrap_or_default()
    }

    /// Sets the state of a container; forgets what only mattered while it ran.
    pub fn set_state(&mut self, id: &str, state: ContainerState) {
        if matches!(state, ContainerState::Exited(_)) {
            self.forget_run(id);
        }
        if let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.id == id)
        {
            container.state = state;
        }
    }

    /// Removes a container that is no more. The successor of one that was never started is the same attempt, by the other of
    /// its two ids: the runtime may not be done with what it began to start under this one.
    pub fn remove(&mut self, id: &str) {
        let unstarted = self.unstarted().find(|unstarted| unstarted.id == id);
        let successor = unstarted.map(
            |Container {
                 pod, name, attempt, ..
             }| {
                let is_first = id == container_id(&pod.uid, name, *attempt);
                (name.clone(), is_first)
            },
        );
        match successor {
            Some((name, true)) => _ = self.spare.insert(name),
            Some((name, false)) => _ = self.spare.remove(&name),
            None => {}
        }
        self.stale.remove(id);
        self.containers.retain(|container| container.id != id);
        self.forget_run(id);
    }

    fn forget_run(&mut self, id: &str) {
        self.stops.remove(id);
        self.early_hooks.remove(id);
        self.hooked.remove(id);
        self.probes.retain(|probe, _| probe.container != id);
    }

    /// The containers that were made and not started.
    pub fn unstarted(&self) -> impl Iterator<Item = &Container> {
        let all = self.containers.iter();
        all.filter(|container| container.state == ContainerState::Created)
    }

    /// The id of a container that is to be made.
    pub fn next_id(&self, uid: &str, name: &str, attempt: u32) -> String {
        match self.spare.contains(name) {
            true => spare_container_id(uid, name, attempt),
            false => container_id(uid, name, attempt),
        }
    }

    /// Whether a container, which runs, has yet to do what it does after its start. It is not told to run before.
    pub fn awaits_hook(&self, container: &Container) -> bool {
        container.hook_due && self.hooked.get(&container.id) != Some(&PostStart::Done)
    }

    /// Notes that what a container did before its stop is done.
    pub fn hook_ended(&mut self, id: &str, at: Timestamp) {
        if let Some(runs) = self.early_hooks.get_mut(id) {
            *runs = false;
        }
        if let Some(Stop::Asked { hook, .. }) = self.stops.get_mut(id) {
            *hook = StopHook::Ended { at };
        }
    }

    /// Puts a container, or replaces what was known of it.
    pub fn put(&mut self, container: Container) {
        self.containers.retain(|known| known.id != container.id);
        self.containers.push(container);
    }
}
