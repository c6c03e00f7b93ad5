//! The rows of `SOURCE_RANGES`: who is let in to which service. Pure.
//!
//! Ranges are there before the flip that asks for them, and go as tables do, two calls of [`Ranges::collect`] after the
//! last entry that asked. Unlike tables they have no generation and may come back meanwhile, so a row that is to go is
//! asked after once more.

use std::collections::BTreeSet;

use crate::dataplane::SourcePrefix;

#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Those that entries ask for, and the map has.
    live: BTreeSet<SourcePrefix>,
    /// Left behind since the last [`Self::collect`], and before it.
    left: Vec<SourcePrefix>,
    left_before: Vec<SourcePrefix>,
}

impl Ranges {
    /// A row as the map has it.
    pub(super) fn adopt(&mut self, range: SourcePrefix, is_live: bool) {
        match is_live {
            true => drop(self.live.insert(range)),
            false => self.left.push(range),
        }
    }

    /// Those that the service's entry asks for.
    pub(super) fn of(&self, service_id: u32) -> impl Iterator<Item = &SourcePrefix> {
        self.live.range(SourcePrefix::all_of(service_id))
    }

    /// Those of `wanted` that the map may not have.
    pub(super) fn missing(&self, wanted: &[SourcePrefix]) -> Vec<SourcePrefix> {
        let missing = wanted.iter().filter(|range| !self.live.contains(range));
        missing.copied().collect()
    }

    /// The entry of the service asks for `wanted` from now on, all of which was written.
    pub(super) fn settle(&mut self, service_id: u32, wanted: &[SourcePrefix]) {
        if wanted.is_empty() && self.live.is_empty() {
            return;
        }
        let had = self.of(service_id);
        let gone: Vec<SourcePrefix> = had.filter(|it| !wanted.contains(it)).copied().collect();
        for range in &gone {
            self.live.remove(range);
        }
        self.left.extend(gone);
        self.live.extend(wanted);
    }

    /// Writes of these may or may not have happened.
    pub(super) fn undo(&mut self, maybe: impl Iterator<Item = SourcePrefix>) {
        self.left.extend(maybe);
    }

    /// Those that were left behind before the last call.
    pub(super) fn collect(&mut self) -> Vec<SourcePrefix> {
        let mut due = std::mem::replace(&mut self.left_before, std::mem::take(&mut self.left));
        due.retain(|range| self.may_go(range));
        due
    }

    /// Whether no entry asks for it now.
    pub(super) fn may_go(&self, range: &SourcePrefix) -> bool {
        !self.live.contains(range)
    }

    pub(super) fn has_garbage(&self) -> bool {
        !(self.left.is_empty() && self.left_before.is_empty())
    }
}
