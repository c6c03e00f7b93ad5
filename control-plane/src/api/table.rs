//! Objects as people read them: `Table`, and `PartialObjectMetadata`.

use serde_json::{Map, Value, json};

use super::content::MetaVersion;
use crate::resources::Kind;

/// What a row carries of its object (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: &str) -> Self {
        match text {
            "None" => Include::None,
            "Object" => Include::Object,
            _ => Include::Metadata,
        }
    }
}

/// `columnDefinitions` of a kind.
pub fn columns(kind: &Kind) -> Value {
    let definitions = kind.columns.iter().map(|column| {
        json!({
            "name": column.name,
            "type": column.kind,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        })
    });
    Value::Array(definitions.collect())
}

/// One row. `now` is seconds since the Unix epoch.
pub fn row(kind: &Kind, object: Value, include: Include, version: MetaVersion, now: i64) -> Value {
    let cells = (kind.row)(&object, now);
    let mut row = json!({"cells": cells});
    match include {
        Include::None => row["object"] = Value::Null,
        Include::Metadata => row["object"] = partial(object, version),
        Include::Object => row["object"] = object,
    }
    row
}

/// A table around rows; `columns` is None in a watch after its first event.
pub fn table(
    metadata: Value,
    columns: Option<Value>,
    rows: Vec<Value>,
    version: MetaVersion,
) -> Value {
    let mut table = json!({
        "kind": "Table",
        "apiVersion": version.api_version(),
        "metadata": metadata,
    });
    table["columnDefinitions"] = columns.unwrap_or(Value::Array(Vec::new()));
    table["rows"] = Value::Array(rows);
    table
}

/// The object's metadata alone.
pub fn partial(mut object: Value, version: MetaVersion) -> Value {
    let metadata = match object.get_mut("metadata") {
        Some(metadata) => metadata.take(),
        None => Value::Object(Map::new()),
    };
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": version.api_version(),
        "metadata": metadata,
    })
}
