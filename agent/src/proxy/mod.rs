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
#[cfg(test)]
mod bad_input_tests;
#[cfg(test)]
mod claims_tests;
pub mod feedback;
mod handle;
#[cfg(test)]
mod kernel_tests;
mod live;
mod maglev;
mod metrics;
#[cfg(test)]
mod nonsense_tests;
mod policy;
mod queries;
mod ranges;
mod reconcile;
mod reports;
mod state;
#[cfg(test)]
mod testing;

pub use handle::{Health, Inner, ProxyHandle, ServiceProblem};
pub use live::Live;
pub use maglev::size as maglev_size;
pub use metrics::Metrics;
pub use policy::{AddressKind, Backend, Class, Frontend, Preference, Target, desired};
pub use reconcile::{Settings, run};
pub use state::{Flip, LbState};
