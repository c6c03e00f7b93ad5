//! The kinds: one file each, with its names, columns, defaults, validation and strategy as data and pure functions.

use serde_json::Value;

/// One thing wrong with an object, worded as upstream words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.ports[0].port`
    pub path: String,
    pub reason: FieldErrorReason,
    /// The offending value, where it helps the reader.
    pub value: Option<Value>,
    pub detail: String,
}

/// The `reason` of a `StatusCause`, as in upstream's `field.ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorReason {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
}

/// A printer column of `kubectl get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date` …
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown; 1 only with `-o wide`.
    pub priority: i32,
}

/// A subresource that a kind serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Binding,
    Log,
    Approval,
}

/// A kind of object, erased from its Rust type. A kind's file writes typed functions over its k8s-openapi struct;
/// this is what the generic registry works with.
///
/// Functions take and give `serde_json::Value`s and do no I/O.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    /// The cells of a row, in the order of `columns`. `now` is seconds since the Unix epoch.
    pub row: fn(object: &Value, now: i64) -> Vec<Value>,
    /// Checks the types of all fields and drops what the kind does not have; gives the paths of what it dropped.
    pub decode: fn(Value) -> Result<(Value, Vec<String>), DecodeError>,
    pub default: fn(&mut Value),
    /// All that is wrong with `new`, given what was there.
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<FieldError>,
    /// What a client may not set at creation is reset, what the server sets is set.
    pub prepare_create: fn(&mut Value),
    /// Carries over what an update through this path may not change (`status`, …); says through `generation` if spec changed.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    /// The same for an update through `/status`.
    pub prepare_status: fn(new: &mut Value, old: &Value),
    /// What field selectors can ask, beyond `metadata.name` and `metadata.namespace`.
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
}

/// A value that is not of the kind's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct DecodeError {
    pub path: String,
    pub message: String,
}
