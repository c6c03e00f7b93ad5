//! How the agent comes and goes: what `kernelet cleanup` leaves, and a node where it is nothing but a service proxy.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod cleanup;
mod pods;
mod proxy_only;

use std::time::Duration;

/// How long something may take before a scenario calls it broken.
const PATIENCE: Duration = Duration::from_secs(60);
