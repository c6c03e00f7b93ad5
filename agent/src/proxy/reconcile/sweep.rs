//! What is taken out of the maps: addresses that nobody has any more, and what flips left behind.

use tokio::time::Instant;
use tracing::warn;

use super::super::feedback::Look;
use super::{Worker, perform};
use crate::dataplane::ServiceMaps;

impl<M: ServiceMaps, L: Look> Worker<M, L> {
    pub(super) fn collect_soon(&mut self) {
        if self.proxy.read().state.has_garbage() {
            self.rounds.want(Instant::now());
        }
    }

    /// Gives how many there were.
    pub(super) fn drop_orphans(&mut self) -> usize {
        let orphans = self.proxy.read().state.orphans();
        let count = orphans.len();
        for key in orphans {
            let heir = self.proxy.read().state.heir(&key);
            if let Some(heir) = heir {
                self.sync(&heir, std::time::Instant::now());
            }
            let mut inner = self.proxy.write();
            if let Some(flip) = inner.state.remove(key)
                && let Err(error) = perform(&mut inner, &mut self.maps, flip)
            {
                warn!(?key, error, "an address could not be removed; trying again");
                drop(inner);
                self.collect_later(1);
            }
        }
        count
    }

    pub(super) fn collect(&mut self) {
        if self.proxy.is_waiting() {
            self.rounds.want(Instant::now());
            return;
        }
        let mut ops = std::mem::take(&mut self.undone);
        {
            let state = &mut self.proxy.write().state;
            ops.retain(|op| state.may_go(op));
            ops.extend(state.collect());
        }
        let failed = self.maps.remove_all(ops);
        match failed.first() {
            None => self.rounds.done(),
            Some((op, error)) => {
                warn!(rows = failed.len(), ?op, %error, "rows could not be removed; trying again");
                self.collect_later(failed.len());
            }
        }
        self.undone = failed.into_iter().map(|(op, _)| op).collect();
    }

    /// So many removals failed.
    pub(super) fn collect_later(&mut self, failed: usize) {
        self.metrics.map_errors.inc_by(failed as u64);
        self.rounds.failed(Instant::now());
    }
}
