//! From a CronJob, its jobs and the time to what is to be done. No I/O.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::controllers::events::{Severity, reference};
use crate::controllers::pods::{controlled_by, controller_of, uid};
use crate::resources::cronjob::schedule::{Schedule, parse};

/// When a job was to start, on the job.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Jobs that are over, and more of them than are kept.
    pub(super) forget: Vec<Arc<Job>>,
    /// Jobs that give way to the next one.
    pub(super) replace: Vec<Arc<Job>>,
    pub(super) create: Option<Start>,
    /// Without the job that is created.
    pub(super) status: CronJobStatus,
    pub(super) events: Vec<(Severity, &'static str, String)>,
    /// When the next time comes.
    pub(super) look_again: Option<Duration>,
}

/// A job whose time has come.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) job: Box<Job>,
    pub(super) at: Timestamp,
}

impl Plan {
    fn warn(&mut self, reason: &'static str, message: String) {
        self.events.push((Severity::Warning, reason, message));
    }

    fn say(&mut self, reason: &'static str, message: String) {
        self.events.push((Severity::Normal, reason, message));
    }
}

/// `jobs` are those in its namespace. `local` is the time zone of schedules that name none.
pub(super) fn plan(
    cron_job: &CronJob,
    jobs: &[Arc<Job>],
    local: &TimeZone,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan {
        status: cron_job.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    let Some(spec) = &cron_job.spec else {
        return plan;
    };
    let owner = uid(&cron_job.metadata);
    let is_own = |job: &&Arc<Job>| controller_of(&job.metadata).is_some_and(|it| it.uid == owner);
    let own: Vec<Arc<Job>> = jobs.iter().filter(is_own).cloned().collect();
    plan.forget = surplus(spec, &own);
    let running = follow(&mut plan, &own);
    if cron_job.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
        return plan;
    }
    match schedule(spec, local) {
        Err((reason, message)) => plan.warn(reason, message),
        Ok((schedule, zone)) => {
            start(&mut plan, cron_job, spec, &running, &schedule, &zone, now);
            let last = plan.create.as_ref().map(|start| start.at);
            let next = schedule.next(last.unwrap_or_else(|| since(cron_job, now)), now, &zone);
            plan.look_again = next.map(|next| until(next, now));
        }
    }
    plan
}

/// Since when times count: the last one that came, or when the CronJob was made.
fn since(cron_job: &CronJob, now: Timestamp) -> Timestamp {
    let status = cron_job.status.as_ref();
    let last = status.and_then(|status| status.last_schedule_time.as_ref());
    let made = cron_job.metadata.creation_timestamp.as_ref();
    last.or(made).map_or(now, |time| time.0)
}

/// How long until the next time comes. `None` when there is none, or none can be told.
pub(super) fn next_look(cron_job: &CronJob, local: &TimeZone, now: Timestamp) -> Option<Duration> {
    let (schedule, zone) = schedule(cron_job.spec.as_ref()?, local).ok()?;
    let next = schedule.next(since(cron_job, now), now, &zone);
    next.map(|next| until(next, now))
}

fn until(next: Timestamp, now: Timestamp) -> Duration {
    // A moment later, so that a clock that is not quite even does not make it look too early.
    let margin = Duration::from_millis(100);
    Duration::try_from(next.duration_since(now)).unwrap_or_default() + margin
}

/// The schedule and whose times these are, or what is wrong with them.
fn schedule(
    spec: &CronJobSpec,
    local: &TimeZone,
) -> Result<(Schedule, TimeZone), (&'static str, String)> {
    let zone = match spec.time_zone.as_deref() {
        None => local.clone(),
        Some(name) => TimeZone::get(name).map_err(|error| {
            let message = format!("invalid timeZone: {name:?}: {error}");
            ("UnknownTimeZone", message)
        })?,
    };
    let schedule = parse(&spec.schedule).map_err(|error| {
        let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
        ("UnparseableSchedule", message)
    })?;
    Ok((schedule, zone))
}

/// How a job ended: the type of the condition that says it.
fn outcome(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let mut ended = conditions
        .iter()
        .filter(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True");
    ended.next().map(|it| it.type_.as_str())
}

fn name_of(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

/// The oldest jobs beyond those that are kept.
fn surplus(spec: &CronJobSpec, own: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let mut surplus = Vec::new();
    for (ended, limit) in [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit else { continue };
        let mut over: Vec<&Arc<Job>> = own
            .iter()
            .filter(|job| outcome(job) == Some(ended))
            .collect();
        over.sort_by_key(|job| {
            let status = job.status.as_ref();
            let started = status.and_then(|it| it.start_time.as_ref());
            (started.map(|time| time.0), name_of(job).to_owned())
        });
        let kept = usize::try_from(limit).unwrap_or_default();
        let going = over.len().saturating_sub(kept);
        surplus.extend(over.into_iter().take(going).cloned());
    }
    surplus.retain(|job| job.metadata.deletion_timestamp.is_none());
    surplus
}

/// Brings the list of active jobs up to date; gives the jobs in it.
fn follow(plan: &mut Plan, own: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let mut running = Vec::new();
    let mut active = Vec::new();
    for known in plan.status.active.take().unwrap_or_default() {
        let name = known.name.clone().unwrap_or_default();
        let job = own.iter().find(|job| job.metadata.uid == known.uid);
        match job.map(|job| (job, outcome(job))) {
            None => plan.say("MissingJob", format!("Active job went missing: {name}")),
            Some((job, None)) => {
                running.push(job.clone());
                active.push(known);
            }
            Some((_, Some(ended))) => {
                plan.say(
                    "SawCompletedJob",
                    format!("Saw completed job: {name}, condition: {ended}"),
                );
            }
        }
    }
    let is_known = |job: &&Arc<Job>| {
        running
            .iter()
            .any(|other| other.metadata.uid == job.metadata.uid)
    };
    for job in own.iter().filter(|job| outcome(job).is_none()) {
        if !is_known(&job) {
            let name = name_of(job);
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            plan.warn("UnexpectedJob", message);
        }
    }
    plan.status.active = (!active.is_empty()).then_some(active);
    // Also of those that people started by hand.
    let complete = own.iter().filter(|job| outcome(job) == Some("Complete"));
    let ends = complete.filter_map(|job| job.status.as_ref()?.completion_time.clone());
    let last = plan.status.last_successful_time.take();
    plan.status.last_successful_time = ends.chain(last).max();
    running
}

/// Starts a job if its time has come.
fn start(
    plan: &mut Plan,
    cron_job: &CronJob,
    spec: &CronJobSpec,
    running: &[Arc<Job>],
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) {
    let mut since = since(cron_job, now);
    if let Some(patience) = spec.starting_deadline_seconds {
        // What came earlier is given up.
        let patience = SignedDuration::from_secs(patience);
        since = since.max(now.checked_sub(patience).unwrap_or(since));
    }
    let Some(due) = schedule.due(since, now, zone) else {
        return;
    };
    if due.too_many {
        plan.warn(
            "TooManyMissedTimes",
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew".to_owned(),
        );
    }
    let at = due.at;
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return plan.say("JobAlreadyActive", message.to_owned());
        }
        Some("Replace") => {
            plan.replace = running.to_vec();
            plan.status.active = None;
        }
        _ => {}
    }
    let job = Box::new(job(cron_job, spec, at, zone));
    plan.create = Some(Start { job, at });
}

/// The job of that time. Its name is the same whenever it is made, so that it is made once.
fn job(cron_job: &CronJob, spec: &CronJobSpec, at: Timestamp, zone: &TimeZone) -> Job {
    let name = cron_job.metadata.name.as_deref().unwrap_or_default();
    let described = spec.job_template.metadata.clone().unwrap_or_default();
    let mut job = Job {
        spec: spec.job_template.spec.clone(),
        ..Job::default()
    };
    job.metadata.name = Some(format!("{name}-{}", at.as_second() / 60));
    job.metadata.namespace = cron_job.metadata.namespace.clone();
    job.metadata.labels = described.labels;
    let mut annotations = described.annotations.unwrap_or_default();
    let told = at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z");
    annotations.insert(
        SCHEDULED.to_owned(),
        told.to_string().replace("+00:00", "Z"),
    );
    job.metadata.annotations = Some(annotations);
    job.metadata.owner_references = Some(vec![controlled_by(cron_job)]);
    job
}

/// Notes that the job was started.
pub(super) fn started(status: &mut CronJobStatus, job: &Job, at: Timestamp) {
    status.last_schedule_time = Some(Time(at));
    if outcome(job).is_none() {
        let active: &mut Vec<ObjectReference> = status.active.get_or_insert_default();
        // One that was there already may be listed.
        if active.iter().all(|known| known.uid != job.metadata.uid) {
            active.push(reference(job));
        }
    }
}
