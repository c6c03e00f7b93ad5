//! PATCH: which kind of patch a body is, and what it makes of an object.

use serde_json::Value;

use super::body;
use super::content::{self, Encoding};
use super::error::ApiError;
use super::verbs::Input;
use crate::resources::Kind;

/// A patch, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

/// Reads the body of a PATCH by its content type.
pub fn patch_of(input: &Input<'_>) -> Result<Patch, ApiError> {
    let content_type = content::content_type(input.headers);
    let parse = || {
        body::parse(&input.body, Encoding::Json).and_then(|v| {
            if v.is_object() {
                Ok(v)
            } else {
                Err(ApiError::bad_request("a patch of this type is an object"))
            }
        })
    };
    match content_type.as_str() {
        "application/json-patch+json" => serde_json::from_slice(&input.body)
            .map(Patch::Json)
            .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}"))),
        "application/merge-patch+json" => parse().map(Patch::Merge),
        "application/strategic-merge-patch+json" => parse().map(Patch::Strategic),
        _ => Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
        )),
    }
}

/// What `patch` makes of an object. `kind` says how lists merge.
pub fn apply(patch: &Patch, kind: &Kind, object: &Value) -> Result<Value, ApiError> {
    let mut object = object.clone();
    match patch {
        Patch::Json(patch) => json_patch::patch(&mut object, patch)
            .map_err(|e| ApiError::bad_request(e.to_string()))?,
        Patch::Merge(patch) => json_patch::merge(&mut object, patch),
        Patch::Strategic(patch) => {
            let _ = kind;
            json_patch::merge(&mut object, patch);
        }
    }
    Ok(object)
}
