//! Nodes: an address range for each, and what becomes of one that falls silent or goes.

mod brake;
mod eviction;
mod health;
mod ipam;
mod lifecycle;
mod orphans;
mod ranges;
#[cfg(test)]
mod tests;

use super::Context;

pub use self::ranges::{PodRanges, PodRangesError};

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let ipam = ipam::start(context);
    let lifecycle = lifecycle::start(context);
    let orphans = orphans::start(context);
    async move {
        tokio::join!(ipam, lifecycle, orphans);
    }
}
