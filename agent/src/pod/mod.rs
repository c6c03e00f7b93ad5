//! The kubelet half: what is to be done to a pod (pure) and the workers that do it.
//!
//! ```text
//!  API watch ─┐                        ┌─ plan(spec, observed, now) ─> actions ─> perform ─┐
//!  runtime  ──┼─> Manager ─> worker ───┤                                                   ├─> observed
//!  timers   ──┘   (one task a pod)     └─ status(spec, observed, now) ─> report ─> API     ┘
//! ```
//!
//! [`plan`] and [`status`] decide, from values to values. A [`worker`] performs what was planned, looks at what came of
//! it and plans again until nothing is left to do. It may be stopped at any point: everything that it observed can be
//! observed again from the runtime, and every action may be repeated.

#[cfg(test)]
mod absence_tests;
pub mod action;
mod admission;
mod app_armor;
mod archives;
mod backoff;
mod check;
mod conditions;
mod config;
#[cfg(test)]
mod crash_tests;
mod deletion;
mod demand;
pub mod disk;
mod env;
mod ephemeral;
mod events;
mod files;
#[cfg(test)]
mod full_disk_tests;
mod holder;
#[cfg(test)]
mod holder_tests;
mod hooks;
mod host_path;
mod host_ports;
mod hosts;
#[cfg(test)]
mod housekeeping_tests;
mod image_volumes;
mod insecure;
#[cfg(test)]
mod lifecycle_tests;
mod loads;
mod manager;
mod mirror;
mod mounts;
#[cfg(test)]
mod node_access_tests;
mod node_affinity;
pub mod observed;
mod paths;
mod perform;
pub mod plan;
pub mod probe;
mod probe_counts;
mod prober;
mod pull;
mod pull_secrets;
#[cfg(test)]
mod pull_tests;
#[cfg(test)]
mod recovery_tests;
mod refusals;
mod report;
mod resize;
mod resource_field;
mod resources;
mod runtime_class;
mod sandbox;
mod seccomp;
mod service_env;
mod shared;
#[cfg(test)]
mod shutdown_tests;
#[cfg(test)]
mod simulation;
pub mod spec;
mod static_pods;
#[cfg(test)]
mod static_tests;
pub mod status;
mod stop;
pub mod sysctls;
mod table;
mod termination_message;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod usage;
mod users;
#[cfg(test)]
mod users_tests;
mod volumes;
mod worker;

pub use deletion::LEAST as LEAST_GRACE;
pub use demand::{Demand, Demands, EVICTED, Eviction, TERMINATED};
pub use holder::PROGRAM as HOLDER;
pub use loads::Loads;
pub use manager::Manager;
pub use paths::Paths;
pub use probe_counts::{BUCKETS, ProbeCount, ProbeCounts, ProbeSeries};
pub use sandbox::limit_all;
pub use shared::Settings;
pub use table::{ContainerSummary, PodSummary, PodTable};
