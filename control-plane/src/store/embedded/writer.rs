//! The one thread that writes. All writes that wait when it is free share a transaction, and so one flush to disk.

use tokio::sync::{mpsc, oneshot, watch};

use super::database::{Handle, failed};
use super::tables::{COMPACTED, WriteTables};
use crate::store::{Revision, StoreError, Write};

/// How many commits share a transaction at most: it bounds the memory and the wait of the first.
const BATCH: usize = 512;
/// How many records of history one transaction forgets: compaction must not hold up writers.
const FORGET: usize = 1_000;

pub(super) enum Command {
    Commit(Commit),
    Compact {
        to: Revision,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

pub(super) struct Commit {
    pub(super) writes: Vec<Write>,
    pub(super) reply: oneshot::Sender<Result<Revision, StoreError>>,
}

/// Runs until every sender is gone.
pub(super) fn run(
    handle: &Handle,
    mut commands: mpsc::Receiver<Command>,
    newest: &watch::Sender<Revision>,
) {
    let mut queue = Vec::with_capacity(BATCH);
    // History left to forget: done a piece at a time, between batches.
    let mut forget: Option<Revision> = None;
    loop {
        if forget.is_none() {
            match commands.blocking_recv() {
                Some(command) => queue.push(command),
                None => return,
            }
        } else if commands.is_closed() && commands.is_empty() {
            // The next compaction takes what is left.
            return;
        }
        while queue.len() < BATCH
            && let Ok(command) = commands.try_recv()
        {
            queue.push(command);
        }
        let mut commits = Vec::with_capacity(queue.len());
        for command in queue.drain(..) {
            match command {
                Command::Commit(commit) => commits.push(commit),
                Command::Compact { to, reply } => {
                    let done = handle.recovering(|| compact(handle, to));
                    if matches!(done, Ok(Ok(()))) {
                        forget = forget.max(Some(to));
                    }
                    let _ = reply.send(done.unwrap_or_else(|error| Err(failed(&error))));
                }
            }
        }
        if !commits.is_empty() {
            perform(handle, commits, newest);
        }
        if let Some(to) = forget {
            match handle.recovering(|| forget_some(handle, to)) {
                Ok(false) => {}
                Ok(true) => forget = None,
                Err(error) => {
                    // Harmless: the records are out of readers' reach, and the next compaction takes them.
                    tracing::warn!(%error, "old history stays on disk for now");
                    forget = None;
                }
            }
        }
    }
}

fn perform(handle: &Handle, commits: Vec<Commit>, newest: &watch::Sender<Revision>) {
    let result = handle.recovering(|| {
        let transaction = handle.begin_write()?;
        let mut results = Vec::with_capacity(commits.len());
        let mut newest;
        {
            let mut tables = WriteTables::open(&transaction)?;
            newest = tables.revision()?;
            for commit in &commits {
                let first = Revision(newest.0 + 1);
                let written = tables.commit(&commit.writes, first)?;
                if written.is_ok() {
                    newest.0 += commit.writes.len() as u64;
                }
                results.push(written.map(|()| first));
            }
        }
        if results.iter().any(Result::is_ok) {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        Ok((results, newest))
    });
    match result {
        Ok((results, revision)) => {
            announce(newest, revision);
            for (commit, result) in commits.into_iter().zip(results) {
                // The writer may have given up waiting.
                let _ = commit.reply.send(result);
            }
        }
        Err(error) => {
            // The outcome is unknown: what the file says now is what holds.
            if let Ok(revision) = handle.read().and_then(|tables| tables.revision()) {
                announce(newest, revision);
            }
            for commit in commits {
                let _ = commit.reply.send(Err(failed(&error)));
            }
        }
    }
}

fn announce(newest: &watch::Sender<Revision>, revision: Revision) {
    newest.send_if_modified(|old| std::mem::replace(old, revision) != revision);
}

/// Moves the mark, after which no reader sees what is older. Forgetting it follows.
fn compact(handle: &Handle, to: Revision) -> Result<Result<(), StoreError>, redb::Error> {
    let transaction = handle.begin_write()?;
    {
        let mut tables = WriteTables::open(&transaction)?;
        if let Err(refused) = tables.check(to)? {
            return Ok(Err(refused));
        }
        tables.meta.insert(COMPACTED, to.0)?;
    }
    transaction.commit()?;
    Ok(Ok(()))
}

fn forget_some(handle: &Handle, to: Revision) -> Result<bool, redb::Error> {
    let transaction = handle.begin_write()?;
    let done = WriteTables::open(&transaction)?.forget(to, FORGET)?;
    transaction.commit()?;
    Ok(done)
}
