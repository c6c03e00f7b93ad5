//! What a job's status may say: whoever writes it, it adds up, and what is over stays over.

use k8s_openapi::api::batch::v1::{JobSpec, JobStatus, UncountedTerminatedPods};
use serde_json::json;

use super::{INDEXED, condition, indexes};
use crate::resources::validate::{FieldError, Path, none_negative};

pub(super) fn errors(
    path: &Path,
    spec: &JobSpec,
    status: &JobStatus,
    old: Option<&JobStatus>,
) -> Vec<FieldError> {
    let mut errors = none_negative(
        path,
        &[
            ("active", status.active.unwrap_or_default()),
            ("succeeded", status.succeeded.unwrap_or_default()),
            ("failed", status.failed.unwrap_or_default()),
            ("ready", status.ready.unwrap_or_default()),
            ("terminating", status.terminating.unwrap_or_default()),
        ],
    );
    errors.extend(uncounted(path, status));
    errors.extend(conditions(path, status));
    errors.extend(times(path, status));
    errors.extend(finished(path, status));
    errors.extend(indexes_errors(path, spec, status));
    let (ready, active) = (
        status.ready.unwrap_or_default(),
        status.active.unwrap_or_default(),
    );
    if ready > active {
        errors.push(
            path.child("ready")
                .invalid(ready, "cannot set more ready pods than active"),
        );
    }
    if let Some(old) = old {
        errors.extend(update(path, spec, status, old));
    }
    errors
}

fn is_finished(status: &JobStatus) -> bool {
    condition(status, "Complete") || condition(status, "Failed")
}

fn uncounted(path: &Path, status: &JobStatus) -> Vec<FieldError> {
    let UncountedTerminatedPods { failed, succeeded } =
        status.uncounted_terminated_pods.clone().unwrap_or_default();
    let path = path.child("uncountedTerminatedPods");
    let mut errors = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (field, uids) in [("succeeded", &succeeded), ("failed", &failed)] {
        for (index, uid) in uids.iter().flatten().enumerate() {
            let path = path.child(field).index(index);
            if uid.is_empty() {
                errors.push(path.invalid("", "must not be empty"));
            } else if !seen.insert(uid.as_str()) {
                errors.push(path.duplicate(uid.as_str()));
            }
        }
    }
    errors
}

fn conditions(path: &Path, status: &JobStatus) -> Vec<FieldError> {
    let is = |type_: &str| condition(status, type_);
    let (complete, failed) = (is("Complete"), is("Failed"));
    let (failing, succeeding) = (is("FailureTarget"), is("SuccessCriteriaMet"));
    let path = path.child("conditions");
    let rules = [
        (
            complete && failed,
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            complete && failing,
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            failed && !failing,
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            complete && !succeeding,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            succeeding && failed,
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        ),
        (
            succeeding && failing,
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
    ];
    let broken = rules.into_iter().filter(|(broken, _)| *broken);
    broken
        .map(|(_, why)| path.invalid_as_a_whole(why))
        .collect()
}

fn times(path: &Path, status: &JobStatus) -> Vec<FieldError> {
    let at = path.child("completionTime");
    let complete = condition(status, "Complete");
    let mut errors = Vec::new();
    match &status.completion_time {
        Some(time) if !complete => errors.push(at.invalid(
            json!(time),
            "cannot set completionTime when there is no Complete=True condition",
        )),
        None if complete => {
            errors.push(at.required("completionTime is required for Complete jobs"));
        }
        _ => {}
    }
    if let (Some(start), Some(end)) = (&status.start_time, &status.completion_time)
        && end < start
    {
        errors.push(at.invalid(json!(end), "completionTime cannot be set before startTime"));
    }
    errors
}

fn finished(path: &Path, status: &JobStatus) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !is_finished(status) {
        return errors;
    }
    for (field, count) in [
        ("active", status.active),
        ("terminating", status.terminating),
    ] {
        if let Some(count) = count.filter(|&count| count > 0) {
            let detail = format!("{field}>0 is invalid for finished job");
            errors.push(path.child(field).invalid(count, detail));
        }
    }
    if status.start_time.is_none() {
        errors.push(
            path.child("startTime")
                .required("startTime is required for finished job"),
        );
    }
    if let Some(left) = &status.uncounted_terminated_pods {
        let has = |uids: &Option<Vec<String>>| uids.as_ref().is_some_and(|uids| !uids.is_empty());
        if has(&left.failed) || has(&left.succeeded) {
            errors.push(path.child("uncountedTerminatedPods").invalid(
                json!(left),
                "uncountedTerminatedPods needs to be empty for finished job",
            ));
        }
    }
    errors
}

fn indexes_errors(path: &Path, spec: &JobSpec, status: &JobStatus) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let completed = status.completed_indexes.as_deref().unwrap_or_default();
    let completed_path = path.child("completedIndexes");
    if !completed.is_empty() && spec.completion_mode.as_deref() != Some(INDEXED) {
        errors.push(completed_path.invalid(
            completed,
            "cannot set non-empty completedIndexes when non-indexed completion mode",
        ));
    }
    let failed_path = path.child("failedIndexes");
    if let Some(failed) = &status.failed_indexes
        && spec.backoff_limit_per_index.is_none()
    {
        errors.push(failed_path.invalid(
            failed.as_str(),
            "cannot set non-null failedIndexes when backoffLimitPerIndex is null",
        ));
    }
    let Some(completions) = spec.completions else {
        return errors;
    };
    let mut read = |path: &Path, field: &str, text: &str| {
        let intervals = indexes::parse(text, completions);
        intervals.unwrap_or_else(|why| {
            errors.push(path.invalid(text, format!("error parsing {field}: {why}")));
            Vec::new()
        })
    };
    let done = read(&completed_path, "completedIndexes", completed);
    if let Some(text) = &status.failed_indexes {
        let failed = read(&failed_path, "failedIndexes", text);
        if let Some(index) = indexes::overlap(&done, &failed) {
            errors.push(failed_path.invalid(
                text.as_str(),
                format!("failedIndexes and completedIndexes overlap at index: {index}"),
            ));
        }
    }
    errors
}

fn update(path: &Path, spec: &JobSpec, new: &JobStatus, old: &JobStatus) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("conditions");
    for type_ in ["Failed", "Complete", "FailureTarget"] {
        if condition(old, type_) && !condition(new, type_) {
            errors.push(at.invalid_as_a_whole(format!(
                "cannot disable the terminal {type_}=True condition"
            )));
        }
    }
    if condition(old, "SuccessCriteriaMet") && !condition(new, "SuccessCriteriaMet") {
        errors.push(at.invalid_as_a_whole("cannot disable the SuccessCriteriaMet=True condition"));
    }
    // A job that shrinks forgets what it counted.
    let elastic = spec.completion_mode.as_deref() == Some(INDEXED);
    let counters = [
        ("failed", new.failed, old.failed, true),
        ("succeeded", new.succeeded, old.succeeded, !elastic),
    ];
    for (field, new, old, grows) in counters {
        let new = new.unwrap_or_default();
        if grows && new < old.unwrap_or_default() {
            let detail = format!("cannot decrease the {field} counter");
            errors.push(path.child(field).invalid(new, detail));
        }
    }
    if let (Some(time), Some(before)) = (&new.completion_time, &old.completion_time)
        && time != before
    {
        errors.push(
            path.child("completionTime")
                .invalid(json!(time), "completionTime cannot be mutated"),
        );
    }
    if old.start_time.is_some() && new.start_time != old.start_time && spec.suspend != Some(true) {
        errors.push(
            path.child("startTime")
                .required("startTime cannot be removed for unsuspended job"),
        );
    }
    errors
}
