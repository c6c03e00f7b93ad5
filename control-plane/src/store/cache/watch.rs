//! One watcher's stream of changes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::state::Live;
use super::{Cache, Change};
use crate::store::Revision;

/// The changes since that revision are no longer all in memory: list again. Clients know it as 410 Gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {} ({})", asked.0, oldest.0)]
pub struct Expired {
    pub asked: Revision,
    pub oldest: Revision,
}

/// A stream of changes in order, each once. It ends when the watcher was too slow or the cache had to start anew.
pub struct Watch {
    cache: Arc<Cache>,
    prefix: String,
    replay: VecDeque<Change>,
    live: Live,
    bookmarks: Option<Interval>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.live.close();
        self.cache.sweep(&self.prefix);
    }
}

impl Watch {
    pub(super) fn new(
        cache: Arc<Cache>,
        prefix: String,
        replay: VecDeque<Change>,
        live: Live,
    ) -> Self {
        Self {
            cache,
            prefix,
            replay,
            live,
            bookmarks: None,
        }
    }

    /// The same stream with a [`Change::Bookmark`] about every `period`, while nothing else is waiting to be sent.
    pub fn with_bookmarks(mut self, period: Duration) -> Self {
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.bookmarks = Some(ticks);
        self
    }

    /// The revision up to which this stream has yielded everything, if nothing is waiting in it.
    pub fn bookmark(&self) -> Option<Revision> {
        // The state's lock orders the two: what happened up to `revision` has been sent when it is read, so an empty queue
        // afterwards has been read to the end. `reached` may lag behind the state, never lead it.
        let revision = self.cache.revision();
        (self.replay.is_empty() && self.live.is_abreast()).then_some(revision)
    }
}

impl Stream for Watch {
    type Item = Change;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Change>> {
        if let Some(change) = self.replay.pop_front() {
            return Poll::Ready(Some(change));
        }
        if let Poll::Ready(next) = self.live.poll_next(cx) {
            return Poll::Ready(next);
        }
        while let Some(ticks) = &mut self.bookmarks {
            if ticks.poll_tick(cx).is_pending() {
                break;
            }
            if let Some(revision) = self.bookmark() {
                return Poll::Ready(Some(Change::Bookmark(revision)));
            }
        }
        Poll::Pending
    }
}
