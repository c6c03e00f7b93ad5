//! Filter and score plugins over a snapshot (pure), and the loop that binds.
//!
//! ```text
//!  pod appears ──▶ choose ──node──▶ placed in the snapshot ──bind──▶ bound, as the watch says
//!                    │                                 └──refused──▶ waits
//!                    └──none──▶ preempt ──▶ pods of lower priority are deleted, and their room is kept for it
//!                                        └─▶ waits, until a node or another pod changes and its back-off is over
//! ```

mod choose;
mod evict;
mod filter;
mod neighbours;
mod preempt;
mod quantity;
mod queue;
mod run;
mod score;
mod snapshot;
mod spread;
mod tell;
mod terms;
#[cfg(test)]
mod tests;

pub(crate) use filter::{suits, tolerates};
pub use run::run;

/// How the scheduler shall behave.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Pods that name another scheduler are left to that one.
    pub name: String,
    /// Decides between nodes that suit a pod equally.
    pub seed: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            name: "default-scheduler".into(),
            seed: 0,
        }
    }
}
