//! What a job's policies may say: what the failure of a pod means, and which indexes are enough.

use std::collections::HashSet;

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule, SuccessPolicy, SuccessPolicyRule,
};
use serde_json::json;

use super::{INDEXED, indexes};
use crate::resources::validate::{FieldError, Path, names, not_negative};

const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_PATTERNS: usize = 20;
/// In bytes.
const LONGEST_INDEXES: usize = 64 * 1024;
const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: &[&str] = &["In", "NotIn"];
const STATUSES: &[&str] = &["False", "True", "Unknown"];
pub(super) fn failure(path: &Path, policy: &PodFailurePolicy, spec: &JobSpec) -> Vec<FieldError> {
    let path = path.child("rules");
    let mut errors = Vec::new();
    if policy.rules.len() > MOST_RULES {
        errors.push(path.too_many(policy.rules.len(), MOST_RULES));
    }
    for (index, one) in policy.rules.iter().enumerate() {
        errors.extend(failure_rule(&path.index(index), one, spec));
    }
    errors
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

pub(super) fn success(path: &Path, policy: &SuccessPolicy, spec: &JobSpec) -> Vec<FieldError> {
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
