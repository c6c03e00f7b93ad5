//! The node in the cluster: joining it, the Node object, its status and Lease, the node's certificates.
//!
//! [`status`] decides what the Node object should say, which is pure; [`upkeep`] writes it. [`facts`] reads the machine.

pub mod facts;
mod lease;
pub mod registration;
pub mod status;
pub mod upkeep;
