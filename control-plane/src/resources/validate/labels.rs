//! Labels, annotations and selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use super::{FieldError, Path, names};

const MAX_ANNOTATIONS: usize = 256 * 1024;

pub fn labels(path: &Path, labels: Option<&BTreeMap<String, String>>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(path.invalid_all(key, names::qualified(key)));
        errors.extend(path.invalid_all(value, names::label_value(value)));
    }
    errors
}

/// The key of a label.
pub fn key(path: &Path, key: &str) -> Vec<FieldError> {
    path.invalid_all(key, names::qualified(key))
}

pub fn annotations(path: &Path, annotations: Option<&BTreeMap<String, String>>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.extend(path.invalid_all(key, names::qualified(&key.to_lowercase())));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(path.too_long(MAX_ANNOTATIONS));
    }
    errors
}

pub fn selector(path: &Path, selector: &LabelSelector) -> Vec<FieldError> {
    let mut errors = labels(&path.child("matchLabels"), selector.match_labels.as_ref());
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => errors.push(
                path.child("values")
                    .required("must be specified when `operator` is 'In' or 'NotIn'"),
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(path.child("values").forbidden(
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ))
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(
                path.child("operator")
                    .invalid(other, "not a valid selector operator"),
            ),
        }
        errors.extend(
            path.child("key")
                .invalid_all(&expression.key, names::qualified(&expression.key)),
        );
        for (index, value) in values.iter().enumerate() {
            errors.extend(
                path.child("values")
                    .index(index)
                    .invalid_all(value, names::label_value(value)),
            );
        }
    }
    errors
}

pub fn is_empty(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(BTreeMap::is_empty)
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// What a workload demands of its selector: there, not empty, and choosing the pods of its own template.
pub fn workload_selector(
    path: &Path,
    chosen: &LabelSelector,
    template: Option<&BTreeMap<String, String>>,
) -> Vec<FieldError> {
    let at = path.child("selector");
    let mut errors = selector(&at, chosen);
    if is_empty(chosen) {
        errors.push(at.required(""));
    } else if errors.is_empty() {
        let labels = template.cloned().unwrap_or_default();
        let fits =
            Selector::try_from(chosen.clone()).is_ok_and(|selector| selector.matches(&labels));
        if !fits {
            let value = serde_json::to_value(template).unwrap_or_default();
            errors.push(
                path.child("template")
                    .child("metadata")
                    .child("labels")
                    .invalid(value, "`selector` does not match template `labels`"),
            );
        }
    }
    errors
}
