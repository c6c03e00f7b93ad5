//! Network policy: from NetworkPolicies, Namespaces and Pods to the maps that the programs at the pods' links read.
//!
//! ```text
//! watch ─> View ─┐
//!                ├─ compile ─> Desired ─ PolicyState::plan ─> PolicyOps ─> maps
//! network ─> Local ─┘                                         one flip takes all from old to new
//! ```
//!
//! [`compile`], [`state`] and what they use are pure and carry the tests. How a packet meets the maps is in
//! [`agent_ebpf::policy`].

mod blocks;
pub mod compile;
pub mod connect;
pub mod convert;
pub mod drops;
pub mod engine;
pub mod explain;
#[cfg(test)]
mod oracle;
pub mod ports;
pub mod prefix;
pub mod state;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod testing;
pub mod types;
pub mod view;
pub mod watch;
