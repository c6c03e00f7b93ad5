//! Random histories, and playing one on a store.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use proptest::prelude::*;

use crate::store::{Entry, Event, Expect, Range, Revision, Store, StoreError, Watched};

/// Keys that nest, and that are prefixes of each other as text.
const KEYS: &[&str] = &["a/x", "a/xy", "a/y", "b/x", "b/x/y", "bb"];
const PREFIXES: &[&str] = &["", "a/", "a/x", "b/", "none/"];

/// Revisions are counted back from the present (negative: from the future), so that any history makes sense.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Put {
        key: usize,
        value: u8,
        expect: Wanted,
    },
    Delete {
        key: usize,
        expect: Wanted,
    },
    Get {
        key: usize,
    },
    Range {
        prefix: usize,
        after: Option<usize>,
        limit: usize,
        ago: Option<i64>,
    },
    Watch {
        prefix: usize,
        ago: i64,
    },
    Compact {
        ago: i64,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Absent,
    /// Whatever the key's revision is; 0 if it is absent.
    Current,
    Stale,
}

/// What a store said, with revisions counted from where the history began.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Written(i64),
    Got(Option<Seen>, i64),
    Listed(Vec<Seen>, u64, i64),
    /// A watch began, and has this number.
    Watching(usize),
    Compacted,
    /// What all watches had to say when history was cut or over.
    Watched(Vec<Vec<Happened>>),
    Conflict(Option<Seen>),
    Old,
    Future,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    key: String,
    value: Bytes,
    created: i64,
    modified: i64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Happened {
    at: i64,
    now: Option<Seen>,
    before: Option<Seen>,
}

pub(super) fn history() -> impl Strategy<Value = Vec<Operation>> {
    let key = 0..KEYS.len();
    let prefix = 0..PREFIXES.len();
    let wanted = prop_oneof![
        3 => Just(Wanted::Absent),
        5 => Just(Wanted::Current),
        1 => Just(Wanted::Stale),
    ];
    let ago = || prop_oneof![4 => 0..6i64, 1 => -2..0i64, 2 => 0..30i64];
    let operation = prop_oneof![
        10 => (key.clone(), any::<u8>(), wanted.clone())
            .prop_map(|(key, value, expect)| Operation::Put { key, value, expect }),
        4 => (key.clone(), wanted).prop_map(|(key, expect)| Operation::Delete { key, expect }),
        2 => key.clone().prop_map(|key| Operation::Get { key }),
        4 => (prefix.clone(), proptest::option::of(key), 0..4usize, proptest::option::of(ago()))
            .prop_map(|(prefix, after, limit, ago)| Operation::Range { prefix, after, limit, ago }),
        2 => (prefix, ago()).prop_map(|(prefix, ago)| Operation::Watch { prefix, ago }),
        1 => ago().prop_map(|ago| Operation::Compact { ago }),
    ];
    proptest::collection::vec(operation, 1..40)
}

/// A history being played.
struct Player<'a> {
    store: &'a dyn Store,
    base: Revision,
    prefix: &'a str,
    now: Revision,
    watches: Vec<Watch>,
    /// The last write under each of `PREFIXES`.
    last: Vec<Revision>,
}

struct Watch {
    prefix: usize,
    at: Revision,
    stream: BoxStream<'static, Result<Watched, StoreError>>,
}

pub(super) async fn play(
    store: &dyn Store,
    base: Revision,
    prefix: &str,
    operations: &[Operation],
) -> Vec<Answer> {
    let mut player = Player {
        store,
        base,
        prefix,
        now: base,
        watches: Vec::new(),
        last: vec![base; PREFIXES.len()],
    };
    let mut answers = Vec::new();
    for operation in operations {
        answers.push(player.perform(operation).await);
    }
    answers.push(player.drain().await);
    answers
}

impl Player<'_> {
    async fn perform(&mut self, operation: &Operation) -> Answer {
        let result = match operation {
            Operation::Put { key, value, expect } => self.write(*key, Some(*value), expect).await,
            Operation::Delete { key, expect } => self.write(*key, None, expect).await,
            Operation::Get { key } => {
                let got = self.store.get(&self.key(KEYS[*key])).await;
                got.map(|(entry, at)| Answer::Got(entry.map(|e| self.seen(e)), self.relative(at)))
            }
            Operation::Range {
                prefix,
                after,
                limit,
                ago,
            } => {
                let after = after.map(|after| self.key(KEYS[after]));
                let at = ago.map(|ago| self.ago(ago));
                let range = self
                    .store
                    .range(&self.key(PREFIXES[*prefix]), after.as_deref(), *limit, at)
                    .await;
                range.map(|range| self.listed(range))
            }
            Operation::Watch { prefix, ago } => {
                let after = self.ago(*ago);
                let stream = self.store.watch(&self.key(PREFIXES[*prefix]), after).await;
                stream.map(|stream| {
                    self.watches.push(Watch {
                        prefix: *prefix,
                        at: after,
                        stream,
                    });
                    Answer::Watching(self.watches.len())
                })
            }
            Operation::Compact { ago } => {
                let (seen, to) = (self.drain().await, self.ago(*ago));
                let compacted = self.store.compact(to).await;
                // Compaction overtakes a watch in one store and not in another, according to how far it has looked for
                // changes where there were none. Only those that are certain to go on stay.
                if compacted.is_ok() {
                    self.watches.retain(|watch| watch.at >= to);
                }
                compacted.map(|()| match seen {
                    Answer::Watched(seen) if seen.iter().any(|s| !s.is_empty()) => {
                        Answer::Watched(seen)
                    }
                    _ => Answer::Compacted,
                })
            }
        };
        result.unwrap_or_else(|error| match error {
            StoreError::Conflict { current, .. } => Answer::Conflict(current.map(|e| self.seen(e))),
            StoreError::Compacted { .. } => Answer::Old,
            StoreError::Future { .. } => Answer::Future,
            other => panic!("{operation:?}: {other}"),
        })
    }

    async fn write(
        &mut self,
        key: usize,
        value: Option<u8>,
        expect: &Wanted,
    ) -> Result<Answer, StoreError> {
        let name = self.key(KEYS[key]);
        let current = self.store.get(&name).await?.0;
        let modified = current.map_or(Revision(0), |entry| entry.modified);
        let stale = Revision(modified.0.max(2) - 1);
        let written = match (value, expect) {
            (Some(value), Wanted::Absent) => {
                self.store.put(&name, text(value), Expect::Absent).await?
            }
            (Some(value), Wanted::Current) => {
                self.store
                    .put(&name, text(value), Expect::Modified(modified))
                    .await?
            }
            (Some(value), Wanted::Stale) => {
                self.store
                    .put(&name, text(value), Expect::Modified(stale))
                    .await?
            }
            (None, Wanted::Stale) => self.store.delete(&name, stale).await?,
            (None, _) => self.store.delete(&name, modified).await?,
        };
        self.now = written;
        for (prefix, last) in PREFIXES.iter().zip(&mut self.last) {
            if KEYS[key].starts_with(prefix) {
                *last = written;
            }
        }
        Ok(Answer::Written(self.relative(written)))
    }

    /// Reads every watch up to the last change under its prefix.
    async fn drain(&mut self) -> Answer {
        let mut all = Vec::new();
        let mut watches = std::mem::take(&mut self.watches);
        for watch in &mut watches {
            let mut happened = Vec::new();
            while watch.at < self.last[watch.prefix] {
                let next = tokio::time::timeout(Duration::from_secs(10), watch.stream.next()).await;
                match next
                    .expect("a watch is silent")
                    .expect("a watch ended")
                    .expect("a watch failed")
                {
                    Watched::Event(event) => {
                        watch.at = event.revision();
                        happened.push(self.happened(event));
                    }
                    Watched::Progress(at) => {
                        assert!(at >= watch.at, "progress to {at:?} after {:?}", watch.at);
                    }
                }
            }
            all.push(happened);
        }
        self.watches = watches;
        Answer::Watched(all)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn ago(&self, ago: i64) -> Revision {
        // One step before the beginning stands for all that is out of reach.
        Revision(self.now.0.saturating_add_signed(-ago).max(self.base.0 - 1))
    }

    fn relative(&self, revision: Revision) -> i64 {
        i64::try_from(revision.0).unwrap() - i64::try_from(self.base.0).unwrap()
    }

    fn seen(&self, entry: Entry) -> Seen {
        Seen {
            key: entry.key,
            value: entry.value,
            created: self.relative(entry.created),
            modified: self.relative(entry.modified),
        }
    }

    fn listed(&self, range: Range) -> Answer {
        let at = self.relative(range.revision);
        let entries = range.entries.into_iter().map(|e| self.seen(e)).collect();
        Answer::Listed(entries, range.remaining, at)
    }

    fn happened(&self, event: Event) -> Happened {
        let at = self.relative(event.revision());
        let (now, before) = match event {
            Event::Put { entry, previous } => (Some(entry), previous),
            Event::Delete { previous, .. } => (None, Some(previous)),
        };
        Happened {
            at,
            now: now.map(|e| self.seen(e)),
            before: before.map(|e| self.seen(e)),
        }
    }
}

fn text(value: u8) -> Bytes {
    format!("{{\"value\":{value}}}").into()
}
