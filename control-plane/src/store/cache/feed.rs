//! Filling the cache: one picture of the store, then its watch, again and again if that breaks.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;

use super::{Cache, Index, Object, PAST, PREFIX, PRIVATE};
use crate::store::{Entry, Event, Revision, Store, StoreError, Watched};

/// How many entries are asked for at a time: it bounds the memory that loading takes.
const PAGE: usize = 1_000;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Everything, as of [`PAST`] revisions before `present`, or of fewer where the store has forgotten that.
pub(super) async fn load_past(
    store: &dyn Store,
    index: Index,
    present: Revision,
) -> Result<(Vec<Object>, Revision), StoreError> {
    let mut past = PAST;
    while past > 0 {
        let at = Revision(present.0.saturating_sub(past).max(1));
        match load(store, index, Some(at)).await {
            Err(StoreError::Compacted { .. }) => past /= 4,
            outcome => return outcome,
        }
    }
    load(store, index, None).await
}

/// Everything, as of one revision, which is the present if none is said.
async fn load(
    store: &dyn Store,
    index: Index,
    mut at: Option<Revision>,
) -> Result<(Vec<Object>, Revision), StoreError> {
    let mut objects = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.range(PREFIX, after.as_deref(), PAGE, at).await?;
        after = page.entries.last().map(|entry| entry.key.clone());
        at = Some(page.revision);
        objects.extend(
            page.entries
                .into_iter()
                .filter_map(|entry| object(entry, index)),
        );
        if page.remaining == 0 {
            return Ok((objects, page.revision));
        }
    }
}

/// None for what is no object; and, with an error in the log, for what is no JSON: it was not written by this control plane.
fn object(entry: Entry, index: Index) -> Option<Object> {
    if entry.key.starts_with(PRIVATE) {
        return None;
    }
    let key = entry.key.clone();
    Object::from_entry(entry, index)
        .inspect_err(|error| tracing::error!(key, %error, "the store holds what is no JSON; it is not served"))
        .ok()
}

/// Keeps the cache abreast of the store until the cache is dropped.
pub(super) async fn follow(cache: Weak<Cache>, mut at: Revision) {
    let mut retry = FIRST_RETRY;
    while let Some((store, index)) = cache.upgrade().map(|c| (c.store.clone(), c.index)) {
        let before = at;
        let error = match watch(&cache, &*store, index, &mut at).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        if at > before {
            retry = FIRST_RETRY;
        }
        tracing::warn!(%error, revision = at.0, "the watch of the store broke; trying again");
        let history_is_gone = matches!(
            error,
            StoreError::Compacted { .. } | StoreError::Future { .. }
        );
        if history_is_gone && let Ok((objects, revision)) = load(&*store, index, None).await {
            at = revision;
            if let Some(cache) = cache.upgrade() {
                cache.update(|state| state.reset(objects, revision));
            }
            continue;
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// Applies the store's changes after `at`, moving it. Ok when the cache is gone.
async fn watch(
    cache: &Weak<Cache>,
    store: &dyn Store,
    index: Index,
    at: &mut Revision,
) -> Result<(), StoreError> {
    let Some(stalled) = cache.upgrade().map(|cache| cache.stalled.clone()) else {
        return Ok(());
    };
    let mut changes = store.watch(PREFIX, *at).await?;
    loop {
        // Cancel-safe: both lose nothing when polled in vain.
        let change = tokio::select! {
            change = changes.next() => change,
            () = stalled.notified() => return Err(StoreError::Unavailable(
                "the watch is behind what the store says".to_owned(),
            )),
        };
        let Some(change) = change.transpose()? else {
            break;
        };
        let Some(cache) = cache.upgrade() else {
            return Ok(());
        };
        *at = apply(&cache, change, index);
    }
    Err(StoreError::Unavailable(
        "the store closed the watch".to_owned(),
    ))
}

fn apply(cache: &Arc<Cache>, change: Watched, index: Index) -> Revision {
    match change {
        Watched::Event(Event::Put { entry, .. }) => {
            let (key, revision) = (entry.key.clone(), entry.modified);
            match object(entry, index) {
                Some(object) => cache.update(|state| state.put(object)),
                None => cache.update(|state| state.delete(&key, revision)),
            }
            revision
        }
        Watched::Event(Event::Delete { previous, revision }) => {
            cache.update(|state| state.delete(&previous.key, revision));
            revision
        }
        Watched::Progress(revision) => {
            cache.update(|state| state.advance(revision));
            revision
        }
    }
}
