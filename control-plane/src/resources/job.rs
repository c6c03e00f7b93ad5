//! Job: pods that come to an end.

pub mod indexes;
mod policies;
mod spec;
mod status;

use k8s_openapi::{
    api::batch::v1::{Job, JobSpec, JobStatus, PodFailurePolicy},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
};
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    pod, print,
    validate::{Path, labels, names},
};

pub(super) use spec::errors as spec_errors;

pub const INDEXED: &str = "Indexed";
const NOT_INDEXED: &str = "NonIndexed";

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// The same under the names that they had first.
const FIRST_CONTROLLER_UID: &str = "controller-uid";
const FIRST_JOB_NAME: &str = "job-name";

impl Strategy for Job {
    const SINGULAR: &'static str = "job";
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const ORPHANS: bool = true;
    const ORPHANS_WARNING: Option<&'static str> = Some(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
    );
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Status", "How it is going."),
        Column::text("Completions", "Pods that succeeded, of those wanted."),
        Column::text("Duration", "How long it took, or has taken until now."),
        Column::AGE,
        Column::CONTAINERS,
        Column::IMAGES,
        Column::SELECTOR,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let pods = print::template(Some(&spec.template));
        let selector = spec.selector.as_ref();
        vec![
            json!(print::name(&self.metadata)),
            json!(state(self)),
            json!(completions(self)),
            json!(duration(self, now)),
            json!(age::of(&self.metadata, now)),
            json!(pods.0),
            json!(pods.1),
            json!(selector.map_or_else(|| print::NONE.to_owned(), print::selector)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.parallelism.is_none() && spec.completions.is_none() {
            spec.completions = Some(1);
        }
        spec.parallelism.get_or_insert(1);
        let limit = match spec.backoff_limit_per_index {
            Some(_) => i32::MAX,
            None => 6,
        };
        spec.backoff_limit.get_or_insert(limit);
        spec.completion_mode
            .get_or_insert_with(|| NOT_INDEXED.to_owned());
        spec.suspend.get_or_insert(false);
        let replacement = match spec.pod_failure_policy {
            Some(_) => "Failed",
            None => "TerminatingOrFailed",
        };
        spec.pod_replacement_policy
            .get_or_insert_with(|| replacement.to_owned());
        default_template(spec);
        let labels = spec
            .template
            .metadata
            .as_ref()
            .and_then(|it| it.labels.clone());
        label(self, labels);
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(JobStatus::default());
        generate_selector(self);
        let template = self
            .spec
            .as_ref()
            .and_then(|it| it.template.metadata.as_ref());
        let labels = template.and_then(|it| it.labels.clone());
        label(self, labels);
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
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = generated_selector_errors(self, &spec);
        errors.extend(spec::errors(&path, &spec));
        errors.extend(selector_errors(&path, &spec));
        errors.extend(hostname_errors(self, &spec));
        if let Some(old) = old {
            errors.extend(spec::update_errors(&path, &spec, old));
        }
        if let Some(status) = &self.status {
            let before = old.and_then(|old| old.status.as_ref());
            errors.extend(status::errors(&Path::new("status"), &spec, status, before));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let succeeded = self.status.as_ref().and_then(|status| status.succeeded);
        vec![(
            "status.successful",
            succeeded.unwrap_or_default().to_string(),
        )]
    }
}

/// What a job's template gets, also that of a CronJob.
pub(super) fn default_template(spec: &mut JobSpec) {
    pod::defaults::template(spec.template.spec.get_or_insert_default());
    let PodFailurePolicy { rules } = match &mut spec.pod_failure_policy {
        Some(policy) => policy,
        None => return,
    };
    let patterns = rules
        .iter_mut()
        .flat_map(|rule| rule.on_pod_conditions.iter_mut().flatten());
    for pattern in patterns.filter(|pattern| pattern.status.is_empty()) {
        pattern.status = "True".to_owned();
    }
}

/// A job without labels has its pods'.
fn label(job: &mut Job, labels: Option<std::collections::BTreeMap<String, String>>) {
    let own = &mut job.metadata.labels;
    if own.as_ref().is_none_or(|own| own.is_empty()) && labels.is_some() {
        *own = labels;
    }
}

/// Makes the job's pods its own by its uid, unless the client chose a selector.
fn generate_selector(job: &mut Job) {
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let name = print::name(&job.metadata);
    let Some(spec) = &mut job.spec else { return };
    if spec.manual_selector == Some(true) {
        return;
    }
    let template = spec.template.metadata.get_or_insert_default();
    let labels = template.labels.get_or_insert_default();
    // Where the client has set one of them, validation says what it has to be.
    for (first, label, value) in [
        (FIRST_JOB_NAME, JOB_NAME, &name),
        (FIRST_CONTROLLER_UID, CONTROLLER_UID, &uid),
    ] {
        for label in [first, label] {
            labels
                .entry(label.to_owned())
                .or_insert_with(|| value.clone());
        }
    }
    let selector = spec.selector.get_or_insert_default();
    selector
        .match_labels
        .get_or_insert_default()
        .entry(CONTROLLER_UID.to_owned())
        .or_insert(uid);
}

fn generated_selector_errors(job: &Job, spec: &JobSpec) -> Vec<FieldError> {
    let Some(selector) = spec
        .selector
        .as_ref()
        .filter(|_| spec.manual_selector != Some(true))
    else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    let uid = job.metadata.uid.clone().unwrap_or_default();
    if uid.is_empty() {
        errors.push(Path::new("metadata.uid").required(""));
    }
    let name = print::name(&job.metadata);
    let path = Path::new("spec.template.metadata.labels");
    let labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|it| it.labels.clone());
    let labels = labels.unwrap_or_default();
    let expected = [
        (FIRST_CONTROLLER_UID, &uid),
        (FIRST_JOB_NAME, &name),
        (CONTROLLER_UID, &uid),
        (JOB_NAME, &name),
    ];
    for (label, value) in expected {
        let detail = format!("must be '{value}'");
        match labels.get(label) {
            None => errors.push(path.key(label).required(&detail)),
            Some(actual) if actual == value => {}
            Some(_) => errors.push(path.key(label).invalid(json!(labels), detail)),
        }
    }
    let expected = expected.map(|(label, value)| (label.to_owned(), value.clone()));
    if !matches(selector, &expected.into()) {
        let value = serde_json::to_value(selector).unwrap_or_default();
        errors.push(Path::new("spec.selector").invalid(value, "`selector` not auto-generated"));
    }
    errors
}

/// A selector that cannot be read has an error of its own.
fn matches(selector: &LabelSelector, labels: &std::collections::BTreeMap<String, String>) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

fn selector_errors(path: &Path, spec: &JobSpec) -> Vec<FieldError> {
    let Some(selector) = &spec.selector else {
        return vec![path.child("selector").required("")];
    };
    let mut errors = labels::selector(&path.child("selector"), selector);
    let labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|it| it.labels.clone());
    let labels = labels.unwrap_or_default();
    if errors.is_empty() && !matches(selector, &labels) {
        let path = path.child("template").child("metadata").child("labels");
        errors.push(path.invalid(json!(labels), "`selector` does not match template `labels`"));
    }
    errors
}

/// Pods of an indexed job have its name and their index as hostname.
fn hostname_errors(job: &Job, spec: &JobSpec) -> Option<FieldError> {
    let indexed = spec.completion_mode.as_deref() == Some(INDEXED);
    let completions = spec.completions.filter(|&count| indexed && count > 0)?;
    let name = print::name(&job.metadata);
    let longest = format!("{name}-{}", completions - 1);
    (!names::dns1123_label(&longest, false).is_empty()).then(|| {
        Path::new("metadata.name").invalid(
            name,
            format!("will not able to create pod with invalid DNS label: {longest}"),
        )
    })
}

/// Whether a condition is true.
pub fn condition(status: &JobStatus, type_: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn state(job: &Job) -> &'static str {
    let is = |type_: &str| {
        job.status
            .as_ref()
            .is_some_and(|status| condition(status, type_))
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if job.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Job) -> String {
    let spec = job.spec.clone().unwrap_or_default();
    let succeeded = job.status.as_ref().and_then(|status| status.succeeded);
    let succeeded = succeeded.unwrap_or_default();
    match (spec.completions, spec.parallelism.unwrap_or_default()) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, many @ 2..) => format!("{succeeded}/1 of {many}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(job: &Job, now: i64) -> String {
    let status = job.status.clone().unwrap_or_default();
    let seconds = |time: &Time| time.0.as_second();
    let Some(start) = status.start_time.as_ref() else {
        return String::new();
    };
    let end = status.completion_time.as_ref().map_or(now, seconds);
    age::human_duration(end - seconds(start))
}

#[cfg(test)]
mod tests;
