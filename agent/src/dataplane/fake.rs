//! Service tables in memory, for tests of whatever writes them; and ones that fail on demand.

use std::io;

use super::{MapError, MapOp, PinnedState, ServiceMaps};

/// Tables in memory with the same behaviour as the kernel's.
#[derive(Clone, Debug, Default)]
pub struct FakeMaps {
    pub state: PinnedState,
    /// Every write that was performed, in order.
    pub log: Vec<MapOp>,
}

impl ServiceMaps for FakeMaps {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        self.log.push(op.clone());
        let PinnedState {
            services,
            slots,
            backends,
            maglev,
            source_ranges,
        } = &mut self.state;
        match op {
            MapOp::PutBackend(id, entry) => drop(backends.insert(*id, *entry)),
            MapOp::PutSlot(key, id) => drop(slots.insert(*key, *id)),
            MapOp::PutMaglev(key, chunk) => drop(maglev.insert(*key, **chunk)),
            MapOp::PutSourceRange(range) => drop(source_ranges.insert(*range)),
            MapOp::PutService(key, entry) => drop(services.insert(*key, *entry)),
            MapOp::DeleteService(key) => drop(services.remove(key)),
            MapOp::DeleteSlot(key) => drop(slots.remove(key)),
            MapOp::DeleteMaglev(key) => drop(maglev.remove(key)),
            MapOp::DeleteSourceRange(range) => drop(source_ranges.remove(range)),
            MapOp::DeleteBackend(id, _) => drop(backends.remove(id)),
        }
        Ok(())
    }

    fn dump(&self) -> Result<PinnedState, MapError> {
        Ok(self.state.clone())
    }
}

/// Tables of which some writes fail, as a full or broken map would.
#[derive(Debug)]
pub struct FaultyMaps<F> {
    pub inner: FakeMaps,
    /// Says whether the write fails; called once for each.
    pub fails: F,
}

impl<F: FnMut(&MapOp) -> bool + Send> ServiceMaps for FaultyMaps<F> {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        if (self.fails)(op) {
            let source = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(MapError::Write {
                map: "FAULTY",
                op: op.clone(),
                source,
            });
        }
        self.inner.apply(op)
    }

    fn dump(&self) -> Result<PinnedState, MapError> {
        self.inner.dump()
    }
}
