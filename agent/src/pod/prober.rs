//! Trying probes: a task for each, which tells the pod's worker what every try came to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container as ContainerSpec;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::check::{Answer, Asker, Check};
use super::observed::ProbeId;
use super::probe::Rules;
use super::spec::Question;
use crate::runtime::{Container, Runtime};

/// Results that wait for the worker. When it is busy, probes wait for it.
const QUEUE: usize = 16;

/// What a try came to, and how long it took.
pub(super) type Tried = (ProbeId, Answer, Duration);

/// The running probes of a pod. They end with this.
pub(super) struct Probers {
    tasks: BTreeMap<ProbeId, AbortOnDropHandle<()>>,
    sender: mpsc::Sender<Tried>,
    answers: mpsc::Receiver<Tried>,
}

impl Probers {
    pub(super) fn new() -> Probers {
        let (sender, answers) = mpsc::channel(QUEUE);
        Probers {
            tasks: BTreeMap::new(),
            sender,
            answers,
        }
    }

    /// Makes the probes that run those that should. `address` is the pod's.
    pub(super) fn keep<'a>(
        &mut self,
        wanted: impl Iterator<Item = (ProbeId, &'a ContainerSpec, &'a Container)>,
        address: IpAddr,
        runtime: &Arc<dyn Runtime>,
    ) {
        let mut before = std::mem::take(&mut self.tasks);
        for (id, spec, container) in wanted {
            let task = match (before.remove(&id), id.question.of(spec)) {
                (Some(task), _) => task,
                (None, Some(probe)) => {
                    let rules = Rules::of(probe);
                    let wait = rules.first_wait(container.created_at, Timestamp::now());
                    let check = Check::of(probe, spec, address, Asker::Probe);
                    let runtime = runtime.clone();
                    let task = run(id.clone(), check, rules, wait, runtime, self.sender.clone());
                    AbortOnDropHandle::new(tokio::spawn(task))
                }
                (None, None) => continue,
            };
            self.tasks.insert(id, task);
        }
    }

    pub(super) fn stop(&mut self) {
        self.tasks.clear();
    }

    /// The next result of a probe that is still wanted. Cancel-safe: what is not given out stays queued.
    pub(super) async fn next(&mut self) -> Tried {
        loop {
            match self.answers.recv().await {
                Some(tried) if self.tasks.contains_key(&tried.0) => return tried,
                Some(_) => {}
                // Not while this holds a sender.
                None => std::future::pending().await,
            }
        }
    }
}

async fn run(
    id: ProbeId,
    check: Result<Check, String>,
    rules: Rules,
    wait: Duration,
    runtime: Arc<dyn Runtime>,
    answers: mpsc::Sender<Tried>,
) {
    tokio::time::sleep(wait).await;
    let mut ticks = tokio::time::interval(rules.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        let answer = match &check {
            Ok(check) => check.try_once(&id.container, rules.timeout, &runtime).await,
            Err(reason) => Answer::Unknown(reason.clone()),
        };
        if answers
            .send((id.clone(), answer, begun.elapsed()))
            .await
            .is_err()
        {
            return;
        }
    }
}

impl Question {
    /// Reason and sentence of an Event about a try.
    pub(super) fn tell(self, answer: &Answer) -> Option<(&'static str, String)> {
        let word = match self {
            Question::Startup => "Startup",
            Question::Liveness => "Liveness",
            Question::Readiness => "Readiness",
        };
        match answer {
            Answer::Success => None,
            Answer::Warning(why) => Some(("ProbeWarning", format!("{word} probe warning: {why}"))),
            Answer::Failure(why) => Some(("Unhealthy", format!("{word} probe failed: {why}"))),
            Answer::Unknown(why) => Some((
                "Unhealthy",
                format!("{word} probe errored and resulted in unknown state: {why}"),
            )),
        }
    }
}
