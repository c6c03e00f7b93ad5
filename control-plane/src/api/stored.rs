//! How an object is stored: under which key, in which version, as which bytes; and what a refusal of store or cache says
//! to a client. No I/O.

use bytes::Bytes;
use serde_json::{Value, json};

use super::error::ApiError;
use super::meta;
use crate::resources::{self, DecodeError, Kind};
use crate::store::cache::ReadError;
use crate::store::{Entry, Revision, StoreError};

/// An object is at most this large, in bytes of JSON: what etcd takes, 1.5 MiB, less what its request holds besides.
const STORED: usize = 1536 * 1024 - 4096;

/// Where `kind` is stored: mostly as itself.
pub fn stored_as(kind: &'static Kind) -> &'static Kind {
    kind.conversion
        .and_then(|c| resources::find(c.group, c.version, kind.plural))
        .unwrap_or(kind)
}

/// The key prefix of a kind's objects, in one namespace or (empty) everywhere.
pub fn prefix(kind: &'static Kind, namespace: &str) -> String {
    let kind = stored_as(kind);
    let mut prefix = String::from("/registry/");
    for segment in [kind.group, kind.plural, namespace] {
        if !segment.is_empty() {
            prefix.push_str(segment);
            prefix.push('/');
        }
    }
    prefix
}

pub fn key(kind: &'static Kind, namespace: &str, name: &str) -> String {
    prefix(kind, namespace) + name
}

/// A stored entry as an object of the version that the client speaks.
pub fn object_of(kind: &Kind, entry: &Entry) -> Result<Value, ApiError> {
    let mut object: Value = serde_json::from_slice(&entry.value)
        .map_err(|e| ApiError::internal(format!("{} holds no JSON object: {e}", entry.key)))?;
    set_version(&mut object, entry.modified);
    presented(kind, object)
}

/// From the stored version to the served one.
pub fn presented(kind: &Kind, object: Value) -> Result<Value, ApiError> {
    match kind.conversion {
        Some(conversion) => (conversion.from_stored)(&object).map_err(unconvertible),
        None => Ok(object),
    }
}

/// What is stored of an object: JSON in the stored version, without `resourceVersion`.
pub(super) fn bytes_of(kind: &Kind, object: &Value) -> Result<Bytes, ApiError> {
    let mut object = match kind.conversion {
        Some(conversion) => (conversion.to_stored)(object).map_err(unconvertible)?,
        None => object.clone(),
    };
    meta::of(&mut object).shift_remove("resourceVersion");
    serde_json::to_vec(&object)
        .map(Bytes::from)
        .map_err(ApiError::internal)
}

/// The same for an object that must fit into the store, whichever that is.
pub(super) fn storable(kind: &Kind, object: &Value) -> Result<Bytes, ApiError> {
    let bytes = bytes_of(kind, object)?;
    if bytes.len() > STORED {
        return Err(ApiError::too_large(STORED));
    }
    Ok(bytes)
}

fn unconvertible(error: DecodeError) -> ApiError {
    ApiError::internal(format!("the object cannot be converted: {error}"))
}

pub fn set_version(object: &mut Value, revision: Revision) {
    meta::of(object).insert("resourceVersion".to_owned(), json!(revision.0.to_string()));
}

/// A store's refusal that says nothing about the object itself.
pub fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { asked, oldest } => ApiError::expired(format!(
            "too old resource version: {} ({})",
            asked.0, oldest.0
        )),
        StoreError::Future { asked, current } => ApiError::future_version(asked.0, current.0),
        StoreError::Unavailable(why) => {
            ApiError::unavailable(format!("the store is unavailable: {why}"))
        }
        other => {
            tracing::error!(error = %other, "the store failed");
            ApiError::internal(other)
        }
    }
}

/// A refusal of the cache.
pub fn read_error(error: ReadError) -> ApiError {
    match error {
        ReadError::Behind { asked, current } => ApiError::future_version(asked.0, current.0),
        ReadError::Store(error) => store_error(error),
    }
}
