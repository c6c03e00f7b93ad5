//! Whether a container has started, is alive and is ready, as far as its probes say. Pure.
//!
//! ```text
//!             successThreshold times in a row
//!            ┌──────────────────────────────> Passed
//! Undecided ─┤                                 ^  │
//!            └──────────────────────────────> Failed
//!             failureThreshold times in a row
//! ```
//!
//! A startup probe holds back the other two until it has passed. One that failed ends the container, as a failed liveness
//! probe does.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerStatus, Probe};

use super::observed::{Observed, ProbeId, ProbeState};
use super::spec::{Goal, PodView, Question};
use crate::runtime::{Container, ContainerState};

/// What a single try came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    Success,
    Failure,
}

impl ProbeState {
    /// The state after another try.
    pub fn step(self, rules: &Rules, result: Try) -> ProbeState {
        let (successes, failures) = match self {
            ProbeState::Undecided {
                successes,
                failures,
            } => (successes, failures),
            ProbeState::Passed { failures } => (0, failures),
            ProbeState::Failed { successes } => (successes, 0),
        };
        match (result, self) {
            (Try::Success, ProbeState::Passed { .. }) => ProbeState::Passed { failures: 0 },
            (Try::Failure, ProbeState::Failed { .. }) => ProbeState::Failed { successes: 0 },
            (Try::Success, _) if successes + 1 >= rules.successes => {
                ProbeState::Passed { failures: 0 }
            }
            (Try::Failure, _) if failures + 1 >= rules.failures => {
                ProbeState::Failed { successes: 0 }
            }
            (Try::Success, ProbeState::Failed { .. }) => ProbeState::Failed {
                successes: successes + 1,
            },
            (Try::Failure, ProbeState::Passed { .. }) => ProbeState::Passed {
                failures: failures + 1,
            },
            (Try::Success, ProbeState::Undecided { .. }) => ProbeState::Undecided {
                successes: successes + 1,
                failures: 0,
            },
            (Try::Failure, ProbeState::Undecided { .. }) => ProbeState::Undecided {
                successes: 0,
                failures: failures + 1,
            },
        }
    }
}

/// When a probe is tried, and how many tries in a row count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub successes: u32,
    pub failures: u32,
}

impl Rules {
    /// The rules of a probe, with the API's defaults.
    pub fn of(probe: &Probe) -> Rules {
        let number = |value: Option<i32>, default: u32, least: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(default)
                .max(least)
        };
        let seconds =
            |value, default, least| Duration::from_secs(u64::from(number(value, default, least)));
        Rules {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            successes: number(probe.success_threshold, 1, 1),
            failures: number(probe.failure_threshold, 3, 1),
        }
    }

    /// How long to wait before the first try in a container that was started at that time.
    pub fn first_wait(&self, started: Timestamp, now: Timestamp) -> Duration {
        let runs = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        self.initial_delay.saturating_sub(runs)
    }
}

/// Whether a running container has started.
pub fn is_started(spec: &ContainerSpec, container: &Container, observed: &Observed) -> bool {
    passes(Question::Startup, spec, container, observed)
}

/// Whether a running container can take traffic.
pub fn is_ready(spec: &ContainerSpec, container: &Container, observed: &Observed) -> bool {
    is_started(spec, container, observed) && passes(Question::Readiness, spec, container, observed)
}

fn passes(
    question: Question,
    spec: &ContainerSpec,
    container: &Container,
    observed: &Observed,
) -> bool {
    question.of(spec).is_none() || observed.probe(&container.id, question).passed()
}

/// The probe for which a running container has to end, and the time it is given for that.
pub fn fatal(
    pod: &PodView,
    spec: &ContainerSpec,
    container: &Container,
    observed: &Observed,
) -> Option<(Question, SignedDuration)> {
    let mut fatal = [Question::Startup, Question::Liveness].into_iter();
    let question = fatal.find(|question| observed.probe(&container.id, *question).failed())?;
    let own = question
        .of(spec)
        .and_then(|probe| probe.termination_grace_period_seconds)
        .map(|seconds| SignedDuration::from_secs(seconds.max(0)));
    Some((question, own.unwrap_or_else(|| pod.grace())))
}

/// The probes that should be tried by now: of a container that is to end only whether it is ready.
pub fn wanted<'a>(
    pod: &'a PodView,
    goal: Goal,
    observed: &'a Observed,
) -> impl Iterator<Item = (ProbeId, &'a ContainerSpec, &'a Container)> {
    let running = pod.all_containers().filter_map(|spec| {
        let container = observed.latest(&spec.name)?;
        let runs = matches!(container.state, ContainerState::Running { .. });
        (runs && !observed.awaits_hook(container)).then_some((spec, container))
    });
    running.flat_map(move |(spec, container)| {
        let stays = goal == Goal::Run && !observed.stops.contains_key(&container.id);
        let started = is_started(spec, container, observed);
        let is_wanted = move |question: Question| {
            let failed = observed.probe(&container.id, question).failed();
            match question {
                Question::Startup => stays && !started && !failed,
                Question::Liveness => stays && started && !failed,
                Question::Readiness => started,
            }
        };
        Question::ALL
            .into_iter()
            .filter(move |question| question.of(spec).is_some() && is_wanted(*question))
            .map(move |question| {
                let id = ProbeId {
                    container: container.id.clone(),
                    question,
                };
                (id, spec, container)
            })
    })
}

/// What an earlier agent had found out, as far as the status that it reported tells.
pub fn adopt(pod: &PodView, containers: &[Container]) -> BTreeMap<ProbeId, ProbeState> {
    let status = pod.object.status.as_ref();
    let statuses: Vec<&ContainerStatus> = status
        .into_iter()
        .flat_map(|status| {
            let init = status.init_container_statuses.iter().flatten();
            init.chain(status.container_statuses.iter().flatten())
        })
        .collect();
    let mut found = BTreeMap::new();
    for container in containers {
        let id = format!("containerd://{}", container.id);
        let reported = statuses
            .iter()
            .find(|status| status.container_id.as_ref() == Some(&id));
        let Some(reported) = reported else { continue };
        for (question, passed) in [
            (Question::Startup, reported.started == Some(true)),
            (Question::Readiness, reported.ready),
        ] {
            if passed {
                let id = ProbeId {
                    container: container.id.clone(),
                    question,
                };
                found.insert(id, ProbeState::Passed { failures: 0 });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rules(successes: u32, failures: u32) -> Rules {
        Rules {
            successes,
            failures,
            ..Rules::of(&Probe::default())
        }
    }

    /// `+` is a success, `-` a failure.
    fn after(rules: &Rules, tries: &str) -> ProbeState {
        let tries = tries.chars().map(|c| match c {
            '+' => Try::Success,
            _ => Try::Failure,
        });
        tries.fold(ProbeState::default(), |state, result| {
            state.step(rules, result)
        })
    }

    #[test]
    fn thresholds_count_tries_in_a_row() {
        let undecided = |successes, failures| ProbeState::Undecided {
            successes,
            failures,
        };
        for (successes, failures, tries, state) in [
            (1, 3, "", undecided(0, 0)),
            (1, 3, "+", ProbeState::Passed { failures: 0 }),
            (1, 3, "--", undecided(0, 2)),
            (1, 3, "---", ProbeState::Failed { successes: 0 }),
            (1, 3, "--+", ProbeState::Passed { failures: 0 }),
            (1, 3, "+--", ProbeState::Passed { failures: 2 }),
            (1, 3, "+--+--", ProbeState::Passed { failures: 2 }),
            (1, 3, "+---", ProbeState::Failed { successes: 0 }),
            (2, 2, "+", undecided(1, 0)),
            (2, 2, "+-+", undecided(1, 0)),
            (2, 2, "++", ProbeState::Passed { failures: 0 }),
            (2, 2, "--+", ProbeState::Failed { successes: 1 }),
            (2, 2, "--+-+", ProbeState::Failed { successes: 1 }),
            (2, 2, "--++", ProbeState::Passed { failures: 0 }),
            (1, 1, "+-+-", ProbeState::Failed { successes: 0 }),
        ] {
            assert_eq!(
                after(&rules(successes, failures), tries),
                state,
                "{successes}/{failures} {tries}"
            );
        }
    }

    #[test]
    fn rules_have_the_apis_defaults_and_least_values() {
        let defaults = Rules::of(&Probe::default());
        assert_eq!(
            (defaults.period.as_secs(), defaults.timeout.as_secs()),
            (10, 1)
        );
        assert_eq!((defaults.successes, defaults.failures), (1, 3));
        let zeros = Rules::of(&Probe {
            period_seconds: Some(0),
            failure_threshold: Some(-1),
            initial_delay_seconds: Some(5),
            ..Probe::default()
        });
        assert_eq!((zeros.period.as_secs(), zeros.failures), (1, 3));
        let start = Timestamp::UNIX_EPOCH;
        for (runs, wait) in [(0, 5), (3, 2), (9, 0), (-60, 5)] {
            let now = start + SignedDuration::from_secs(runs);
            assert_eq!(zeros.first_wait(start, now).as_secs(), wait);
        }
    }

    #[test]
    fn a_startup_probe_holds_back_the_others_and_readiness_outlives_a_stop() {
        let probe = json!({"exec": {"command": ["true"]}});
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{
                "name": "c", "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe,
            }]},
            "status": {"containerStatuses": [{
                "name": "c", "containerID": "containerd://1", "ready": true, "started": true,
                "restartCount": 0, "image": "", "imageID": "",
            }]},
        });
        let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
        let container = Container {
            id: "1".into(),
            pod: pod.id.clone(),
            name: "c".into(),
            attempt: 0,
            streak: 0,
            spec_hash: String::new(),
            image: String::new(),
            image_id: String::new(),
            given: String::new(),
            stop_signal: 15,
            user: None,
            created_at: Timestamp::UNIX_EPOCH,
            earlier_boot: false,
            hook_due: false,
            state: ContainerState::Running { pid: 1 },
        };
        let mut observed = Observed {
            containers: vec![container.clone()],
            ..Observed::default()
        };
        let asked = |observed: &Observed, goal| -> Vec<Question> {
            let wanted = wanted(&pod, goal, observed);
            wanted.map(|(id, _, _)| id.question).collect()
        };
        let gone = Goal::Gone {
            by: Timestamp::UNIX_EPOCH,
        };
        let spec = &pod.containers()[0];
        assert_eq!(asked(&observed, Goal::Run), [Question::Startup]);
        assert!(asked(&observed, gone).is_empty());
        assert!(!is_ready(spec, &container, &observed));

        observed.probes = adopt(&pod, &observed.containers);
        assert!(is_ready(spec, &container, &observed), "as was reported");
        assert_eq!(
            asked(&observed, Goal::Run),
            [Question::Liveness, Question::Readiness]
        );
        assert_eq!(asked(&observed, gone), [Question::Readiness]);

        let mut successor = container.clone();
        successor.id = "2".into();
        assert!(adopt(&pod, &[successor]).is_empty());
    }

    proptest! {
        #[test]
        fn the_verdict_is_that_of_the_last_run_that_was_long_enough(
            successes in 1..4u32,
            failures in 1..4u32,
            tries in "[+-]{0,40}",
        ) {
            let mut verdict = None;
            let (mut last, mut run) = (' ', 0);
            for c in tries.chars() {
                run = if c == last { run + 1 } else { 1 };
                last = c;
                if run >= if c == '+' { successes } else { failures } {
                    verdict = Some(c == '+');
                }
            }
            let state = after(&rules(successes, failures), &tries);
            prop_assert_eq!(state.passed(), verdict == Some(true));
            prop_assert_eq!(state.failed(), verdict == Some(false));
        }
    }
}
