//! The service half: Services and EndpointSlices to load-balancer state to map writes.
//!
//! ```text
//! cluster::View ──policy::desired──> Frontend ──LbState::plan──> Flip { ops } ──reconcile──> maps
//!                                                    ^                              │
//!                                                    └──────── LbState::settle ─────┘
//! ```
//!
//! [`policy`] says what a service should look like from this node, [`LbState`] remembers what the maps hold and says
//! which writes lead there; both are pure. [`run`] performs the writes.

mod adopt;
mod backends;
mod handle;
#[cfg(test)]
mod kernel_tests;
mod live;
mod policy;
mod queries;
mod reconcile;
mod state;
#[cfg(test)]
mod testing;

pub use handle::{Health, Inner, ProxyHandle, ServiceProblem};
pub use live::Live;
pub use policy::{Backend, Class, Frontend, Ignored, Preference, Target, desired};
pub use reconcile::{Metrics, run};
pub use state::{Flip, LbState};
