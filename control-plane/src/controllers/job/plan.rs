//! From a Job and the pods around it to what is to be done. No I/O.

mod manage;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::pods::is_tracked;
use super::policy::success;
use super::tally::{Over, Tally, tally};
use crate::controllers::events::Severity;
use crate::controllers::pods::{Claims, claims, has_ended, is_active, is_ready};
use crate::resources::job::condition;

const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";
const FAILING: &str = "FailureTarget";
const SUCCEEDING: &str = "SuccessCriteriaMet";
const SUSPENDED: &str = "Suspended";

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) claims: Claims,
    pub(super) create: Vec<Pod>,
    /// Pods that go without being counted.
    pub(super) dismiss: Vec<Arc<Pod>>,
    /// Pods that go, and whose end counts.
    pub(super) stop: Vec<Arc<Pod>>,
    /// Pods whose finalizer may go once the status is stored.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) status: JobStatus,
    pub(super) events: Vec<(Severity, &'static str, String)>,
    /// When something is due without any event.
    pub(super) look_again: Option<Duration>,
    /// The job has been over for long enough.
    pub(super) expired: bool,
}

impl Plan {
    fn look_in(&mut self, wait: Duration) {
        self.look_again = Some(self.look_again.map_or(wait, |known| known.min(wait)));
    }

    fn tell(&mut self, severity: Severity, reason: &'static str, message: impl Into<String>) {
        self.events.push((severity, reason, message.into()));
    }
}

/// Why a job ends.
struct End {
    /// `SuccessCriteriaMet` or `FailureTarget`.
    target: &'static str,
    reason: String,
    message: String,
}

impl End {
    fn new(target: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            target,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    /// What was decided before.
    fn decided(status: &JobStatus) -> Option<Self> {
        [SUCCEEDING, FAILING].into_iter().find_map(|target| {
            let known = known(status, target).filter(|known| known.status == "True")?;
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            Some(Self::new(
                target,
                &text(&known.reason),
                text(&known.message),
            ))
        })
    }
}

fn known<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

fn set_condition(
    status: &mut JobStatus,
    type_: &str,
    truth: bool,
    end: (&str, &str),
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.push(JobCondition {
        type_: type_.to_owned(),
        status: if truth { "True" } else { "False" }.to_owned(),
        reason: Some(end.0.to_owned()),
        message: Some(end.1.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

fn since(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(time)).unwrap_or_default()
}

/// `around` are the pods that the job manages and those in its namespace that nobody manages. `settled`: all that was done
/// before is among them.
pub(super) fn plan(job: &Job, around: &[Arc<Pod>], settled: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let (Some(spec), old) = (&job.spec, job.status.clone().unwrap_or_default()) else {
        return plan;
    };
    plan.status = old.clone();
    if let Some(selector) = &spec.selector {
        plan.claims = claims(&job.metadata, selector, around);
    }
    let pods = plan.claims.own.clone();
    if condition(&old, COMPLETE) || condition(&old, FAILED) {
        after_the_end(&mut plan, spec, &pods, now);
        return plan;
    }
    let suspended = spec.suspend == Some(true);
    let status = &mut plan.status;
    if !suspended {
        status.start_time.get_or_insert(Time(now));
    }
    let active: Vec<Arc<Pod>> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let going = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some() && !has_ended(pod))
        .count();
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    status.active = (!active.is_empty()).then(|| count(active.len()));
    status.ready = Some(count(active.iter().filter(|pod| is_ready(pod)).count()));
    status.terminating = Some(count(going));
    let tally = tally(spec, &old, &pods);
    let mut end = End::decided(&old).or_else(|| failed_end(&mut plan, spec, &tally, &active, now));
    if end.is_none() && settled {
        let lives = job.metadata.deletion_timestamp.is_none();
        if lives {
            manage::pods(&mut plan, job, &pods, &active, &tally, now);
        }
        end = succeeded_end(spec, &tally, active.is_empty());
        if end.is_none() && lives {
            suspend(&mut plan, suspended, now);
        }
    }
    if let Some(end) = &end {
        if known(&plan.status, end.target).is_none() {
            let why = (end.reason.as_str(), end.message.as_str());
            set_condition(&mut plan.status, end.target, true, why, now);
        }
        plan.create.clear();
        plan.dismiss.clear();
        if settled {
            plan.stop = active.clone();
        }
    }
    let over = end.as_ref().map(|end| match end.target {
        SUCCEEDING => Over::Succeeded,
        _ => Over::Failed,
    });
    plan.release = tally.settle(spec, &mut plan.status, &pods, over);
    let nothing_left = settled && active.is_empty() && going == 0 && plan.release.is_empty();
    if let Some(end) = end.filter(|_| nothing_left && !has_uncounted(&plan.status)) {
        finish(&mut plan, &end, now);
    }
    plan
}

fn has_uncounted(status: &JobStatus) -> bool {
    let noted = status.uncounted_terminated_pods.as_ref();
    noted.is_some_and(|noted| noted.succeeded.is_some() || noted.failed.is_some())
}

/// Lets go of pods that are still held, and says when the job itself may go.
fn after_the_end(plan: &mut Plan, spec: &JobSpec, pods: &[Arc<Pod>], now: Timestamp) {
    plan.release = pods.iter().filter(|pod| is_tracked(pod)).cloned().collect();
    let end = known(&plan.status, COMPLETE).or(known(&plan.status, FAILED));
    let ended = end.and_then(|end| end.last_transition_time.as_ref());
    let seconds = spec
        .ttl_seconds_after_finished
        .and_then(|it| u64::try_from(it).ok());
    if let (Some(ended), Some(seconds)) = (ended, seconds) {
        match Duration::from_secs(seconds).checked_sub(since(ended.0, now)) {
            Some(left) if !left.is_zero() => plan.look_in(left),
            _ => plan.expired = true,
        }
    }
}

/// Whether the job has failed by now.
fn failed_end(
    plan: &mut Plan,
    spec: &JobSpec,
    tally: &Tally,
    active: &[Arc<Pod>],
    now: Timestamp,
) -> Option<End> {
    let fail = |reason: &str, message: &str| Some(End::new(FAILING, reason, message));
    if let Some(why) = &tally.fatal {
        return fail("PodFailurePolicy", why);
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    if tally.failed > limit || restarts_too_often(spec, active) {
        return fail(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        );
    }
    let deadline = spec
        .active_deadline_seconds
        .and_then(|it| u64::try_from(it).ok());
    if let (Some(seconds), Some(start)) = (deadline, &plan.status.start_time)
        && spec.suspend != Some(true)
    {
        match Duration::from_secs(seconds).checked_sub(since(start.0, now)) {
            Some(left) if !left.is_zero() => plan.look_in(left),
            _ => {
                return fail(
                    "DeadlineExceeded",
                    "Job was active longer than specified deadline",
                );
            }
        }
    }
    let lost = tally.lost.len();
    if spec.max_failed_indexes.is_some_and(|most| lost > most) {
        return fail(
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        );
    }
    if lost > 0 && lost.saturating_add(tally.succeeded) >= spec.completions.unwrap_or_default() {
        return fail("FailedIndexes", "Job has failed indexes");
    }
    let why = success(spec, &tally.completed)?;
    Some(End::new(SUCCEEDING, "SuccessPolicy", why))
}

/// Whether containers started anew within pods too often, where that counts as failing.
fn restarts_too_often(spec: &JobSpec, active: &[Arc<Pod>]) -> bool {
    let template = spec.template.spec.as_ref();
    let policy = template.and_then(|pod| pod.restart_policy.as_deref());
    let statuses = active.iter().filter_map(|pod| pod.status.as_ref());
    let restarts = statuses.flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
            .map(|container| container.restart_count)
    });
    let sum = restarts.fold(0_i32, |sum, one| sum.saturating_add(one));
    // Without any retry, what was restarted at all has failed.
    policy == Some("OnFailure") && sum >= spec.backoff_limit.unwrap_or(6).max(1)
}

fn succeeded_end(spec: &JobSpec, tally: &Tally, idle: bool) -> Option<End> {
    let enough = match spec.completions {
        // Any pod that succeeds says that the work is done.
        None => tally.succeeded > 0,
        Some(wanted) => tally.succeeded >= wanted,
    };
    (enough && idle).then(|| {
        End::new(
            SUCCEEDING,
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        )
    })
}

/// Says whether the job waits.
fn suspend(plan: &mut Plan, suspended: bool, now: Timestamp) {
    let was = condition(&plan.status, SUSPENDED);
    if suspended && !was {
        let why = ("JobSuspended", "Job suspended");
        set_condition(&mut plan.status, SUSPENDED, true, why, now);
        // Its time runs anew when it goes on.
        plan.status.start_time = None;
        plan.tell(Severity::Normal, "Suspended", why.1);
    } else if !suspended && was {
        let why = ("JobResumed", "Job resumed");
        set_condition(&mut plan.status, SUSPENDED, false, why, now);
        plan.tell(Severity::Normal, "Resumed", why.1);
    }
}

fn finish(plan: &mut Plan, end: &End, now: Timestamp) {
    let why = (end.reason.as_str(), end.message.as_str());
    let status = &mut plan.status;
    status.start_time.get_or_insert(Time(now));
    if end.target == SUCCEEDING {
        status.completion_time = Some(Time(now));
        set_condition(status, COMPLETE, true, why, now);
        plan.tell(Severity::Normal, "Completed", "Job completed");
    } else {
        set_condition(status, FAILED, true, why, now);
        plan.tell(
            Severity::Warning,
            event_of(&end.reason),
            end.message.clone(),
        );
    }
}

/// What an Event calls the end of a job.
fn event_of(reason: &str) -> &'static str {
    let known = [
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    ];
    let known = known.into_iter().find(|known| *known == reason);
    known.unwrap_or("JobFailed")
}
