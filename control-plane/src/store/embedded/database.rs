//! The database file: opening it with errors that a person understands, and coming back after a full disk.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{Database, DatabaseError, ReadableDatabase, StorageError};

use super::tables::{ReadTables, WriteTables};
use crate::store::StoreError;

/// The database's page cache in bytes. The watch cache answers nearly all reads, so little is enough.
const CACHE: usize = 8 << 20;

/// Why the embedded store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{path}: another process has this store open; stop it, or give this one its own --data-dir"
    )]
    Locked { path: PathBuf },
    #[error("{path}: the disk is full; free some space and start again")]
    Full { path: PathBuf },
    #[error(
        "{path}: this is no intact store ({reason}); restore it from a backup, or move it away to start empty"
    )]
    Corrupt { path: PathBuf, reason: String },
    #[error("{path}: cannot open the store: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// An open database that can be reopened in place.
pub(super) struct Handle {
    path: PathBuf,
    /// None while a reopening failed; the next use tries again.
    database: RwLock<Option<Database>>,
}

impl Handle {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            path: path.to_owned(),
            database: RwLock::new(Some(open(path)?)),
        })
    }

    pub(super) fn begin_write(&self) -> Result<redb::WriteTransaction, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        // A plain commit flushes once. redb's quick repair would flush twice, at every write, to spare an open after kill -9
        // the reading of the file.
        Ok(database.begin_write()?)
    }

    pub(super) fn read(&self) -> Result<ReadTables, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        ReadTables::open(&database.begin_read()?)
    }

    /// Performs a write. redb refuses every later one after an I/O error, so after one of a full disk the file is opened
    /// anew: what had been committed is in it, and the next write has its chance. After any other the process ends.
    pub(super) fn recovering<T>(
        &self,
        write: impl Fn() -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let result = write();
        if let Err(error) = &result {
            match remedy(error) {
                Remedy::None => {}
                Remedy::Reopen => {
                    tracing::error!(path = %self.path.display(), %error, "a write failed; opening the store anew");
                    self.reopen();
                }
                Remedy::End => {
                    tracing::error!(
                        path = %self.path.display(), %error,
                        "a write failed, and nobody knows what of it is on the disk; ending: see to the disk and start again"
                    );
                    // No caller can be trusted to stop reading what only the page cache holds.
                    std::process::exit(1);
                }
            }
        }
        result
    }

    fn reopen(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
        match open(&self.path) {
            Ok(fresh) => *database = Some(fresh),
            Err(error) => tracing::error!(%error, "the store stays closed until the next write"),
        }
    }
}

/// What helps after a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    None,
    Reopen,
    /// The kernel drops pages that it could not write, and says so once: what a read of the file gives then need not be on
    /// the disk, and a later flush that succeeds proves nothing.
    End,
}

fn remedy(error: &redb::Error) -> Remedy {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        redb::Error::Io(io) if !matches!(io.kind(), StorageFull | QuotaExceeded) => Remedy::End,
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            Remedy::Reopen
        }
        _ => Remedy::None,
    }
}

/// The error as the store's users see it.
pub(super) fn failed(error: &redb::Error) -> StoreError {
    match error {
        redb::Error::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => {
            StoreError::Failed("the disk is full".to_owned())
        }
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => StoreError::Unavailable(
            "an earlier write failed and the file is being opened anew".to_owned(),
        ),
        other => StoreError::Failed(other.to_string()),
    }
}

fn open(path: &Path) -> Result<Database, OpenError> {
    let path_buf = || path.to_owned();
    let database = redb::Builder::new()
        .set_cache_size(CACHE)
        .create(path)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path: path_buf() },
            DatabaseError::Storage(StorageError::Io(source)) => from_io(path, source),
            other => OpenError::Corrupt {
                path: path_buf(),
                reason: other.to_string(),
            },
        })?;
    ensure_tables(&database).map_err(|error| match error {
        redb::Error::Io(source) => from_io(path, source),
        other => OpenError::Corrupt {
            path: path_buf(),
            reason: other.to_string(),
        },
    })?;
    Ok(database)
}

/// Makes the tables of a new file: readers need them to be there.
fn ensure_tables(database: &Database) -> Result<(), redb::Error> {
    match ReadTables::open(&database.begin_read()?) {
        Err(redb::Error::TableDoesNotExist(_)) => {}
        found => return found.map(drop),
    }
    let transaction = database.begin_write()?;
    WriteTables::open(&transaction)?;
    transaction.commit()?;
    Ok(())
}

fn from_io(path: &Path, source: std::io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        std::io::ErrorKind::StorageFull => OpenError::Full { path },
        // What redb says of a file that is not its own.
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => OpenError::Corrupt {
            path,
            reason: source.to_string(),
        },
        _ => OpenError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_full_disk_lets_the_store_be_opened_anew() {
        let of = |errno| remedy(&redb::Error::Io(io::Error::from_raw_os_error(errno)));
        let (eio, enospc, erofs, edquot) = (5, 28, 30, 122);
        assert_eq!([enospc, edquot].map(of), [Remedy::Reopen; 2]);
        assert_eq!([eio, erofs].map(of), [Remedy::End; 2]);
        assert_eq!(remedy(&redb::Error::DatabaseClosed), Remedy::Reopen);
        assert_eq!(remedy(&redb::Error::InvalidSavepoint), Remedy::None);
    }
}
