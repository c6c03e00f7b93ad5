//! The kubelet half: what is to be done to a pod (pure) and the workers that do it.
//!
//! ```text
//!  API watch ─┐                        ┌─ plan(spec, observed, now) ─> actions ─> perform ─┐
//!  runtime  ──┼─> Manager ─> worker ───┤                                                   ├─> observed
//!  timers   ──┘   (one task a pod)     └─ status(spec, observed, now) ─> report ─> API     ┘
//! ```
//!
//! [`plan`] and [`status`] decide, from values to values. A [`worker`] performs what was planned, looks at what came of
//! it and plans again until nothing is left to do. It may be stopped at any point: everything that it observed can be
//! observed again from the runtime, and every action may be repeated.

mod archives;
mod backoff;
mod config;
mod env;
mod events;
mod manager;
pub mod observed;
mod perform;
pub mod plan;
mod report;
mod sandbox;
pub mod spec;
pub mod status;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod volumes;
mod worker;

pub use manager::{Manager, Settings};
pub use table::{ContainerSummary, PodSummary, PodTable};
