//! The conditions of a pod's status. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observed::Sandbox;
use super::plan::Phase;
use super::resize::{self, Answer};
use super::spec::is_sidecar;
use super::status::{View, previously, seconds};

/// The conditions of a resize, which are there while it is.
const PENDING: &str = "PodResizePending";
const IN_PROGRESS: &str = "PodResizeInProgress";
/// Conditions that go.
pub(super) const PASSING: [&str; 2] = [PENDING, IN_PROGRESS];

impl View<'_> {
    pub(super) fn conditions(
        &self,
        init: &[ContainerStatus],
        main: &[ContainerStatus],
    ) -> Vec<PodCondition> {
        let (phase, previous) = (self.phase, self.previous);
        let done = phase != Phase::Active;
        let sidecars = init
            .iter()
            .zip(self.pod.init_containers())
            .filter(|(_, spec)| is_sidecar(spec))
            .map(|(status, _)| status);
        let unready: Vec<&str> = sidecars
            .chain(main)
            .filter(|status| !status.ready)
            .map(|status| status.name.as_str())
            .collect();
        let incomplete: Vec<&str> = init
            .iter()
            .filter(|status| !status.ready)
            .map(|status| status.name.as_str())
            .collect();
        let initialized = self.is_initialized();
        let containers_ready = if phase == Phase::Succeeded {
            no("PodCompleted", None)
        } else if done {
            no("PodFailed", None)
        } else if unready.is_empty() {
            yes()
        } else {
            no(
                "ContainersNotReady",
                Some(format!(
                    "containers with unready status: [{}]",
                    unready.join(" ")
                )),
            )
        };
        let ready = match self.closed_gate() {
            Some(gate) if containers_ready.status == "True" => no(
                "ReadinessGatesNotReady",
                Some(format!(
                    "corresponding condition of pod readiness gate \"{gate}\" does not exist or is not true."
                )),
            ),
            _ => containers_ready.clone(),
        };
        let initialized = match (initialized, phase) {
            (true, Phase::Succeeded) => Verdict {
                reason: Some("PodCompleted"),
                ..yes()
            },
            (true, _) => yes(),
            (false, _) => no(
                "ContainersNotInitialized",
                Some(format!(
                    "containers with incomplete status: [{}]",
                    incomplete.join(" ")
                )),
            ),
        };
        let sandbox = match self.observed.sandbox {
            Sandbox::Ready { .. } => yes(),
            Sandbox::Unknown if previously(previous, "PodReadyToStartContainers") => yes(),
            Sandbox::Failed(_) if self.observed.any_running() => yes(),
            _ => no_reason(),
        };
        // Of an eviction before this agent, the condition that stands says it.
        let evicted = self.observed.evicted.as_ref().map(|eviction| {
            let verdict = Verdict {
                status: "True",
                reason: Some("TerminationByKubelet"),
                message: Some(eviction.message.clone()),
            };
            ("DisruptionTarget", verdict)
        });
        let resize = match resize::answer(self.pod, self.observed).filter(|_| !done) {
            None => None,
            Some(Answer::Granted) => Some((IN_PROGRESS, self.in_progress())),
            Some(Answer::Deferred(why)) => Some((PENDING, pending("Deferred", why))),
            Some(Answer::Infeasible(why)) => Some((PENDING, pending("Infeasible", why))),
        };
        [
            ("PodReadyToStartContainers", sandbox),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", containers_ready),
            ("PodScheduled", yes()),
        ]
        .into_iter()
        .chain(evicted)
        .chain(resize)
        .map(|(kind, verdict)| self.condition(kind, verdict, previous))
        .collect()
    }

    /// Of a resize that the node has granted.
    fn in_progress(&self) -> Verdict {
        let failure = self.observed.resize_failure.as_ref();
        Verdict {
            reason: failure.map(|failure| failure.reason),
            message: failure.map(|failure| failure.message.clone()),
            ..yes()
        }
    }

    /// The first readiness gate whose condition nobody has set.
    fn closed_gate(&self) -> Option<&str> {
        let set = |gate: &str| {
            let conditions = self
                .pod
                .object
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == gate && condition.status == "True")
        };
        self.pod
            .spec()
            .readiness_gates
            .iter()
            .flatten()
            .map(|gate| gate.condition_type.as_str())
            .find(|gate| !set(gate))
    }

    fn condition(&self, kind: &str, verdict: Verdict, previous: &PodStatus) -> PodCondition {
        let before = previous
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == kind);
        let since = before
            .filter(|condition| condition.status == verdict.status)
            .and_then(|condition| condition.last_transition_time.clone());
        PodCondition {
            type_: kind.to_owned(),
            status: verdict.status.to_owned(),
            reason: verdict.reason.map(str::to_owned),
            message: verdict.message,
            last_transition_time: since.or(Some(Time(seconds(self.now)))),
            observed_generation: self.pod.object.metadata.generation,
            ..PodCondition::default()
        }
    }
}

#[derive(Clone)]
struct Verdict {
    status: &'static str,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn yes() -> Verdict {
    Verdict {
        status: "True",
        reason: None,
        message: None,
    }
}

fn pending(reason: &'static str, why: String) -> Verdict {
    Verdict {
        status: "True",
        reason: Some(reason),
        message: Some(why),
    }
}

fn no_reason() -> Verdict {
    Verdict {
        status: "False",
        reason: None,
        message: None,
    }
}

fn no(reason: &'static str, message: Option<String>) -> Verdict {
    Verdict {
        status: "False",
        reason: Some(reason),
        message,
    }
}
