//! What is done for a CronJob at a time, given its jobs.

use serde_json::{Value, json};

use super::*;
use crate::resources::Strategy as _;

/// Made at 10:00, a job every five minutes.
fn cron_job(change: impl FnOnce(&mut Value)) -> CronJob {
    let mut value = json!({
        "metadata": {"name": "report", "namespace": "default", "uid": "cj", "creationTimestamp": "2026-03-01T10:00:00Z"},
        "spec": {
            "schedule": "*/5 * * * *",
            "jobTemplate": {
                "metadata": {"labels": {"app": "report"}},
                "spec": {"template": {"spec": {
                    "containers": [{"name": "c", "image": "i:1"}], "restartPolicy": "Never",
                }}},
            },
        },
    });
    change(&mut value);
    let mut cron_job: CronJob = serde_json::from_value(value).unwrap();
    cron_job.set_defaults();
    cron_job
}

fn job(name: &str, ended: Option<&str>) -> Arc<Job> {
    let conditions: Vec<Value> = ended
        .map(|ended| json!({"type": ended, "status": "True"}))
        .into_iter()
        .collect();
    let value = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("uid-{name}"),
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "report", "uid": "cj", "controller": true}],
        },
        "status": {"conditions": conditions, "completionTime": "2026-03-01T10:05:30Z"},
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn active(names: &[&str]) -> Value {
    let jobs = names
        .iter()
        .map(|name| json!({"name": name, "uid": format!("uid-{name}")}));
    json!(jobs.collect::<Vec<_>>())
}

fn plan_at(time: &str, cron_job: &CronJob, jobs: &[Arc<Job>]) -> Plan {
    let now = format!("2026-03-01T{time}Z").parse().unwrap();
    plan(cron_job, jobs, &TimeZone::UTC, now)
}

fn reasons(plan: &Plan) -> Vec<&str> {
    plan.events.iter().map(|(_, reason, _)| *reason).collect()
}

#[test]
fn a_job_starts_at_its_time_and_once() {
    let plain = cron_job(|_| {});
    let plan = plan_at("10:04:00", &plain, &[]);
    assert!(plan.create.is_none());
    assert_eq!(plan.look_again, Some(Duration::from_millis(60_100)));

    let plan = plan_at("10:05:00.2", &plain, &[]);
    let start = plan.create.unwrap();
    let meta = &start.job.metadata;
    assert_eq!(meta.name.as_deref(), Some("report-29539325"));
    assert_eq!(
        meta.annotations.as_ref().unwrap()[SCHEDULED],
        "2026-03-01T10:05:00Z"
    );
    assert_eq!(meta.labels.as_ref().unwrap()["app"], "report");
    assert_eq!(meta.owner_references.as_ref().unwrap()[0].uid, "cj");

    let mut status = plan.status;
    started(&mut status, &start.job, start.at);
    started(&mut status, &start.job, start.at);
    assert_eq!(
        status.active.as_ref().map(Vec::len),
        Some(1),
        "it is listed once"
    );
    let mut later = plain;
    later.status = Some(status);
    assert!(plan_at("10:06:00", &later, &[]).create.is_none());
}

#[test]
fn of_missed_times_only_the_last_one_counts() {
    let plan = plan_at("10:22:00", &cron_job(|_| {}), &[]);
    let start = plan.create.unwrap();
    assert_eq!(start.at.to_string(), "2026-03-01T10:20:00Z");
    let patient = cron_job(|it| it["spec"]["startingDeadlineSeconds"] = json!(60));
    assert!(plan_at("10:22:00", &patient, &[]).create.is_none());
    let often = cron_job(|it| it["spec"]["schedule"] = json!("* * * * *"));
    let plan = plan_at("23:00:00", &often, &[]);
    assert_eq!(reasons(&plan), ["TooManyMissedTimes"]);
    assert!(plan.create.is_some());
}

#[test]
fn one_that_runs_is_let_be_forbids_the_next_or_gives_way() {
    let with = |policy: &str| {
        cron_job(|it| {
            it["spec"]["concurrencyPolicy"] = json!(policy);
            it["status"] = json!({"active": active(&["a"])});
        })
    };
    let running = [job("a", None)];
    let plan = plan_at("10:05:01", &with("Allow"), &running);
    assert!(plan.create.is_some() && plan.replace.is_empty());
    let plan = plan_at("10:05:01", &with("Forbid"), &running);
    assert!(plan.create.is_none());
    assert_eq!(reasons(&plan), ["JobAlreadyActive"]);
    let plan = plan_at("10:05:01", &with("Replace"), &running);
    assert!(plan.create.is_some());
    assert_eq!((plan.replace.len(), plan.status.active), (1, None));
}

#[test]
fn jobs_are_followed_to_their_end() {
    let known = cron_job(|it| it["status"] = json!({"active": active(&["a", "b", "gone"])}));
    let jobs = [
        job("a", Some("Complete")),
        job("b", None),
        job("manual", None),
    ];
    let plan = plan_at("10:01:00", &known, &jobs);
    let mut told = reasons(&plan);
    told.sort_unstable();
    assert_eq!(told, ["MissingJob", "SawCompletedJob", "UnexpectedJob"]);
    let names: Vec<_> = plan
        .status
        .active
        .iter()
        .flatten()
        .map(|it| it.name.as_deref().unwrap())
        .collect();
    assert_eq!(names, ["b"]);
    let last = plan.status.last_successful_time.unwrap();
    assert_eq!(last.0.to_string(), "2026-03-01T10:05:30Z");
}

#[test]
fn only_so_many_that_are_over_are_kept() {
    let few = cron_job(|it| it["spec"]["successfulJobsHistoryLimit"] = json!(1));
    let jobs = [
        job("a", Some("Complete")),
        job("b", Some("Complete")),
        job("c", Some("Failed")),
        job("d", None),
    ];
    let plan = plan_at("10:01:00", &few, &jobs);
    let names: Vec<_> = plan.forget.iter().map(|job| name_of(job)).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn nothing_starts_that_is_suspended_or_cannot_be_read() {
    let suspended = cron_job(|it| it["spec"]["suspend"] = json!(true));
    let plan = plan_at("10:05:01", &suspended, &[]);
    assert!(plan.create.is_none() && plan.look_again.is_none());
    let wrong = cron_job(|it| it["spec"]["schedule"] = json!("now"));
    assert_eq!(
        reasons(&plan_at("10:05:01", &wrong, &[])),
        ["UnparseableSchedule"]
    );
    let nowhere = cron_job(|it| it["spec"]["timeZone"] = json!("Moon/Base"));
    assert_eq!(
        reasons(&plan_at("10:05:01", &nowhere, &[])),
        ["UnknownTimeZone"]
    );
}
