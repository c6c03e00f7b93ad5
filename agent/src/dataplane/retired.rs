//! What rows of `STATS` said last, when they were removed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agent_ebpf::abi::{BackendId, BackendStats};

/// The last words of rows that are removed, until somebody takes them. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Retired(Arc<Mutex<BTreeMap<BackendId, BackendStats>>>);

/// Rows that are kept when nobody takes them. Those beyond are lost.
const MOST_RETIRED: usize = 16_384;

impl Retired {
    /// A backend's row is about to be removed.
    pub fn add(&self, id: BackendId, stats: BackendStats) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stats != BackendStats::default() && rows.len() < MOST_RETIRED {
            rows.insert(id, stats);
        }
    }

    /// What was added since the last call.
    pub fn take(&self) -> BTreeMap<BackendId, BackendStats> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
