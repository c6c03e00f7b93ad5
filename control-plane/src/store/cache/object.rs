//! Objects and changes as the cache holds them.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::store::{Entry, Revision};

/// From an object's key and JSON, what field selectors can ask of it, by path: `metadata.name`, `spec.nodeName` …
pub type Index = fn(&str, &Value) -> Vec<(&'static str, String)>;

/// An object as the cache holds it.
#[derive(Debug)]
pub struct Object {
    pub key: String,
    pub created: Revision,
    pub revision: Revision,
    /// JSON with `metadata.resourceVersion` in it.
    pub json: Bytes,
    /// `metadata.labels`, for label selectors.
    pub labels: Vec<(String, String)>,
    /// What field selectors can ask of this kind, by path: `metadata.name`, `spec.nodeName` …
    pub fields: Vec<(&'static str, String)>,
}

/// One change, shared by all who watch.
#[derive(Clone, Debug)]
pub enum Change {
    /// `previous` is None for a creation: a selector may turn a modification into ADDED or DELETED.
    Put {
        object: Arc<Object>,
        previous: Option<Arc<Object>>,
    },
    /// `object` is the last state, with the delete's revision as its `resourceVersion`.
    Delete {
        object: Arc<Object>,
        previous: Arc<Object>,
    },
    /// Nothing older than this is to come.
    Bookmark(Revision),
}

impl Change {
    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put { object, .. } | Change::Delete { object, .. } => object.revision,
            Change::Bookmark(revision) => *revision,
        }
    }

    /// The object as the change left it, or as it was when it was deleted.
    pub fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Change::Put { object, .. } | Change::Delete { object, .. } => Some(object),
            Change::Bookmark(_) => None,
        }
    }
}

impl Object {
    /// The object that `entry` holds. The error says what is wrong with the JSON.
    pub(super) fn from_entry(entry: Entry, index: Index) -> Result<Self, serde_json::Error> {
        let mut value: Value = serde_json::from_slice(&entry.value)?;
        let labels = value
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .map(|labels| {
                let texts = labels.iter().filter_map(|(k, v)| Some((k, v.as_str()?)));
                texts.map(|(k, v)| (k.clone(), v.to_owned())).collect()
            })
            .unwrap_or_default();
        let fields = index(&entry.key, &value);
        set_revision(&mut value, entry.modified);
        Ok(Self {
            created: entry.created,
            revision: entry.modified,
            json: serde_json::to_vec(&value)?.into(),
            key: entry.key,
            labels,
            fields,
        })
    }

    /// This object as a deletion at `revision` reports it.
    pub(super) fn deleted(&self, revision: Revision) -> Self {
        // The cache wrote this JSON itself; were it unreadable, the old revision would still be a true one.
        let json = serde_json::from_slice(&self.json).and_then(|mut value: Value| {
            set_revision(&mut value, revision);
            serde_json::to_vec(&value)
        });
        Self {
            key: self.key.clone(),
            created: self.created,
            revision,
            json: json.map_or_else(|_| self.json.clone(), Bytes::from),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }
}

fn set_revision(object: &mut Value, revision: Revision) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(
            "resourceVersion".to_owned(),
            Value::String(revision.0.to_string()),
        );
    }
}
