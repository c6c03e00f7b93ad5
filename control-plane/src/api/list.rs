//! List: one consistent picture, whole or in pages.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::error::ApiError;
use super::options::{ListOptions, Match, Page};
use super::registry::Registry;
use super::stored;
use crate::resources::Kind;
use crate::store::cache::{Freshness, Object};
use crate::store::{Entry, Revision, StoreError};

/// The most entries that are read from the store at once for a page, unless the page is larger: upstream's number.
const WIDEST: usize = 10_000;

/// What list and watch select: by kind, place, labels and fields.
#[derive(Clone)]
pub struct Selection {
    pub kind: &'static Kind,
    /// Empty for all namespaces.
    pub namespace: String,
    pub options: ListOptions,
}

/// What a list says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListMeta {
    pub resource_version: u64,
    /// Empty on the last page.
    pub next: String,
    pub remaining: Option<u64>,
}

impl ListMeta {
    pub fn value(&self) -> Value {
        let mut value = json!({"resourceVersion": self.resource_version.to_string()});
        if !self.next.is_empty() {
            value["continue"] = json!(self.next);
        }
        if let Some(remaining) = self.remaining {
            value["remainingItemCount"] = json!(remaining);
        }
        value
    }
}

/// The items of a list as stored, and what the list says of itself.
pub type Listed = (Vec<Bytes>, ListMeta);

impl Selection {
    /// Refuses field selectors that the kind does not offer.
    pub fn check(&self) -> Result<(), ApiError> {
        let mut known = vec!["metadata.name", "metadata.namespace"];
        known.extend(
            (self.kind.fields)(&json!({"metadata": {}}))
                .into_iter()
                .map(|(path, _)| path),
        );
        self.options
            .fields
            .check(&known)
            .map_err(|e| ApiError::bad_request(e.to_string()))
    }

    pub fn prefix(&self) -> String {
        stored::prefix(self.kind, &self.namespace)
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.options.labels.matches(&object.labels) && self.matches_fields(object)
    }

    fn matches_fields(&self, object: &Object) -> bool {
        if self.options.fields.is_empty() {
            return true;
        }
        if self.kind.conversion.is_none() {
            return self.options.fields.matches(&object.fields);
        }
        // Kept under another version, whose fields have other names.
        serde_json::from_slice(&object.json)
            .map_err(ApiError::internal)
            .and_then(|value| stored::presented(self.kind, value))
            .is_ok_and(|value| self.options.fields.matches(&fields(self.kind, &value)))
    }
}

/// All that field selectors can ask of an object.
pub fn fields(kind: &Kind, object: &Value) -> Vec<(&'static str, String)> {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut all = vec![("metadata.name", text("name"))];
    if kind.namespaced {
        all.push(("metadata.namespace", text("namespace")));
    }
    all.extend((kind.fields)(object));
    all
}

/// The same for a stored object, whose kind is in it: how the cache indexes.
pub fn index(_key: &str, object: &Value) -> Vec<(&'static str, String)> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    crate::resources::kinds()
        .iter()
        .find(|kind| kind.group == group && kind.version == version && object["kind"] == kind.kind)
        .map(|kind| fields(kind, object))
        .unwrap_or_default()
}

/// Lists. Pages after the first, and exact revisions, are read from the store; all else from the cache.
pub async fn list(registry: &Registry, selection: &Selection) -> Result<Listed, ApiError> {
    let options = &selection.options;
    if let Some(page) = &options.page {
        return stored_page(registry, selection, Some(page.revision), Some(&page.after)).await;
    }
    let freshness = match (options.version_match, options.resource_version) {
        (Some(Match::Exact), Some(revision)) => {
            return stored_page(registry, selection, Some(Revision(revision)), None).await;
        }
        (_, None) => Freshness::Latest,
        (_, Some(0)) => Freshness::Any,
        (_, Some(revision)) => Freshness::NotOlderThan(Revision(revision)),
    };
    let listing = registry
        .cache
        .list(&selection.prefix(), freshness)
        .await
        .map_err(stored::read_error)?;
    let mut matching = listing
        .objects
        .into_iter()
        .filter(|object| selection.matches(object));
    let limit = if options.limit == 0 {
        usize::MAX
    } else {
        options.limit
    };
    let taken: Vec<_> = matching.by_ref().take(limit).collect();
    let rest = matching.count();
    let mut meta = ListMeta {
        resource_version: listing.revision.0,
        ..ListMeta::default()
    };
    if rest > 0
        && let Some(last) = taken.last()
    {
        let after = last.key[selection.prefix().len()..].to_owned();
        meta.next = Page {
            revision: listing.revision,
            after,
        }
        .token();
        meta.remaining = counts(options).then(|| u64::try_from(rest).unwrap_or(u64::MAX));
    }
    Ok((
        taken
            .into_iter()
            .map(|object| object.json.clone())
            .collect(),
        meta,
    ))
}

/// How many items remain is only told when nothing is filtered.
fn counts(options: &ListOptions) -> bool {
    options.labels.is_empty() && options.fields.is_empty()
}

/// How many entries are read next when of so many too few matched: what matches nothing must not take as many reads as
/// there are pages.
fn wider(width: usize) -> usize {
    width.saturating_mul(2).clamp(1, WIDEST.max(width))
}

async fn stored_page(
    registry: &Registry,
    selection: &Selection,
    at: Option<Revision>,
    after: Option<&str>,
) -> Result<Listed, ApiError> {
    let (prefix, limit) = (selection.prefix(), selection.options.limit);
    let mut after = after.map(|rest| format!("{prefix}{rest}"));
    let mut items = Vec::new();
    let mut width = limit;
    loop {
        let range = registry
            .store
            .range(&prefix, after.as_deref(), width, at)
            .await
            .map_err(page_error)?;
        let last = range.entries.last().map(|e| e.key.clone());
        let full = range.entries.len();
        let mut meta = ListMeta {
            resource_version: range.revision.0,
            ..ListMeta::default()
        };
        for (at, entry) in range.entries.into_iter().enumerate() {
            let key = entry.key.clone();
            // Most of a page is as it was, and the cache has it read and written down.
            let object = match registry.cache.at(&key, entry.modified) {
                Some(object) => object,
                None => Arc::new(read(selection, entry)?),
            };
            if selection.matches(&object) {
                items.push(object.json.clone());
            }
            let more = range.remaining > 0 || at + 1 < full;
            if limit > 0 && items.len() == limit && more {
                meta.next = Page {
                    revision: range.revision,
                    after: key[prefix.len()..].to_owned(),
                }
                .token();
                meta.remaining = counts(&selection.options).then_some(range.remaining);
                return Ok((items, meta));
            }
        }
        if range.remaining == 0 || last.is_none() {
            return Ok((items, meta));
        }
        after = last;
        width = wider(width);
    }
}

/// What the cache would make of an entry of the store.
fn read(selection: &Selection, entry: Entry) -> Result<Object, ApiError> {
    let mut value: Value = serde_json::from_slice(&entry.value).map_err(ApiError::internal)?;
    stored::set_version(&mut value, entry.modified);
    let labels = value["metadata"]["labels"]
        .as_object()
        .map(|all| {
            all.iter()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect()
        })
        .unwrap_or_default();
    Ok(Object {
        fields: fields(stored::stored_as(selection.kind), &value),
        json: Bytes::from(value.to_string()),
        created: entry.created,
        revision: entry.modified,
        key: entry.key,
        labels,
    })
}

fn page_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { .. } => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
        ),
        other => stored::store_error(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches_little_is_found_in_few_reads() {
        let reads = |limit: usize, all: usize| {
            let widths = std::iter::successors(Some(limit), |width| Some(wider(*width)));
            let mut read = 0;
            let few = widths.take_while(|width| {
                let more = read < all;
                read += width;
                more
            });
            few.count()
        };
        assert_eq!(reads(1, 10_000), 14);
        assert_eq!(reads(500, 100_000), 14);
        assert_eq!(wider(20_000), 20_000, "a page of its own size");
    }
}
