//! The rows of `BACKENDS`: ids, who holds them, and the flags that follow from who holds them.

use std::collections::{BTreeSet, HashMap};

use agent_ebpf::abi::{BACKEND_LOCAL, BACKEND_TERMINATING, BackendEntry, BackendId};

use super::policy::Target;

/// Hands out ids. It goes round the 32 bits, so an id comes back only after four thousand million others.
#[derive(Debug)]
pub(super) struct Ids {
    next: u32,
}

impl Ids {
    pub(super) fn starting_at(next: u32) -> Self {
        Self { next }
    }

    /// An id that is not in use. 0 is never one.
    pub(super) fn allocate(&mut self, in_use: impl Fn(u32) -> bool) -> u32 {
        loop {
            let id = self.next;
            self.next = self.next.wrapping_add(1);
            if id != 0 && !in_use(id) {
                return id;
            }
        }
    }
}

/// How one live table uses a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) id: BackendId,
    pub(super) ready: bool,
    pub(super) local: bool,
}

#[derive(Debug)]
struct Row {
    target: Target,
    /// Tables whose rows name it, live or retired. At 0 the row may go.
    holders: u32,
    /// Live tables that use it; of those, as ready; as local.
    live: u32,
    ready: u32,
    local: u32,
    /// Flags as the map has them; `None` when it is not known that it has the row.
    written: Option<u8>,
}

impl Row {
    fn flags(&self) -> u8 {
        let local = if self.local > 0 { BACKEND_LOCAL } else { 0 };
        let terminating = if self.ready == 0 {
            BACKEND_TERMINATING
        } else {
            0
        };
        local | terminating
    }
}

/// All backends that the maps have or are about to have.
#[derive(Debug)]
pub(super) struct Backends {
    rows: HashMap<BackendId, Row>,
    by_target: HashMap<Target, BackendId>,
    /// Candidates for removal: no table named them when they were put here.
    idle: BTreeSet<BackendId>,
    ids: Ids,
}

impl Backends {
    pub(super) fn new(ids: Ids) -> Self {
        Self {
            rows: HashMap::new(),
            by_target: HashMap::new(),
            idle: BTreeSet::new(),
            ids,
        }
    }

    /// The id of `target`, a new one if it has none; a new one has to be held at once.
    pub(super) fn id_of(&mut self, target: Target) -> BackendId {
        if let Some(id) = self.by_target.get(&target) {
            return *id;
        }
        let id = BackendId(
            self.ids
                .allocate(|id| self.rows.contains_key(&BackendId(id))),
        );
        self.insert(id, target, None);
        id
    }

    /// A row as the map has it. Where two rows have one target, the first is the one that is used from now on.
    pub(super) fn adopt(&mut self, id: BackendId, entry: BackendEntry) {
        let BackendEntry {
            address,
            port,
            protocol,
            flags,
        } = entry;
        self.insert(
            id,
            Target {
                address,
                port,
                protocol,
            },
            Some(flags),
        );
        self.idle.insert(id);
    }

    fn insert(&mut self, id: BackendId, target: Target, written: Option<u8>) {
        self.rows.insert(
            id,
            Row {
                target,
                holders: 0,
                live: 0,
                ready: 0,
                local: 0,
                written,
            },
        );
        self.by_target.entry(target).or_insert(id);
    }

    pub(super) fn target(&self, id: BackendId) -> Option<Target> {
        self.rows.get(&id).map(|row| row.target)
    }

    pub(super) fn flags_written(&self, id: BackendId) -> Option<u8> {
        self.rows.get(&id)?.written
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (BackendId, Target, u8)> + '_ {
        self.rows
            .iter()
            .map(|(id, row)| (*id, row.target, row.flags()))
    }

    /// A table's rows name these now.
    pub(super) fn hold<'a>(&mut self, ids: impl Iterator<Item = &'a BackendId>) {
        for id in ids {
            if let Some(row) = self.rows.get_mut(id) {
                row.holders += 1;
            }
        }
    }

    /// A table's rows no longer name these.
    pub(super) fn release<'a>(&mut self, ids: impl Iterator<Item = &'a BackendId>) {
        for id in ids {
            if let Some(row) = self.rows.get_mut(id) {
                row.holders -= 1;
                if row.holders == 0 {
                    self.idle.insert(*id);
                }
            }
        }
    }

    pub(super) fn start_using(&mut self, uses: impl Iterator<Item = Use>) {
        for used in uses {
            if let Some(row) = self.rows.get_mut(&used.id) {
                row.live += 1;
                row.ready += u32::from(used.ready);
                row.local += u32::from(used.local);
            }
        }
    }

    pub(super) fn stop_using(&mut self, uses: impl Iterator<Item = Use>) {
        for used in uses {
            if let Some(row) = self.rows.get_mut(&used.id) {
                row.live -= 1;
                row.ready -= u32::from(used.ready);
                row.local -= u32::from(used.local);
            }
        }
    }

    /// The write that brings the row of `id` up to date, if it needs one; counted as done until [`Self::unwritten`].
    pub(super) fn write(&mut self, id: BackendId) -> Option<(BackendId, BackendEntry)> {
        let row = self.rows.get_mut(&id)?;
        let flags = row.flags();
        if row.live == 0 || row.written == Some(flags) {
            return None;
        }
        row.written = Some(flags);
        let Target {
            address,
            port,
            protocol,
        } = row.target;
        Some((
            id,
            BackendEntry {
                address,
                port,
                protocol,
                flags,
            },
        ))
    }

    /// A write of `id` may not have happened.
    pub(super) fn unwritten(&mut self, id: BackendId) {
        if let Some(row) = self.rows.get_mut(&id) {
            row.written = None;
        }
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Forgets the backends that no table names, and says which they were.
    pub(super) fn take_idle(&mut self) -> Vec<BackendId> {
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.idle) {
            if self.rows.get(&id).is_some_and(|row| row.holders == 0)
                && let Some(row) = self.rows.remove(&id)
            {
                if self.by_target.get(&row.target) == Some(&id) {
                    self.by_target.remove(&row.target);
                }
                gone.push(id);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_in_use_is_passed_over() {
        let mut ids = Ids::starting_at(u32::MAX);
        assert_eq!(ids.allocate(|_| false), u32::MAX);
        assert_eq!(ids.allocate(|id| id == 1), 2, "0 is no id, 1 is taken");
    }

    #[test]
    fn a_backend_keeps_its_id_until_nobody_holds_it() {
        let mut backends = Backends::new(Ids::starting_at(1));
        let target = Target {
            address: [10, 0, 0, 1],
            port: [0, 80],
            protocol: 6,
        };
        let id = backends.id_of(target);
        backends.hold([id].iter());
        assert!(backends.take_idle().is_empty());
        backends.release([id].iter());
        assert_eq!(backends.id_of(target), id);
        assert_eq!(backends.take_idle(), [id]);
        assert_ne!(backends.id_of(target), id);
    }

    #[test]
    fn flags_follow_from_all_who_use_it() {
        let mut backends = Backends::new(Ids::starting_at(1));
        let id = backends.id_of(Target {
            address: [10, 0, 0, 1],
            port: [0, 80],
            protocol: 6,
        });
        let leaving = Use {
            id,
            ready: false,
            local: true,
        };
        backends.start_using([leaving].into_iter());
        assert_eq!(
            backends.write(id).unwrap().1.flags,
            BACKEND_LOCAL | BACKEND_TERMINATING
        );
        assert_eq!(backends.write(id), None);
        backends.start_using(
            [Use {
                ready: true,
                ..leaving
            }]
            .into_iter(),
        );
        assert_eq!(backends.write(id).unwrap().1.flags, BACKEND_LOCAL);
    }
}
