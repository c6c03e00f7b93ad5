//! A Kubernetes control plane in one process: API server, scheduler and controllers. `ARCHITECTURE.md` is the map.

pub mod admission;
pub mod api;
pub mod auth;
pub mod controllers;
pub mod lead;
pub mod parts;
pub mod resources;
pub mod scheduler;
pub mod store;
