//! The embedded store's tables and what is done to them inside one transaction.
//!
//! `VERSIONS` holds each key's versions, `LOG` names the key that each revision wrote. Together they answer a read at a
//! revision and a watch from one, without a second copy of any value. Compaction to C removes the log up to C and every
//! version that a revision up to C replaced, so the state at C and all that came later stay whole.

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use crate::store::{Entry, Event, Range, Revision, StoreError, Write};

/// Key and revision to a version: one byte (0: deleted, 1: live), the revision of the key's creation (8 bytes, little-endian),
/// the value.
pub(super) const VERSIONS: TableDefinition<'_, (&str, u64), &[u8]> =
    TableDefinition::new("versions");
/// Revision to the key it wrote and the key's revision before (0: it was absent).
pub(super) const LOG: TableDefinition<'_, u64, (&str, u64)> = TableDefinition::new("log");
/// `COMPACTED` to the revision that history has been compacted to.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const COMPACTED: &str = "compacted";

const HEADER: usize = 9;

/// The tables, open in a transaction of either kind.
pub(super) struct Tables<V, L, M> {
    pub(super) versions: V,
    pub(super) log: L,
    pub(super) meta: M,
}

fn encode(live: bool, created: Revision, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + value.len());
    out.push(u8::from(live));
    out.extend_from_slice(&created.0.to_le_bytes());
    out.extend_from_slice(value);
    out
}

/// None for a deletion.
fn decode(key: &str, revision: u64, record: &[u8]) -> Result<Option<Entry>, redb::Error> {
    let corrupt = || redb::Error::Corrupted(format!("{key} at revision {revision} has no header"));
    let (header, value) = record.split_at_checked(HEADER).ok_or_else(corrupt)?;
    let created: [u8; 8] = header[1..].try_into().map_err(|_| corrupt())?;
    Ok((header[0] != 0).then(|| Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        created: Revision(u64::from_le_bytes(created)),
        modified: Revision(revision),
    }))
}

impl<V, L, M> Tables<V, L, M>
where
    V: ReadableTable<(&'static str, u64), &'static [u8]>,
    L: ReadableTable<u64, (&'static str, u64)>,
    M: ReadableTable<&'static str, u64>,
{
    pub(super) fn compacted(&self) -> Result<Revision, redb::Error> {
        // A store starts at revision 1, with nothing before it.
        Ok(Revision(self.meta.get(COMPACTED)?.map_or(1, |v| v.value())))
    }

    pub(super) fn revision(&self) -> Result<Revision, redb::Error> {
        match self.log.last()? {
            Some((revision, _)) => Ok(Revision(revision.value())),
            None => self.compacted(),
        }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, redb::Error> {
        match self.versions.range((key, 0)..=(key, u64::MAX))?.next_back() {
            Some(version) => {
                let (k, record) = version?;
                decode(key, k.value().1, record.value())
            }
            None => Ok(None),
        }
    }

    /// Whether `at` lies in the history that is kept.
    pub(super) fn check(&self, at: Revision) -> Result<Result<(), StoreError>, redb::Error> {
        let (oldest, current) = (self.compacted()?, self.revision()?);
        Ok(if at < oldest {
            Err(StoreError::Compacted { asked: at, oldest })
        } else if at > current {
            Err(StoreError::Future { asked: at, current })
        } else {
            Ok(())
        })
    }

    pub(super) fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Revision,
    ) -> Result<Range, redb::Error> {
        let first = match after {
            Some(after) if after >= prefix => (after, u64::MAX),
            _ => (prefix, 0),
        };
        let mut found = Range {
            entries: Vec::new(),
            remaining: 0,
            revision: at,
        };
        // The newest version so far of the key at hand; a key is settled when the next one begins.
        let mut newest: Option<(String, u64, redb::AccessGuard<'_, &'static [u8]>)> = None;
        for version in self.versions.range(first..)? {
            let (k, record) = version?;
            let (key, revision) = k.value();
            if !key.starts_with(prefix) {
                break;
            }
            if revision > at.0 || Some(key) == after {
                continue;
            }
            match &mut newest {
                Some((same, newer, r)) if same == key => (*newer, *r) = (revision, record),
                _ => {
                    let next = (key.to_owned(), revision, record);
                    if let Some(settled) = newest.replace(next) {
                        take(&mut found, limit, &settled)?;
                    }
                }
            }
        }
        if let Some(settled) = newest {
            take(&mut found, limit, &settled)?;
        }
        Ok(found)
    }

    /// At most `limit` log records after `after`: the changes under `prefix` among them, and the last revision looked at.
    pub(super) fn changes(
        &self,
        prefix: &str,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Event>, Revision), redb::Error> {
        let mut events = Vec::new();
        let mut seen = after;
        for record in self.log.range(after.0 + 1..)?.take(limit) {
            let (revision, written) = record?;
            let (key, before) = written.value();
            seen = Revision(revision.value());
            if !key.starts_with(prefix) {
                continue;
            }
            let previous = match before {
                0 => None,
                _ => self.version(key, before)?,
            };
            events.push(match (self.version(key, seen.0)?, previous) {
                (Some(entry), previous) => Event::Put { entry, previous },
                (None, Some(previous)) => Event::Delete {
                    previous,
                    revision: seen,
                },
                (None, None) => {
                    return Err(redb::Error::Corrupted(format!(
                        "revision {seen:?} deletes {key}, which was not there"
                    )));
                }
            });
        }
        Ok((events, seen))
    }

    fn version(&self, key: &str, revision: u64) -> Result<Option<Entry>, redb::Error> {
        match self.versions.get((key, revision))? {
            Some(record) => decode(key, revision, record.value()),
            None => Err(redb::Error::Corrupted(format!(
                "{key} has no version {revision}, which the log names"
            ))),
        }
    }
}

fn take(
    found: &mut Range,
    limit: usize,
    (key, revision, record): &(String, u64, redb::AccessGuard<'_, &'static [u8]>),
) -> Result<(), redb::Error> {
    if limit != 0 && found.entries.len() == limit {
        found.remaining += u64::from(record.value().first() == Some(&1));
    } else if let Some(entry) = decode(key, *revision, record.value())? {
        found.entries.push(entry);
    }
    Ok(())
}

/// The tables in a write transaction.
pub(super) type WriteTables<'t> = Tables<
    redb::Table<'t, (&'static str, u64), &'static [u8]>,
    redb::Table<'t, u64, (&'static str, u64)>,
    redb::Table<'t, &'static str, u64>,
>;
/// The tables in a read transaction.
pub(super) type ReadTables = Tables<
    redb::ReadOnlyTable<(&'static str, u64), &'static [u8]>,
    redb::ReadOnlyTable<u64, (&'static str, u64)>,
    redb::ReadOnlyTable<&'static str, u64>,
>;

impl<'t> WriteTables<'t> {
    pub(super) fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            versions: transaction.open_table(VERSIONS)?,
            log: transaction.open_table(LOG)?,
            meta: transaction.open_table(META)?,
        })
    }

    /// Does all of the writes, as revision `next` and those after it, if each key is as expected.
    pub(super) fn commit(
        &mut self,
        writes: &[Write],
        next: Revision,
    ) -> Result<Result<(), StoreError>, redb::Error> {
        let mut before = Vec::with_capacity(writes.len());
        for write in writes {
            let current = self.get(&write.key)?;
            if !write.expect.is_met_by(current.as_ref()) {
                let key = write.key.clone();
                return Ok(Err(StoreError::Conflict { key, current }));
            }
            before.push(current.map(|entry| (entry.created, entry.modified)));
        }
        for (revision, (write, before)) in (next.0..).zip(writes.iter().zip(before)) {
            let (created, modified) = before.unwrap_or((Revision(revision), Revision(0)));
            let (key, value) = (write.key.as_str(), write.value.as_deref());
            let record = encode(value.is_some(), created, value.unwrap_or_default());
            self.versions.insert((key, revision), record.as_slice())?;
            self.log.insert(revision, (key, modified.0))?;
        }
        Ok(Ok(()))
    }

    /// Removes at most `limit` records of history up to `to`. True when none is left.
    pub(super) fn forget(&mut self, to: Revision, limit: usize) -> Result<bool, redb::Error> {
        let mut records = Vec::with_capacity(limit);
        for record in self.log.range(..=to.0)?.take(limit) {
            let (revision, written) = record?;
            let (key, before) = written.value();
            records.push((revision.value(), key.to_owned(), before));
        }
        for (revision, key, before) in &records {
            if *before != 0 {
                self.versions.remove((key.as_str(), *before))?;
            }
            let deletion = self
                .versions
                .get((key.as_str(), *revision))?
                .is_some_and(|record| record.value().first() == Some(&0));
            if deletion {
                self.versions.remove((key.as_str(), *revision))?;
            }
            self.log.remove(*revision)?;
        }
        Ok(records.len() < limit)
    }
}

impl ReadTables {
    pub(super) fn open(transaction: &redb::ReadTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            versions: transaction.open_table(VERSIONS)?,
            log: transaction.open_table(LOG)?,
            meta: transaction.open_table(META)?,
        })
    }
}
