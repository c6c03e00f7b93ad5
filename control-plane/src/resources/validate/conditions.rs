//! `status.conditions` of kinds that use the type all kinds share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{FieldError, Path, duplicates, names};

const STATUSES: &[&str] = &["False", "True", "Unknown"];
/// In bytes.
const LONGEST_REASON: usize = 1024;
const LONGEST_MESSAGE: usize = 32 * 1024;

pub fn conditions(path: &Path, conditions: &[Condition]) -> Vec<FieldError> {
    let types = conditions.iter().map(|one| one.type_.as_str());
    let mut errors = duplicates(path, "type", types);
    for (index, one) in conditions.iter().enumerate() {
        errors.extend(condition(&path.index(index), one));
    }
    errors
}

fn condition(path: &Path, condition: &Condition) -> Vec<FieldError> {
    let mut errors = path
        .child("type")
        .invalid_all(&condition.type_, names::qualified(&condition.type_));
    if !STATUSES.contains(&condition.status.as_str()) {
        errors.push(
            path.child("status")
                .unsupported(&condition.status, STATUSES),
        );
    }
    if let Some(generation) = condition.observed_generation.filter(|&it| it < 0) {
        errors.push(
            path.child("observedGeneration")
                .invalid(generation, "must be greater than or equal to zero"),
        );
    }
    let reason = path.child("reason");
    if condition.reason.is_empty() {
        errors.push(reason.required("must be set"));
    } else {
        errors.extend(reason.invalid_all(
            &condition.reason,
            names::condition_reason(&condition.reason),
        ));
        if condition.reason.len() > LONGEST_REASON {
            errors.push(reason.too_long(LONGEST_REASON));
        }
    }
    if condition.message.len() > LONGEST_MESSAGE {
        errors.push(path.child("message").too_long(LONGEST_MESSAGE));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_says_why() {
        let list: Vec<Condition> = serde_json::from_value(json!([
            { "type": "Ready", "status": "True", "reason": "All:Well", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "Ready", "status": "Yes", "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "Other", "status": "False", "reason": "not good", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        ]))
        .unwrap();
        let found: Vec<_> = conditions(&Path::new("status.conditions"), &list)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found[0],
            "status.conditions[1].type: Duplicate value: \"Ready\""
        );
        assert_eq!(
            found[1],
            "status.conditions[1].status: Unsupported value: \"Yes\": supported values: \"False\", \"True\", \"Unknown\""
        );
        assert_eq!(
            found[2],
            "status.conditions[1].reason: Required value: must be set"
        );
        assert!(
            found[3].starts_with("status.conditions[2].reason: Invalid value: \"not good\": a condition reason must start with")
        );
        assert_eq!(found.len(), 4);
    }
}
