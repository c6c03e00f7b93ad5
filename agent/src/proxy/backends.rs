//! The rows of `BACKENDS`: ids, where they lead, and who holds them.

use std::collections::{BTreeSet, HashMap};

use agent_ebpf::abi::{BackendEntry, BackendId};

use super::policy::Target;
use crate::dataplane::Sockets;

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

#[derive(Debug)]
struct Row {
    target: Target,
    /// Tables whose rows name it, live or retired. At 0 the row may go.
    holders: u32,
    /// Whether the map is known to have it.
    written: bool,
    /// What becomes of its sockets when the row goes; nobody has said so while it is held.
    sockets: Option<Sockets>,
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
        if let Some(id) = self.known(target) {
            return id;
        }
        let id = BackendId(
            self.ids
                .allocate(|id| self.rows.contains_key(&BackendId(id))),
        );
        self.insert(id, target, false);
        id
    }

    /// A row as the map has it. Where two rows have one target, the first is the one that is used from now on.
    pub(super) fn adopt(&mut self, id: BackendId, entry: BackendEntry) {
        let BackendEntry {
            address,
            port,
            protocol,
            pad: _,
        } = entry;
        self.insert(
            id,
            Target {
                address,
                port,
                protocol,
            },
            true,
        );
        self.idle.insert(id);
    }

    fn insert(&mut self, id: BackendId, target: Target, written: bool) {
        self.rows.insert(
            id,
            Row {
                target,
                holders: 0,
                written,
                sockets: None,
            },
        );
        self.by_target.entry(target).or_insert(id);
    }

    pub(super) fn known(&self, target: Target) -> Option<BackendId> {
        self.by_target.get(&target).copied()
    }

    pub(super) fn target(&self, id: BackendId) -> Option<Target> {
        self.rows.get(&id).map(|row| row.target)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (BackendId, Target)> + '_ {
        self.rows.iter().map(|(id, row)| (*id, row.target))
    }

    /// A table's rows name these now.
    pub(super) fn hold<'a>(&mut self, ids: impl Iterator<Item = &'a BackendId>) {
        for id in ids {
            if let Some(row) = self.rows.get_mut(id) {
                row.holders += 1;
                row.sockets = None;
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

    /// What should become of the backend's sockets once no table names it. That one of its services has seen it go weighs
    /// more than that another is deleted.
    pub(super) fn when_idle(&mut self, id: BackendId, sockets: Sockets) {
        if let Some(row) = self.rows.get_mut(&id)
            && row.sockets != Some(Sockets::Close)
        {
            row.sockets = Some(sockets);
        }
    }

    /// The write of the row of `id`, if the map has none; counted as done until [`Self::unwritten`].
    pub(super) fn write(&mut self, id: BackendId) -> Option<(BackendId, BackendEntry)> {
        let row = self.rows.get_mut(&id).filter(|row| !row.written)?;
        row.written = true;
        let Target {
            address,
            port,
            protocol,
        } = row.target;
        let pad = 0;
        Some((
            id,
            BackendEntry {
                address,
                port,
                protocol,
                pad,
            },
        ))
    }

    /// A write of `id` may not have happened.
    pub(super) fn unwritten(&mut self, id: BackendId) {
        if let Some(row) = self.rows.get_mut(&id) {
            row.written = false;
        }
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Forgets the backends that no table names, and says which they were and what becomes of their sockets.
    pub(super) fn take_idle(&mut self) -> Vec<(BackendId, Sockets)> {
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.idle) {
            if self.rows.get(&id).is_some_and(|row| row.holders == 0)
                && let Some(row) = self.rows.remove(&id)
            {
                if self.by_target.get(&row.target) == Some(&id) {
                    self.by_target.remove(&row.target);
                }
                gone.push((id, row.sockets.unwrap_or(Sockets::Close)));
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
            address: agent_ebpf::abi::Address::v4([10, 0, 0, 1]),
            port: [0, 80],
            protocol: 6,
        };
        let id = backends.id_of(target);
        backends.hold([id].iter());
        assert!(backends.take_idle().is_empty());
        backends.release([id].iter());
        assert_eq!(backends.id_of(target), id);
        assert_eq!(backends.take_idle(), [(id, Sockets::Close)]);
        assert_ne!(backends.id_of(target), id);
    }
}
