//! Locality with feedback: how much of a service's traffic stays on the node, from how its backends are; and which
//! backends are not offered for a while because their connections fail.
//!
//! ```text
//! STATS, accept queues, cgroups ──Look──> Watch::tick ──> shares, ejections ──apply──> Frontend ──> LbState::plan
//! ```
//!
//! All but the effects behind `Look` is pure; `simulation` (a test) runs it against queues. `docs/locality.md` explains
//! the constants.

mod controller;
mod ejection;
mod explain;
mod gauge;
mod kernel;
mod lifetimes;
mod ports;
mod signals;
#[cfg(test)]
mod simulation;
mod watch;

pub use controller::{Inputs, MOST};
pub use ejection::{Ejected, Ejection, Reason};
pub use explain::Explanation;
pub use kernel::Kernel;
pub use ports::{Changes, Feedback, Look, Member, Shape};
pub use signals::{Counters, Load, Reading, Signal};
pub use watch::Watch;
