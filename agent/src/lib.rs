//! The Kernelet node agent: kubelet and service proxy in one program. `ARCHITECTURE.md` is the map.

pub mod announce;
mod chain;
pub mod cleanup;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dataplane;
pub mod dns;
pub mod events;
mod heap;
pub mod housekeeping;
pub mod network;
pub mod node;
pub mod observe;
pub mod pod;
pub mod policy;
pub mod proxy;
pub mod run;
pub mod runtime;
pub mod self_test;
pub mod server;
pub mod shutdown;
mod slow;
#[cfg(test)]
mod testing;

/// The introspection API, generated from `proto/kernelet/v1/introspection.proto`.
pub mod introspection {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("kernelet.v1");
}
