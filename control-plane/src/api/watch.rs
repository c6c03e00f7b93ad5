//! Watch: every change from a revision on, as one line of JSON each.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::StatusCode;
use rand::Rng;
use serde_json::Value;
use tokio::time::Instant;

use super::error::ApiError;
use super::list::Selection;
use super::present::{self, Presenter};
use super::registry::Registry;
use super::stored;
use crate::store::Revision;
use crate::store::cache::{Change, Freshness, Watch};

/// How often a quiet watch is told how far it has come.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client does not say; up to twice that, so that not all end at once.
const DEFAULT_SECONDS: u64 = 1800;

/// What a watch sends next.
enum Line {
    Event(&'static str, Bytes),
    Bookmark { revision: u64, initial_end: bool },
    Error(ApiError),
}

/// Starts a watch.
pub async fn watch(
    registry: &Registry,
    selection: Selection,
    presenter: Presenter,
) -> Result<Response, ApiError> {
    let options = &selection.options;
    let seconds = options
        .timeout_seconds
        .filter(|s| *s > 0)
        .unwrap_or_else(|| DEFAULT_SECONDS + rand::rng().random_range(0..DEFAULT_SECONDS));
    let deadline = Instant::now() + Duration::from_secs(seconds.min(10 * DEFAULT_SECONDS));
    let lines = match lines(registry, selection).await? {
        Ok(lines) => lines.left_stream(),
        Err(expired) => stream::iter([Line::Error(expired)]).right_stream(),
    };
    let mut first = true;
    let framed = lines
        .take_until(tokio::time::sleep_until(deadline))
        .map(move |line| {
            let bytes = match line {
                Line::Event(name, json) => {
                    let framed = presenter.event(name, &json, first);
                    first = false;
                    framed.unwrap_or_else(|e| present::error_event(&e))
                }
                Line::Bookmark {
                    revision,
                    initial_end,
                } => presenter.bookmark(revision, initial_end),
                Line::Error(error) => present::error_event(&error),
            };
            Ok::<_, std::convert::Infallible>(bytes)
        });
    Ok(present::json_response(
        StatusCode::OK,
        Body::from_stream(framed),
    ))
}

/// The present state, where it is asked for, and all changes after it. The inner error is told as an event.
async fn lines(
    registry: &Registry,
    selection: Selection,
) -> Result<Result<impl Stream<Item = Line> + Send + use<>, ApiError>, ApiError> {
    let options = &selection.options;
    let prefix = selection.prefix();
    let mut initial = VecDeque::new();
    let after = match (options.send_initial_events, options.resource_version) {
        (None | Some(false), Some(version)) if version > 0 => Revision(version),
        // Unset and 0 mean: from the present state on, and tell me what that is, unless I say that I know.
        (_, version) => present_state(registry, &selection, version, &mut initial).await?,
    };
    if options.send_initial_events == Some(false) {
        initial.clear();
    }
    let changes = match registry.cache.watch(&prefix, Some(after)) {
        Ok(changes) => changes,
        Err(expired) => return Ok(Err(ApiError::expired(expired.to_string()))),
    };
    let changes: Watch = if options.allow_bookmarks {
        changes.with_bookmarks(BOOKMARK_PERIOD)
    } else {
        changes
    };
    let changes = changes.filter_map(move |change| {
        let line = line(&selection, change);
        async move { line }
    });
    Ok(Ok(stream::iter(initial).chain(changes)))
}

async fn present_state(
    registry: &Registry,
    selection: &Selection,
    version: Option<u64>,
    initial: &mut VecDeque<Line>,
) -> Result<Revision, ApiError> {
    let freshness = match version {
        None => Freshness::Latest,
        Some(0) => Freshness::Any,
        Some(revision) => Freshness::NotOlderThan(Revision(revision)),
    };
    let listing = registry
        .cache
        .list(&selection.prefix(), freshness)
        .await
        .map_err(stored::read_error)?;
    let matching = listing
        .objects
        .iter()
        .filter(|object| selection.matches(object));
    initial.extend(matching.map(|object| Line::Event("ADDED", object.json.clone())));
    if selection.options.send_initial_events == Some(true) && selection.options.allow_bookmarks {
        initial.push_back(Line::Bookmark {
            revision: listing.revision.0,
            initial_end: true,
        });
    }
    Ok(listing.revision)
}

/// What a change means to one who sees only what the selection lets through.
fn line(selection: &Selection, change: Change) -> Option<Line> {
    match change {
        Change::Put { object, previous } => {
            let before = previous.filter(|p| selection.matches(p));
            match (before, selection.matches(&object)) {
                (None, true) => Some(Line::Event("ADDED", object.json.clone())),
                (Some(_), true) => Some(Line::Event("MODIFIED", object.json.clone())),
                // It left the selection: to this watcher its last known state is gone.
                (Some(before), false) => Some(Line::Event(
                    "DELETED",
                    at_revision(&before.json, object.revision),
                )),
                (None, false) => None,
            }
        }
        Change::Delete { object, previous } => selection
            .matches(&previous)
            .then(|| Line::Event("DELETED", object.json.clone())),
        Change::Bookmark(revision) => Some(Line::Bookmark {
            revision: revision.0,
            initial_end: false,
        }),
    }
}

fn at_revision(json: &Bytes, revision: Revision) -> Bytes {
    match serde_json::from_slice::<Value>(json) {
        Ok(mut object) => {
            stored::set_version(&mut object, revision);
            Bytes::from(object.to_string())
        }
        // The cache wrote it, so it is JSON; were it not, the client would see the old revision.
        Err(_) => json.clone(),
    }
}
