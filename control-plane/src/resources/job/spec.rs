//! What a job's specification may say, also within a CronJob.

use std::collections::HashSet;

use k8s_openapi::api::{
    batch::v1::{
        Job, JobSpec, PodFailurePolicyOnExitCodesRequirement,
        PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule, SuccessPolicy,
        SuccessPolicyRule,
    },
    core::v1::PodTemplateSpec,
};
use serde_json::json;

use super::{INDEXED, NOT_INDEXED, indexes};
use crate::resources::{
    pod,
    validate::{self, FieldError, Path, names, none_negative, not_negative},
};

const MOST_PARALLEL: i32 = 100_000;
const MOST_FAILED: i32 = 100_000;
/// Above so many completions, limits for each index are dear.
const MANY: i32 = 100_000;
const MOST_PARALLEL_OF_MANY: i32 = 10_000;
const MOST_FAILED_OF_MANY: i32 = 10_000;
const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_PATTERNS: usize = 20;
/// In bytes.
const LONGEST_INDEXES: usize = 64 * 1024;
const LONGEST_MANAGER: usize = 63;

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: &[&str] = &["In", "NotIn"];
const STATUSES: &[&str] = &["False", "True", "Unknown"];
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
        let path = path.child("podFailurePolicy").child("rules");
        if policy.rules.len() > MOST_RULES {
            errors.push(path.too_many(policy.rules.len(), MOST_RULES));
        }
        for (index, one) in policy.rules.iter().enumerate() {
            errors.extend(failure_rule(&path.index(index), one, spec));
        }
    }
    if let Some(policy) = &spec.success_policy {
        errors.extend(success_policy(&path.child("successPolicy"), policy, spec));
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

/// `["A" "B"]`, as upstream lists what is valid.
fn quoted(values: &[&str]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn choice(path: &Path, chosen: &str, among: &[&str]) -> Option<FieldError> {
    match chosen {
        "" => Some(path.required(&quoted(among))),
        known if among.contains(&known) => None,
        other => Some(path.unsupported(other, among)),
    }
}

fn failure_rule(path: &Path, rule: &PodFailurePolicyRule, spec: &JobSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let action = path.child("action");
    errors.extend(choice(&action, &rule.action, ACTIONS));
    if rule.action == "FailIndex" && spec.backoff_limit_per_index.is_none() {
        errors.push(action.invalid(
            rule.action.as_str(),
            "requires the backoffLimitPerIndex to be set",
        ));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        errors.extend(exit_codes(&path.child("onExitCodes"), codes, spec));
    }
    errors.extend(pod_conditions(&path.child("onPodConditions"), patterns));
    match (rule.on_exit_codes.is_some(), patterns.is_empty()) {
        (true, false) => errors.push(path.invalid_as_a_whole(
            "specifying both OnExitCodes and OnPodConditions is not supported",
        )),
        (false, true) => {
            errors.push(path.invalid_as_a_whole(
                "specifying one of OnExitCodes and OnPodConditions is required",
            ))
        }
        _ => {}
    }
    errors
}

fn pod_conditions(
    path: &Path,
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if patterns.len() > MOST_PATTERNS {
        errors.push(path.too_many(patterns.len(), MOST_PATTERNS));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        errors.extend(
            path.child("type")
                .invalid_all(&pattern.type_, names::qualified(&pattern.type_)),
        );
        errors.extend(choice(&path.child("status"), &pattern.status, STATUSES));
    }
    errors
}

fn exit_codes(
    path: &Path,
    codes: &PodFailurePolicyOnExitCodesRequirement,
    spec: &JobSpec,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    errors.extend(choice(&path.child("operator"), &codes.operator, OPERATORS));
    if let Some(name) = &codes.container_name {
        let pod = spec.template.spec.clone().unwrap_or_default();
        let init = pod.init_containers.unwrap_or_default();
        if !pod
            .containers
            .iter()
            .chain(&init)
            .any(|one| one.name == *name)
        {
            errors.push(path.child("containerName").invalid(
                name.as_str(),
                "must be one of the container or initContainer names in the pod template",
            ));
        }
    }
    let path = path.child("values");
    match codes.values.len() {
        0 => errors.push(path.invalid(json!([]), "at least one value is required")),
        many if many > MOST_EXIT_CODES => errors.push(path.too_many(many, MOST_EXIT_CODES)),
        _ => {}
    }
    let mut seen = HashSet::new();
    for (index, code) in codes.values.iter().enumerate() {
        let path = path.index(index);
        if codes.operator == "In" && *code == 0 {
            errors.push(path.invalid(0, "must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            errors.push(path.duplicate(*code));
        }
    }
    if !codes.values.is_sorted() {
        errors.push(path.invalid(json!(codes.values), "must be ordered"));
    }
    errors
}

fn success_policy(path: &Path, policy: &SuccessPolicy, spec: &JobSpec) -> Vec<FieldError> {
    if spec.completion_mode.as_deref() != Some(INDEXED) {
        let value = serde_json::to_value(policy).unwrap_or_default();
        return vec![path.invalid(value, "requires indexed completion mode")];
    }
    let path = path.child("rules");
    let mut errors = Vec::new();
    match policy.rules.len() {
        0 => {
            errors.push(path.required(
                "at least one rules must be specified when the successPolicy is specified",
            ))
        }
        many if many > MOST_RULES => errors.push(path.too_many(many, MOST_RULES)),
        _ => {}
    }
    let completions = spec.completions.unwrap_or_default();
    for (index, rule) in policy.rules.iter().enumerate() {
        errors.extend(success_rule(&path.index(index), rule, completions));
    }
    errors
}

fn success_rule(path: &Path, rule: &SuccessPolicyRule, completions: i32) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        errors.push(
            path.required("at least one of succeededCount or succeededIndexes must be specified"),
        );
    }
    let mut among = None;
    if let Some(text) = &rule.succeeded_indexes {
        let path = path.child("succeededIndexes");
        if text.len() > LONGEST_INDEXES {
            errors.push(path.too_long(LONGEST_INDEXES));
        }
        match indexes::parse(text, completions) {
            Ok(intervals) => among = Some(indexes::count(&intervals)),
            Err(why) => {
                among = Some(0);
                let detail = format!("error parsing succeededIndexes: {why}");
                errors.push(path.invalid(text.as_str(), detail));
            }
        }
    }
    if let Some(count) = rule.succeeded_count {
        let path = path.child("succeededCount");
        errors.extend(not_negative(&path, count.into()));
        if count > completions {
            errors.push(path.invalid(count, format!("must be less than or equal to {completions} (the number of specified completions)")));
        }
        if let Some(total) = among.filter(|&total| count > total) {
            errors.push(path.invalid(count, format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)")));
        }
    }
    errors
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
