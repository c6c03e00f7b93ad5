//! CronJob: jobs at their times.

pub(crate) mod schedule;
pub(crate) mod times;

use k8s_openapi::{
    api::batch::v1::{CronJob, CronJobSpec, CronJobStatus},
    jiff::tz::{self, TimeZone},
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, job,
    kind::carry_generation,
    print,
    validate::{self, Path, none_negative},
};

const CONCURRENCY: &[&str] = &["Allow", "Forbid", "Replace"];
/// Jobs are named after it, with eleven characters more.
const LONGEST_NAME: usize = 52;

impl Strategy for CronJob {
    const SINGULAR: &'static str = "cronjob";
    const SHORT_NAMES: &'static [&'static str] = &["cj"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Schedule", "When jobs start, in cron's format."),
        Column::text("Timezone", "Whose times these are."),
        Column::text("Suspend", "Whether no more jobs start."),
        Column::integer("Active", "Jobs that run."),
        Column::text("Last Schedule", "Time since a job was last started."),
        Column::AGE,
        Column::CONTAINERS,
        Column::IMAGES,
        Column::SELECTOR,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let jobs = spec.job_template.spec.unwrap_or_default();
        let pods = print::template(Some(&jobs.template));
        let last = status.last_schedule_time.as_ref();
        let suspended = match spec.suspend {
            None => "<unset>",
            Some(false) => "False",
            Some(true) => "True",
        };
        vec![
            json!(print::name(&self.metadata)),
            json!(spec.schedule),
            json!(print::or_none(spec.time_zone.as_deref())),
            json!(suspended),
            json!(status.active.unwrap_or_default().len()),
            json!(last.map_or_else(
                || print::NONE.to_owned(),
                |time| age::since_time(Some(time), now)
            )),
            json!(age::of(&self.metadata, now)),
            json!(pods.0),
            json!(pods.1),
            json!(
                jobs.selector
                    .as_ref()
                    .map_or_else(|| print::NONE.to_owned(), print::selector)
            ),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        let policy = &mut spec.concurrency_policy;
        if policy.as_deref().unwrap_or_default().is_empty() {
            *policy = Some("Allow".to_owned());
        }
        spec.suspend.get_or_insert(false);
        spec.successful_jobs_history_limit.get_or_insert(3);
        spec.failed_jobs_history_limit.get_or_insert(1);
        job::default_template(spec.job_template.spec.get_or_insert_default());
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(CronJobStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let spec = self.spec.clone().unwrap_or_default();
        let before = old.and_then(|old| old.spec.as_ref());
        let mut errors = spec_errors(&Path::new("spec"), &spec, before);
        let name = print::name(&self.metadata);
        if old.is_none() && name.len() > LONGEST_NAME {
            errors.push(
                Path::new("metadata.name").invalid(name, "must be no more than 52 characters"),
            );
        }
        errors
    }
}

fn spec_errors(path: &Path, spec: &CronJobSpec, old: Option<&CronJobSpec>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("schedule");
    if spec.schedule.is_empty() {
        errors.push(at.required(""));
    } else {
        if let Err(error) = schedule::parse(&spec.schedule) {
            errors.push(at.invalid(spec.schedule.as_str(), error.to_string()));
        }
        if spec.schedule.contains("TZ") {
            errors.push(at.invalid(
                spec.schedule.as_str(),
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ));
        }
    }
    errors.extend(none_negative(
        path,
        &[(
            "startingDeadlineSeconds",
            spec.starting_deadline_seconds.unwrap_or_default(),
        )],
    ));
    if let Some(zone) = &spec.time_zone
        && old.is_none_or(|old| old.time_zone != spec.time_zone)
    {
        errors.extend(time_zone(&path.child("timeZone"), zone));
    }
    errors.extend(validate::one_of(
        &path.child("concurrencyPolicy"),
        spec.concurrency_policy.as_deref(),
        CONCURRENCY,
    ));
    errors.extend(job_template(&path.child("jobTemplate").child("spec"), spec));
    let limit = |limit: Option<i32>| limit.unwrap_or_default();
    errors.extend(none_negative(
        path,
        &[
            (
                "successfulJobsHistoryLimit",
                limit(spec.successful_jobs_history_limit),
            ),
            (
                "failedJobsHistoryLimit",
                limit(spec.failed_jobs_history_limit),
            ),
        ],
    ));
    errors
}

/// Each job's selector is its own.
fn job_template(path: &Path, spec: &CronJobSpec) -> Vec<FieldError> {
    let jobs = spec.job_template.spec.clone().unwrap_or_default();
    let mut errors = job::spec_errors(path, &jobs);
    if let Some(selector) = &jobs.selector {
        let value = serde_json::to_value(selector).unwrap_or_default();
        errors.push(
            path.child("selector")
                .invalid(value, "`selector` will be auto-generated"),
        );
    }
    if jobs.manual_selector == Some(true) {
        errors.push(
            path.child("manualSelector")
                .unsupported("true", &["nil", "false"]),
        );
    }
    errors
}

/// A name of the IANA database. Where a machine has none, every well-formed name is believed.
fn time_zone(path: &Path, zone: &str) -> Option<FieldError> {
    let part = |part: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
        (1..=14).contains(&part.len())
            && part != "."
            && part != ".."
            && !part.starts_with('-')
            && part.bytes().all(fits)
    };
    let unknown = || Some(path.invalid(zone, format!("unknown time zone {zone}")));
    if zone.is_empty() {
        return Some(path.invalid(zone, "timeZone must be nil or non-empty string"));
    }
    if !zone.split('/').all(part) {
        return unknown();
    }
    if zone.eq_ignore_ascii_case("Local") {
        return Some(path.invalid(
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    }
    if tz::db().is_definitively_empty() {
        return None;
    }
    match TimeZone::get(zone) {
        Ok(found) if zone == "UTC" || found.iana_name() == Some(zone) => None,
        _ => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron_job(change: impl FnOnce(&mut Value)) -> CronJob {
        let mut value = json!({
            "metadata": { "name": "report" },
            "spec": { "schedule": "*/5 * * * *", "jobTemplate": { "spec": { "template": { "spec": {
                "containers": [{ "name": "c", "image": "i:1" }], "restartPolicy": "OnFailure",
            } } } } },
        });
        change(&mut value);
        let mut job: CronJob = serde_json::from_value(value).unwrap();
        job.set_defaults();
        job
    }

    fn errors(new: &CronJob) -> Vec<String> {
        let errors = Strategy::validate(new, None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_one_gets_what_upstream_gives_it() {
        let job = cron_job(|_| {});
        assert_eq!(errors(&job), Vec::<String>::new());
        let mut spec = serde_json::to_value(&job.spec).unwrap();
        let jobs = spec["jobTemplate"].take();
        assert_eq!(
            spec,
            json!({
                "concurrencyPolicy": "Allow", "failedJobsHistoryLimit": 1, "jobTemplate": null,
                "schedule": "*/5 * * * *", "successfulJobsHistoryLimit": 3, "suspend": false,
            })
        );
        assert_eq!(
            jobs["spec"]["template"]["spec"]["dnsPolicy"],
            "ClusterFirst"
        );
        assert_eq!(
            jobs["spec"].get("backoffLimit"),
            None,
            "jobs get their own defaults when they are made"
        );
        assert_eq!(
            Value::from(job.row(0)),
            json!([
                "report",
                "*/5 * * * *",
                "<none>",
                "False",
                0,
                "<none>",
                "<unknown>",
                "c",
                "i:1",
                "<none>"
            ])
        );
    }

    #[test]
    fn times_are_such() {
        let odd = cron_job(|job| {
            job["metadata"]["name"] = json!("a".repeat(53));
            job["spec"]["schedule"] = json!("TZ=UTC 61 * * * *");
            job["spec"]["timeZone"] = json!("Mars/Olympus");
            job["spec"]["concurrencyPolicy"] = json!("Maybe");
            job["spec"]["jobTemplate"]["spec"]["selector"] = json!({});
        });
        let name = format!(
            "metadata.name: Invalid value: \"{}\": must be no more than 52 characters",
            "a".repeat(53)
        );
        assert_eq!(
            errors(&odd),
            [
                "spec.schedule: Invalid value: \"TZ=UTC 61 * * * *\": end of range (61) above maximum (59): 61",
                "spec.schedule: Invalid value: \"TZ=UTC 61 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                "spec.timeZone: Invalid value: \"Mars/Olympus\": unknown time zone Mars/Olympus",
                "spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated",
                &name,
            ]
        );
    }

    #[test]
    fn time_zones_have_names() {
        let check = |zone: &str| time_zone(&Path::new("z"), zone).map(|error| error.detail);
        assert_eq!(check("UTC"), None);
        assert_eq!(check("Europe/Berlin"), None);
        for zone in ["../etc", "a//b", "Europe/Nowhere-at-all-x", "-x"] {
            assert_eq!(check(zone), Some(format!("unknown time zone {zone}")));
        }
        assert!(
            check("local")
                .unwrap()
                .starts_with("timeZone must be an explicit")
        );
        assert!(check("").is_some());
    }
}
