//! The story that must always run: a frontend reaches `http://backend` by name, on its own node's backend, and whatever is
//! killed heals.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod application;
mod healing;
mod images;
mod node_ports;
mod policies;
mod reserve;
mod seeing;
mod serving;
mod workloads;
