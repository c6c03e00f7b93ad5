//! Cluster DNS, answered on the node: every node answers its own pods, from the same view that the proxy reads.
//!
//! [`answer`] decides, [`wire`] reads and writes messages, both pure; [`server`] has the sockets and [`forward`] asks the
//! node's resolvers about the rest of the world. [`resolv_conf`] tells pods where to ask.

pub mod answer;
pub mod forward;
pub mod resolv_conf;
pub mod server;
#[cfg(test)]
mod tests;
pub mod wire;
