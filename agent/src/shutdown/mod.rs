//! Graceful node shutdown: when the machine is about to go down, pods end in order before it does.
//!
//! logind is told that shutdown has to wait for this process ([`logind`], a delay inhibitor). When it says that one is
//! prepared, [`watch`] makes the node not ready and has pods end, group by group ([`order`], pure), and lets go.

pub mod bus;
pub mod logind;
pub mod order;
#[cfg(test)]
mod tests;
pub mod watch;

pub use order::Steps;
pub use watch::Watcher;
