//! The watch cache: the whole keyspace and its recent changes in memory, fed by one watch of the store. It answers get,
//! list and watch, and keeps each object's bytes as they go on the wire, so that a read or a thousand watchers cost
//! copies, not serialization.

use std::sync::Arc;

use bytes::Bytes;

use super::Revision;

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

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// As new as the store at the time of the call (`resourceVersion` unset).
    Latest,
    /// At least this revision (`resourceVersion=N`).
    NotOlderThan(Revision),
    /// Whatever is in memory (`resourceVersion=0`).
    Any,
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
