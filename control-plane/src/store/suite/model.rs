//! A store as a list of everything that ever happened.

use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::store::{Entry, Event, Expect, Range, Revision, Store, StoreError, Watched, Write};

#[derive(Default)]
struct Log {
    /// What revision 2, 3 … did: the key, and its value or none.
    writes: Vec<(String, Option<Bytes>)>,
    compacted: u64,
}

#[derive(Clone, Default)]
pub(super) struct Model(Arc<Mutex<Log>>);

impl Log {
    fn current(&self) -> Revision {
        Revision(self.writes.len() as u64 + 1)
    }

    fn until(
        &self,
        at: Revision,
    ) -> impl DoubleEndedIterator<Item = (Revision, &(String, Option<Bytes>))> {
        let writes = self.writes.iter().enumerate();
        writes
            .map(|(i, write)| (Revision(i as u64 + 2), write))
            .take(usize::try_from(at.0).unwrap().saturating_sub(1))
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn get(&self, key: &str, at: Revision) -> Option<Entry> {
        let mut found: Option<Entry> = None;
        for (revision, (_, value)) in self.until(at).filter(|(_, (k, _))| k == key) {
            found = value.as_ref().map(|value| Entry {
                key: key.to_owned(),
                value: value.clone(),
                created: found.as_ref().map_or(revision, |entry| entry.created),
                modified: revision,
            });
        }
        found
    }

    fn check(&self, at: Revision) -> Result<(), StoreError> {
        let oldest = Revision(self.compacted.max(1));
        let current = self.current();
        match at {
            _ if at < oldest => Err(StoreError::Compacted { asked: at, oldest }),
            _ if at > current => Err(StoreError::Future { asked: at, current }),
            _ => Ok(()),
        }
    }

    fn write(
        &mut self,
        key: &str,
        value: Option<Bytes>,
        expect: Expect,
    ) -> Result<Revision, StoreError> {
        let current = self.get(key, self.current());
        let as_expected = match expect {
            Expect::Absent => current.is_none(),
            Expect::Modified(revision) => current
                .as_ref()
                .is_some_and(|entry| entry.modified == revision),
        };
        if !as_expected {
            let key = key.to_owned();
            return Err(StoreError::Conflict { key, current });
        }
        self.writes.push((key.to_owned(), value));
        Ok(self.current())
    }

    fn event(&self, revision: Revision) -> Event {
        let key = &self.writes[usize::try_from(revision.0).unwrap() - 2].0;
        let previous = self.get(key, Revision(revision.0 - 1));
        match (self.get(key, revision), previous) {
            (Some(entry), previous) => Event::Put { entry, previous },
            (None, previous) => Event::Delete {
                previous: previous.unwrap(),
                revision,
            },
        }
    }
}

#[async_trait::async_trait]
impl Store for Model {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError> {
        let log = self.0.lock().unwrap();
        Ok((log.get(key, log.current()), log.current()))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Range, StoreError> {
        let log = self.0.lock().unwrap();
        let at = at.unwrap_or(log.current());
        log.check(at)?;
        let mut keys: Vec<&String> = log.until(at).map(|(_, (key, _))| key).collect();
        keys.sort();
        keys.dedup();
        let wanted = |key: &&&String| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
        };
        let all: Vec<Entry> = keys
            .iter()
            .filter(wanted)
            .filter_map(|key| log.get(key, at))
            .collect();
        let taken = if limit == 0 {
            all.len()
        } else {
            limit.min(all.len())
        };
        Ok(Range {
            remaining: (all.len() - taken) as u64,
            entries: all[..taken].to_vec(),
            revision: at,
        })
    }

    /// One write: of several, revisions are the store's own, and `commit` has tests that do not compare them.
    async fn commit(&self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        let [write] = writes.try_into().unwrap();
        let Write { key, value, expect } = write;
        self.0.lock().unwrap().write(&key, value, expect)
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Watched, StoreError>>, StoreError> {
        self.0.lock().unwrap().check(after)?;
        let events = stream::unfold((self.clone(), after), async |(model, at)| {
            let next = Revision(at.0 + 1);
            // Nobody wakes this one; the player asks only for what has happened.
            let event = std::future::poll_fn(|_| {
                let log = model.0.lock().unwrap();
                match next <= log.current() {
                    true => Poll::Ready(log.event(next)),
                    false => Poll::Pending,
                }
            });
            let event = event.await;
            Some((Ok(Watched::Event(event)), (model, next)))
        });
        let prefix = prefix.to_owned();
        let matches = move |watched: &Result<Watched, StoreError>| match watched {
            Ok(Watched::Event(event)) => event.key().starts_with(&prefix),
            _ => true,
        };
        Ok(events
            .filter(move |watched| std::future::ready(matches(watched)))
            .boxed())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.0.lock().unwrap().current())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut log = self.0.lock().unwrap();
        log.check(revision)?;
        log.compacted = revision.0;
        Ok(())
    }
}
