//! What a job's specification may say, also within a CronJob.

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::PodTemplateSpec,
};
use serde_json::json;

use super::{INDEXED, NOT_INDEXED, policies};
use crate::resources::{
    pod,
    validate::{self, FieldError, Path, names, none_negative},
};

const MOST_PARALLEL: i32 = 100_000;
const MOST_FAILED: i32 = 100_000;
/// Above so many completions, limits for each index are dear.
const MANY: i32 = 100_000;
const MOST_PARALLEL_OF_MANY: i32 = 10_000;
const MOST_FAILED_OF_MANY: i32 = 10_000;
/// In bytes.
const LONGEST_MANAGER: usize = 63;

const REPLACEMENTS: &[&str] = &["Failed", "TerminatingOrFailed"];

pub fn errors(path: &Path, spec: &JobSpec) -> Vec<FieldError> {
    let number = |number: Option<i32>| i64::from(number.unwrap_or_default());
    let mut errors = none_negative(
        path,
        &[
            ("parallelism", number(spec.parallelism)),
            ("completions", number(spec.completions)),
            (
                "activeDeadlineSeconds",
                spec.active_deadline_seconds.unwrap_or_default(),
            ),
            ("backoffLimit", number(spec.backoff_limit)),
            (
                "ttlSecondsAfterFinished",
                number(spec.ttl_seconds_after_finished),
            ),
            ("backoffLimitPerIndex", number(spec.backoff_limit_per_index)),
            ("maxFailedIndexes", number(spec.max_failed_indexes)),
        ],
    );
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        errors.push(
            path.child("backoffLimitPerIndex")
                .required("when maxFailedIndexes is specified"),
        );
    }
    if let Some(manager) = &spec.managed_by {
        errors.extend(managed_by(&path.child("managedBy"), manager));
    }
    match spec.completion_mode.as_deref() {
        Some(INDEXED) => errors.extend(indexed(path, spec)),
        None | Some(NOT_INDEXED) => errors.extend(not_indexed(path, spec)),
        Some(other) => errors.push(
            path.child("completionMode")
                .unsupported(other, &[INDEXED, NOT_INDEXED]),
        ),
    }
    if let Some(policy) = &spec.pod_failure_policy {
        errors.extend(policies::failure(
            &path.child("podFailurePolicy"),
            policy,
            spec,
        ));
    }
    if let Some(policy) = &spec.success_policy {
        errors.extend(policies::success(
            &path.child("successPolicy"),
            policy,
            spec,
        ));
    }
    if let Some(chosen) = spec.pod_replacement_policy.as_deref() {
        let supported = match spec.pod_failure_policy {
            Some(_) => &REPLACEMENTS[..1],
            None => REPLACEMENTS,
        };
        if !supported.contains(&chosen) {
            errors.push(
                path.child("podReplacementPolicy")
                    .unsupported(chosen, supported),
            );
        }
    }
    errors.extend(template(&path.child("template"), spec));
    errors
}

fn template(path: &Path, spec: &JobSpec) -> Vec<FieldError> {
    let mut errors = pod::validate::template(path, &spec.template);
    let pod = spec.template.spec.as_ref();
    let policy = pod.and_then(|pod| pod.restart_policy.as_deref());
    let path = path.child("spec").child("restartPolicy");
    match policy.unwrap_or_default() {
        "" | "Always" => errors.push(path.required("valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if spec.pod_failure_policy.is_some() => errors.push(path.invalid(
            "OnFailure",
            "only \"Never\" is supported when podFailurePolicy is specified",
        )),
        // What is none of the three was found in the pod's specification.
        _ => {}
    }
    errors
}

fn managed_by(path: &Path, manager: &str) -> Vec<FieldError> {
    let mut errors = match manager.split_once('/') {
        _ if manager.is_empty() => vec![path.required("")],
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            let mut errors = path.invalid_all(domain, names::dns1123_subdomain(domain, false));
            errors.extend(path.invalid_all(rest, names::http_path(rest)));
            errors
        }
        _ => vec![path.invalid(
            manager,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        )],
    };
    if manager.len() > LONGEST_MANAGER {
        errors.push(path.too_long(LONGEST_MANAGER));
    }
    errors
}

fn indexed(path: &Path, spec: &JobSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(completions) = spec.completions else {
        errors.push(
            path.child("completions")
                .required(&format!("when completion mode is {INDEXED}")),
        );
        return errors;
    };
    let parallelism = spec.parallelism.unwrap_or_default();
    let mut refuse = |wrong: bool, field: &str, value: i32, detail: String| {
        if wrong {
            errors.push(path.child(field).invalid(value, detail));
        }
    };
    refuse(
        parallelism > MOST_PARALLEL,
        "parallelism",
        parallelism,
        format!("must be less than or equal to {MOST_PARALLEL} when completion mode is {INDEXED}"),
    );
    let many = completions > MANY && spec.backoff_limit_per_index.is_some();
    let of_many = |most: i32| {
        format!(
            "must be less than or equal to {most} when completions are above {MANY} and used with backoff limit per index"
        )
    };
    refuse(
        many && parallelism > MOST_PARALLEL_OF_MANY,
        "parallelism",
        parallelism,
        of_many(MOST_PARALLEL_OF_MANY),
    );
    if let Some(most) = spec.max_failed_indexes {
        let field = "maxFailedIndexes";
        let detail = "must be less than or equal to completions".to_owned();
        refuse(most > completions, field, most, detail);
        let detail = format!("must be less than or equal to {MOST_FAILED}");
        refuse(most > MOST_FAILED, field, most, detail);
        refuse(
            many && most > MOST_FAILED_OF_MANY,
            field,
            most,
            of_many(MOST_FAILED_OF_MANY),
        );
    } else if many {
        errors.push(path.child("maxFailedIndexes").required(&format!(
            "must be specified when completions is above {MANY}"
        )));
    }
    errors
}

fn not_indexed(path: &Path, spec: &JobSpec) -> Vec<FieldError> {
    let fields = [
        ("backoffLimitPerIndex", spec.backoff_limit_per_index),
        ("maxFailedIndexes", spec.max_failed_indexes),
    ];
    let set = fields
        .into_iter()
        .filter_map(|(field, value)| Some((field, value?)));
    set.map(|(field, value)| {
        path.child(field)
            .invalid(value, "requires indexed completion mode")
    })
    .collect()
}

/// What an update may not change.
pub(super) fn update_errors(path: &Path, new: &JobSpec, job: &Job) -> Vec<FieldError> {
    let Some(old) = &job.spec else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    errors.extend(completions(path, new, old));
    errors.extend(validate::immutable(
        &path.child("selector"),
        &new.selector,
        &old.selector,
    ));
    let never_started = job.status.as_ref().is_none_or(|it| it.start_time.is_none());
    let mut template = old.template.clone();
    if old.suspend == Some(true) && never_started {
        let_schedule(&mut template, &new.template);
    }
    errors.extend(validate::immutable(
        &path.child("template"),
        &new.template,
        &template,
    ));
    let mut fixed = |field: &str, new: serde_json::Value, old: serde_json::Value| {
        errors.extend(validate::immutable(&path.child(field), &new, &old));
    };
    fixed(
        "completionMode",
        json!(new.completion_mode),
        json!(old.completion_mode),
    );
    fixed(
        "podFailurePolicy",
        json!(new.pod_failure_policy),
        json!(old.pod_failure_policy),
    );
    fixed(
        "backoffLimitPerIndex",
        json!(new.backoff_limit_per_index),
        json!(old.backoff_limit_per_index),
    );
    fixed("managedBy", json!(new.managed_by), json!(old.managed_by));
    fixed(
        "successPolicy",
        json!(new.success_policy),
        json!(old.success_policy),
    );
    errors
}

/// An indexed job may grow and shrink, all of it at once.
fn completions(path: &Path, new: &JobSpec, old: &JobSpec) -> Option<FieldError> {
    let at = path.child("completions");
    match new.completions {
        Some(count) if new.completion_mode.as_deref() == Some(INDEXED) => {
            let together = new.completions == old.completions || new.parallelism == Some(count);
            (!together).then(|| {
                at.invalid(
                    count,
                    "can only be modified in tandem with spec.parallelism",
                )
            })
        }
        _ => validate::immutable(&at, &new.completions, &old.completions),
    }
}

/// Until a job starts, a queue may say where its pods go: takes over from `new` what it may say.
fn let_schedule(old: &mut PodTemplateSpec, new: &PodTemplateSpec) {
    let metadata = new.metadata.clone().unwrap_or_default();
    let own = old.metadata.get_or_insert_default();
    own.labels = metadata.labels;
    own.annotations = metadata.annotations;
    if new.metadata.is_none() {
        old.metadata = None;
    }
    let wanted = new.spec.clone().unwrap_or_default();
    let Some(spec) = &mut old.spec else { return };
    spec.node_selector = wanted.node_selector;
    spec.tolerations = wanted.tolerations;
    spec.scheduling_gates = wanted.scheduling_gates;
    match (&wanted.affinity, &mut spec.affinity) {
        (Some(wanted), Some(own)) => own.node_affinity = wanted.node_affinity.clone(),
        (Some(wanted), none @ None) => {
            none.get_or_insert_default().node_affinity = wanted.node_affinity.clone();
        }
        (None, Some(own)) => {
            own.node_affinity = None;
            if *own == Default::default() {
                spec.affinity = None;
            }
        }
        (None, None) => {}
    }
}
