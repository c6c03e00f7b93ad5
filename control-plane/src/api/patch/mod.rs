//! The three ways to change part of an object: JSON Patch, merge patch, strategic merge patch. Pure functions.

mod merge;
pub mod schema;
mod strategic;

use serde_json::Value;

pub use schema::Type;

/// How a patch is written: what its content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902: a list of operations.
    Json,
    /// RFC 7386: the fields that change; null removes one.
    Merge,
    /// As `Merge`, with lists that are merged by key and directives among the fields.
    Strategic,
}

impl PatchKind {
    pub const CONTENT_TYPES: [&'static str; 3] = [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];

    /// The kind for a content type without its parameters.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        match content_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("the patch is not a JSON Patch, a list of operations: {reason}")]
    NotOperations { reason: String },
    #[error(
        "the patch has {count} operations, at most {} are allowed",
        PatchError::MAX_OPERATIONS
    )]
    TooManyOperations { count: usize },
    #[error("the patch is not a JSON object")]
    NotAnObject,
    #[error("operation {index} of the patch at {path:?} cannot be applied: {reason}")]
    NotApplicable {
        index: usize,
        path: String,
        reason: String,
    },
    #[error("{path}: {reason}")]
    Directive { path: String, reason: String },
}

impl PatchError {
    const MAX_OPERATIONS: usize = 10_000;

    /// Whether the patch is well-formed but does not fit this object (422), rather than wrong in itself (400).
    pub fn is_unprocessable(&self) -> bool {
        matches!(self, Self::NotApplicable { .. })
    }
}

/// The object with the patch applied. `schema` is what strategic merging knows of the kind; see [`schema::of`].
pub fn apply(
    kind: PatchKind,
    object: &Value,
    patch: &Value,
    schema: Option<&'static Type>,
) -> Result<Value, PatchError> {
    match kind {
        PatchKind::Json => json(object, patch),
        _ if !patch.is_object() => Err(PatchError::NotAnObject),
        PatchKind::Merge => Ok(merge::merge(object.clone(), patch)),
        PatchKind::Strategic => strategic::merge(object, patch, schema),
    }
}

fn json(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::NotOperations {
            reason: error.to_string(),
        })?;
    if operations.len() > PatchError::MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations {
            count: operations.len(),
        });
    }
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &operations).map_err(|error| PatchError::NotApplicable {
        index: error.operation,
        path: error.path.to_string(),
        reason: error.kind.to_string(),
    })?;
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn json_patch(object: Value, patch: Value) -> Result<Value, PatchError> {
        apply(PatchKind::Json, &object, &patch, None)
    }

    #[test]
    fn operations_are_applied_in_order() {
        assert_eq!(
            json_patch(
                json!({ "spec": { "replicas": 1, "old": true } }),
                json!([
                    { "op": "test", "path": "/spec/replicas", "value": 1 },
                    { "op": "replace", "path": "/spec/replicas", "value": 2 },
                    { "op": "remove", "path": "/spec/old" },
                    { "op": "add", "path": "/metadata", "value": { "labels": { "a/b": "c" } } },
                    { "op": "add", "path": "/metadata/labels/a~1b", "value": "d" },
                ])
            ),
            Ok(json!({ "spec": { "replicas": 2 }, "metadata": { "labels": { "a/b": "d" } } }))
        );
    }

    #[test]
    fn what_cannot_be_applied_is_named() {
        let error = json_patch(json!({}), json!([{ "op": "remove", "path": "/a" }])).unwrap_err();
        assert!(error.is_unprocessable());
        assert!(
            error
                .to_string()
                .starts_with("operation 0 of the patch at \"/a\" cannot be applied"),
            "{error}"
        );
        let error = json_patch(
            json!({ "a": 1 }),
            json!([{ "op": "test", "path": "/a", "value": 2 }]),
        )
        .unwrap_err();
        assert!(error.is_unprocessable());
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for patch in [
            json!({}),
            json!("x"),
            json!([{ "op": "hop", "path": "/a" }]),
        ] {
            let error = json_patch(json!({}), patch).unwrap_err();
            assert!(!error.is_unprocessable());
        }
        assert_eq!(
            apply(PatchKind::Merge, &json!({}), &json!([]), None),
            Err(PatchError::NotAnObject)
        );
    }

    #[test]
    fn every_content_type_has_its_kind() {
        for content_type in PatchKind::CONTENT_TYPES {
            assert!(PatchKind::of_content_type(content_type).is_some());
        }
        assert_eq!(PatchKind::of_content_type("application/json"), None);
    }
}
