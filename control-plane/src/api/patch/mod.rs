//! The three ways to change part of an object: JSON Patch, merge patch, strategic merge patch. Pure functions.

mod merge;
pub mod schema;
mod strategic;

use json_patch::PatchOperation;
use serde::Deserialize;
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
    #[error(
        "the copy operations up to number {index} of the patch copy more than {} bytes",
        PatchError::MAX_COPIED
    )]
    TooMuchCopied { index: usize },
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
    /// What all `copy` operations of a patch may copy together, in bytes of JSON: each may double what the ones before it
    /// made.
    const MAX_COPIED: usize = 3 * 1024 * 1024;

    /// Whether the patch is well-formed but does not fit this object (422), rather than wrong in itself (400).
    pub fn is_unprocessable(&self) -> bool {
        matches!(
            self,
            Self::NotApplicable { .. } | Self::TooMuchCopied { .. }
        )
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
    let count = patch.as_array().map_or(0, Vec::len);
    if count > PatchError::MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations { count });
    }
    let operations =
        json_patch::Patch::deserialize(patch).map_err(|error| PatchError::NotOperations {
            reason: error.to_string(),
        })?;
    let mut patched = object.clone();
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            copied += patched.pointer(copy.from.as_str()).map_or(0, size);
            if copied > PatchError::MAX_COPIED {
                return Err(PatchError::TooMuchCopied { index });
            }
        }
        if is_absent_as_asked(&patched, operation) {
            continue;
        }
        // What a failed operation leaves behind is dropped.
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation)).map_err(
            |error| PatchError::NotApplicable {
                index,
                path: error.path.to_string(),
                reason: error.kind.to_string(),
            },
        )?;
    }
    Ok(patched)
}

/// Whether an operation tests for null what an object does not have. Upstream lets that pass, and clients ask so whether a
/// list is there before they begin one.
fn is_absent_as_asked(object: &Value, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else {
        return false;
    };
    let within = test
        .path
        .parent()
        .and_then(|parent| object.pointer(parent.as_str()));
    test.value.is_null()
        && within.is_some_and(Value::is_object)
        && object.pointer(test.path.as_str()).is_none()
}

/// Bytes of JSON.
fn size(value: &Value) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
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
    fn what_is_not_there_is_null_to_a_test() {
        let test = |path: &str, value: Value| json!({ "op": "test", "path": path, "value": value });
        let object = json!({ "metadata": { "name": "a" }, "list": [] });
        let begin = json!({ "op": "add", "path": "/metadata/finalizers", "value": ["a/b"] });
        let patched = json_patch(
            object.clone(),
            json!([test("/metadata/finalizers", Value::Null), begin]),
        );
        assert_eq!(patched.unwrap()["metadata"]["finalizers"], json!(["a/b"]));
        for refused in [
            test("/metadata/name", Value::Null),
            test("/metadata/finalizers", json!([])),
            test("/spec/replicas", Value::Null),
            test("/list/0", Value::Null),
        ] {
            let refused = json_patch(object.clone(), json!([refused]));
            assert!(refused.unwrap_err().is_unprocessable());
        }
    }

    #[test]
    fn copies_that_double_the_object_are_refused_early() {
        let object = json!({ "data": { "a": "x".repeat(1000) } });
        let doubling: Vec<_> = (0..40)
            .map(|n| json!({ "op": "copy", "from": "/data", "path": format!("/data/{n}") }))
            .collect();
        let error = json_patch(object.clone(), Value::from(doubling)).unwrap_err();
        assert_eq!(error, PatchError::TooMuchCopied { index: 11 });
        assert!(error.is_unprocessable());
        let one = json!([{ "op": "copy", "from": "/data/a", "path": "/data/b" }]);
        assert_eq!(
            json_patch(object.clone(), one).unwrap()["data"]["b"],
            object["data"]["a"]
        );
    }

    #[test]
    fn so_many_operations_are_refused() {
        let test = json!({ "op": "test", "path": "/a", "value": 1 });
        let many = vec![test; PatchError::MAX_OPERATIONS + 1];
        assert_eq!(
            json_patch(json!({ "a": 1 }), Value::from(many)),
            Err(PatchError::TooManyOperations { count: 10_001 })
        );
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
