//! A cluster of network namespaces on one machine, each node with its own cgroup subtree, containerd and agent.
//!
//! `cargo xtask cluster` and the scenarios in `tests/tests/` both start from [`Cluster`]. Everything that a cluster makes
//! carries its prefix, is written down in its directory, and is found again and removed by the next run of that prefix,
//! also when this run was killed.

pub mod alone;
pub mod cluster;
pub mod command;
pub mod debian;
pub mod helm;
pub mod host;
pub mod image;
pub mod kernels;
pub mod links;
pub mod process;
pub mod python;
pub mod scenario;
pub mod sweep;

pub use cluster::{Cluster, Families, Node, Program, Role, Spec};

/// Why a cluster could not be brought up, used or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be started, or said no.
    #[error("`{command}` failed: {detail}")]
    Command { command: String, detail: String },
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    File {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    /// A system call on a named thing failed.
    #[error("{what}: {source}")]
    System {
        what: String,
        source: std::io::Error,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s; {hint}")]
    Timeout {
        what: String,
        seconds: u64,
        hint: String,
    },
    /// The cluster has no such part, or is not as it was written down.
    #[error("{0}")]
    Unexpected(String),
}

/// What every operation here gives.
pub type Result<T> = std::result::Result<T, Error>;
