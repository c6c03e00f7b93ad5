//! Keeping the node from running short: evicting pods, collecting images and dead containers.
//!
//! ```text
//!              ┌─ signal, eviction: is something short, and for how long? ─┐
//!  observe ────┤                                                           ├─> keeper ─> images, workers, conditions
//!  (files, fs) └─ ranking, local_storage, images: who or what has to go ───┘
//! ```
//!
//! All but [`observe`] and [`keeper`] is pure.

pub mod eviction;
pub mod images;
pub mod keeper;
pub mod local_storage;
mod observe;
pub mod ranking;
pub mod room;
pub mod signal;
