//! PATCH: which kind of patch a body is, and what it makes of an object.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::body;
use super::content::{self, Encoding};
use super::error::ApiError;
use super::patch::{self, PatchError, PatchKind, schema};
use crate::resources::Kind;

/// A patch, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    kind: PatchKind,
    value: Value,
}

/// Reads the body of a PATCH by its content type.
pub fn patch_of(headers: &HeaderMap, body: &Bytes) -> Result<Patch, ApiError> {
    let content_type = content::content_type(headers);
    let kind = PatchKind::of_content_type(&content_type).ok_or_else(|| {
        ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            PatchKind::CONTENT_TYPES.join(", ")
        ))
    })?;
    let value = body::parse(body, Encoding::Json)?;
    Ok(Patch { kind, value })
}

/// What `patch` makes of an object. `kind` says how lists merge; None where they are replaced.
pub fn apply(patch: &Patch, kind: Option<&Kind>, object: &Value) -> Result<Value, ApiError> {
    let schema = kind.and_then(schema_of);
    patch::apply(patch.kind, object, &patch.value, schema).map_err(|error| {
        let mut refusal = ApiError::bad_request(error.to_string());
        if error.is_unprocessable() {
            refusal.code = StatusCode::UNPROCESSABLE_ENTITY;
            refusal.reason = "Invalid";
        } else if matches!(error, PatchError::TooManyOperations { .. }) {
            refusal.code = StatusCode::PAYLOAD_TOO_LARGE;
            refusal.reason = "RequestEntityTooLarge";
        }
        refusal
    })
}

/// The kind's OpenAPI definition is named after the first label of its group.
pub(super) fn schema_of(kind: &Kind) -> Option<&'static schema::Type> {
    let package = match kind.group.split('.').next() {
        None | Some("") => "core",
        Some(package) => package,
    };
    schema::of(&format!(
        "io.k8s.api.{package}.{}.{}",
        kind.version, kind.kind
    ))
}
