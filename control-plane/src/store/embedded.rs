//! The store in one file of this machine. Crash-safe: an acknowledged write has been flushed to disk.
//!
//! Watches read the log from the file, so a watcher costs no memory, cannot lose an event, and is only refused when
//! compaction overtakes it.

mod database;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{mpsc, oneshot, watch};

pub use database::OpenError;
use database::{Handle, failed};
use writer::{Command, Commit};

use super::{Entry, Range, Revision, Store, StoreError, Watched, Write};

/// How many writes may wait before further ones are held back.
const QUEUE: usize = 4_096;
/// How many log records a watch reads at once.
const REPLAY: usize = 256;

/// The embedded store.
pub struct Embedded {
    handle: Arc<Handle>,
    /// None only while dropping.
    commands: Option<mpsc::Sender<Command>>,
    newest: watch::Receiver<Revision>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store at `path`, a file that is made if there is none.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let handle = Arc::new(Handle::open(path)?);
        let current = handle
            .read()
            .and_then(|tables| tables.revision())
            .map_err(|error| OpenError::Corrupt {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (sender, newest) = watch::channel(current);
        let thread = {
            let handle = handle.clone();
            std::thread::Builder::new()
                .name("store-writer".to_owned())
                .spawn(move || writer::run(&handle, queue, &sender))
        };
        Ok(Self {
            handle,
            commands: Some(commands),
            newest,
            writer: Some(thread.map_err(|source| OpenError::Io {
                path: path.to_owned(),
                source,
            })?),
        })
    }

    async fn send<T>(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let commands = self.commands.as_ref().ok_or_else(shutting_down)?;
        commands.send(command).await.map_err(|_| shutting_down())?;
        answer.await.map_err(|_| shutting_down())?
    }

    /// Waits until [`Store::revision`] says `revision` too. A reader may see a commit a moment earlier, and no later
    /// answer may be older than an earlier one.
    async fn announced(&self, revision: Revision) -> Result<(), StoreError> {
        let mut newest = self.newest.clone();
        let reached = newest.wait_for(|newest| *newest >= revision).await;
        reached.map(drop).map_err(|_| shutting_down())
    }
}

fn shutting_down() -> StoreError {
    StoreError::Unavailable("the store is shutting down".to_owned())
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.commands = None;
        // The file's lock is free when this returns.
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError> {
        let read = || {
            let tables = self.handle.read()?;
            Ok((tables.get(key)?, tables.revision()?))
        };
        let (entry, revision) = read().map_err(|e| failed(&e))?;
        self.announced(revision).await?;
        Ok((entry, revision))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Range, StoreError> {
        let handle = self.handle.clone();
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let read = move || {
            let tables = handle.read()?;
            let at = match at {
                Some(at) => match tables.check(at)? {
                    Ok(()) => at,
                    Err(refused) => return Ok(Err(refused)),
                },
                None => tables.revision()?,
            };
            Ok(Ok(tables.range(&prefix, after.as_deref(), limit, at)?))
        };
        // A range may be the whole file.
        let range = tokio::task::spawn_blocking(read)
            .await
            .map_err(|stopped| StoreError::Unavailable(stopped.to_string()))?
            .map_err(|e| failed(&e))??;
        self.announced(range.revision).await?;
        Ok(range)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        let (reply, answer) = oneshot::channel();
        let commit = Commit { writes, reply };
        self.send(Command::Commit(commit), answer).await
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Watched, StoreError>>, StoreError> {
        let replay = Replay {
            handle: self.handle.clone(),
            newest: self.newest.clone(),
            prefix: prefix.to_owned(),
            at: after,
        };
        replay.check()?;
        let batches = stream::try_unfold(replay, async |mut replay| {
            let batch = replay.next().await?;
            Ok(batch.map(|batch| (stream::iter(batch.into_iter().map(Ok)), replay)))
        });
        Ok(futures::TryStreamExt::try_flatten(batches).boxed())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(*self.newest.borrow())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let to = revision;
        self.send(Command::Compact { to, reply }, answer).await
    }
}

/// A watch: where it is in the log, and what wakes it.
struct Replay {
    handle: Arc<Handle>,
    newest: watch::Receiver<Revision>,
    prefix: String,
    at: Revision,
}

impl Replay {
    fn check(&self) -> Result<(), StoreError> {
        self.handle
            .read()
            .and_then(|tables| tables.check(self.at))
            .map_err(|e| failed(&e))?
    }

    /// What came after `self.at`, as soon as there is anything. None when the store is closed.
    async fn next(&mut self) -> Result<Option<Vec<Watched>>, StoreError> {
        if self
            .newest
            .wait_for(|newest| *newest > self.at)
            .await
            .is_err()
        {
            return Ok(None);
        }
        let read = || {
            let tables = self.handle.read()?;
            if let Err(refused) = tables.check(self.at)? {
                return Ok(Err(refused));
            }
            Ok(Ok(tables.changes(&self.prefix, self.at, REPLAY)?))
        };
        let (events, seen) = read().map_err(|e| failed(&e))??;
        let proven = !matches!(events.last(), Some(event) if event.revision() == seen);
        self.at = seen;
        let mut batch: Vec<Watched> = events.into_iter().map(Watched::Event).collect();
        if proven {
            batch.push(Watched::Progress(seen));
        }
        Ok(Some(batch))
    }
}
