//! The node in the cluster: joining it, the Node object, its status and Lease, the node's certificates.
//!
//! [`status`], [`reserve`] and [`certificates`] decide what the Node object should say, what is not for pods, and when a certificate is due, which is pure;
//! [`upkeep`], [`join`](mod@join) and [`rotation`] do it. [`facts`] reads the machine.

pub mod certificates;
pub mod credentials;
pub mod facts;
pub mod follow;
pub mod join;
mod lease;
pub mod registration;
pub mod reserve;
pub mod rotation;
pub mod signing;
pub mod status;
#[cfg(test)]
mod tests;
pub mod upkeep;
