//! CronJob: jobs at their times, and no more of those that are over than are kept.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::plan::{Start, next_look, plan, started};
use super::cache::Key;
use super::driver::{Error, Queue, Result, queue};
use super::events::{Recorder, Severity, reference};
use super::pod_control::said;
use super::pods::{controller_of, uid};
use super::{Caches, Context};

const WORKERS: usize = 4;
const KIND: &str = "CronJob";

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let events = Recorder::start(context.client.clone(), "cronjob-controller");
    subscribe(&context.caches, &keys);
    let context = context.clone();
    context.drive("cronjob", wakeups, WORKERS, async move |context, key| {
        reconcile(context, &events, key).await
    })
}

fn subscribe(caches: &Arc<Caches>, keys: &Queue<Key>) {
    let queue = keys.clone();
    caches.cron_jobs.on_change(move |old, new| {
        let Some(cron_job) = new else { return };
        let key = Key::of(&**cron_job);
        if old.is_some_and(|old| times(old) != times(cron_job)) {
            // The new times count from now on: one that would have come before does not come after all.
            let next = next_look(cron_job, &TimeZone::system(), Timestamp::now());
            return queue.add_after(key, next.unwrap_or_default());
        }
        queue.add(key);
    });
    let queue = keys.clone();
    caches.jobs.on_change(move |old, new| {
        for job in [old, new].into_iter().flatten() {
            let owner = controller_of(&job.metadata).filter(|owner| owner.kind == KIND);
            if let Some(owner) = owner {
                let namespace = job.metadata.namespace.clone().unwrap_or_default();
                queue.add(Key::new(namespace, &owner.name));
            }
        }
    });
}

/// What says when jobs start.
fn times(cron_job: &CronJob) -> Option<(&str, Option<&str>)> {
    let spec = cron_job.spec.as_ref()?;
    Some((spec.schedule.as_str(), spec.time_zone.as_deref()))
}

async fn reconcile(context: &Context, events: &Recorder, key: &Key) -> Result<Option<Duration>> {
    let caches = &context.caches;
    let Some(cron_job) = caches.cron_jobs.get(key) else {
        return Ok(None);
    };
    let jobs = caches.jobs.list_in(&key.namespace);
    let api: Api<Job> = Api::namespaced(context.client.clone(), &key.namespace);
    let mut plan = plan(&cron_job, &jobs, &TimeZone::system(), Timestamp::now());
    let about = || reference(&*cron_job);
    for (severity, reason, message) in plan.events {
        events.report(about(), severity, reason, message);
    }
    let mut outcome = Ok(());
    for job in &plan.forget {
        // A job too many keeps none from starting.
        outcome = outcome.and(delete(&api, events, &cron_job, job).await);
    }
    let mut replaced = Ok(());
    for job in &plan.replace {
        replaced = replaced.and(delete(&api, events, &cron_job, job).await);
    }
    if let (Some(start), Ok(())) = (&plan.create, &replaced) {
        match create(&api, &cron_job, start).await {
            Ok((job, is_new)) => {
                if is_new {
                    let name = job.metadata.name.as_deref().unwrap_or_default();
                    let message = format!("Created job {name}");
                    events.report(about(), Severity::Normal, "SuccessfulCreate", message);
                }
                caches.jobs.wait_for(&job).await;
                started(&mut plan.status, &job, start.at);
            }
            Err(error) => {
                let message = match &error {
                    Error::Api(error) => said(error),
                    Error::Object(message) => message.clone(),
                };
                let message = format!("Error creating job: {message}");
                events.report(about(), Severity::Warning, "FailedCreate", message);
                outcome = Err(error);
            }
        }
    }
    if replaced.is_err() {
        // They run on.
        let before = cron_job.status.as_ref();
        plan.status.active = before.and_then(|status| status.active.clone());
    }
    // What could not be done does not keep people from seeing what is, and is not told again at the next try.
    write_status(context, &cron_job, plan.status).await?;
    outcome.and(replaced)?;
    Ok(plan.look_again)
}

async fn delete(api: &Api<Job>, events: &Recorder, cron_job: &CronJob, job: &Job) -> Result<()> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let same = Preconditions {
        uid: job.metadata.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams::background().preconditions(same);
    match api.delete(name, &params).await {
        Ok(_) => {
            let message = format!("Deleted job {name}");
            let about = reference(cron_job);
            events.report(about, Severity::Normal, "SuccessfulDelete", message);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => {
            let message = format!("Deleted job: {}", said(&error));
            let about = reference(cron_job);
            events.report(about, Severity::Warning, "FailedDelete", message);
            Err(error.into())
        }
    }
}

/// The job, and whether it is made only now. One that is there already was made before a status could be written.
async fn create(api: &Api<Job>, cron_job: &CronJob, start: &Start) -> Result<(Job, bool)> {
    match api.create(&PostParams::default(), &start.job).await {
        Ok(job) => Ok((job, true)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let name = start.job.metadata.name.as_deref().unwrap_or_default();
            let job = api.get(name).await?;
            let owner = controller_of(&job.metadata).map(|owner| owner.uid.as_str());
            if owner == Some(uid(&cron_job.metadata)) {
                Ok((job, false))
            } else {
                Err(Error::Object(format!("job {name:?} is somebody else's")))
            }
        }
        Err(error) => Err(error.into()),
    }
}

async fn write_status(context: &Context, cron_job: &CronJob, status: CronJobStatus) -> Result<()> {
    if cron_job.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let Key { namespace, name } = Key::of(cron_job);
    let api: Api<CronJob> = Api::namespaced(context.client.clone(), &namespace);
    let mut cron_job = cron_job.clone();
    cron_job.status = Some(status);
    let written = api
        .replace_status(&name, &PostParams::default(), &cron_job)
        .await?;
    context.caches.cron_jobs.wait_for(&written).await;
    Ok(())
}
