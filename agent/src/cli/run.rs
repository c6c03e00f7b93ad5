//! `kernelet run`: logging, a small runtime, then [`crate::run`].

use std::io;

use tracing_subscriber::EnvFilter;

use super::CliError;
use crate::config::AgentConfig;
use crate::heap;

/// Enough for one node's events; every thread costs memory.
const WORKERS: usize = 2;
const BLOCKING: usize = 16;
/// The client logs every failed request as an error of its own; whoever made the request says it better.
const LOG: &str = "info,kube_client=off";

pub(super) fn run(config: AgentConfig) -> Result<(), CliError> {
    heap::share();
    let filter = EnvFilter::try_from_env("KERNELET_LOG").unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.spawn(heap::give_back());
    Ok(runtime.block_on(crate::run::run(config))?)
}
