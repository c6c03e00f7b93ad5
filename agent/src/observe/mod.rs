//! Who talks to whom through services, and what comes of it: flows as they happen, connections as they stand, what a
//! connect would meet, and the counters.
//!
//! ```text
//! EVENTS ──> run ──[names]──> Flows ──> watchers          SOCKETS + sock_diag ──[names]──> connections
//!             └── refusals ──> the log                    SERVICES … BACKENDS ──> trace
//!                                                         STATS, SERVICE_STATS ──[Ledger]──> metrics
//! ```
//!
//! The kernel knows clients by the cookie of their network namespace and services by address. [`Clients`] and [`Names`]
//! turn both into names.

mod clients;
mod connections;
mod destination;
mod encode;
mod flow;
mod flows;
mod handshake;
mod ledger;
mod metrics;
mod names;
mod process;
mod reader;
mod refusals;
mod series;
#[cfg(test)]
pub(crate) mod testing;
mod trace;

pub use clients::{Client, Clients};
pub use connections::{Open, connections, outside};
pub use destination::{TraceError, destinations};
pub use flow::{Clock, DROPPED, VERDICTS};
pub use flows::{Flows, Publisher, Recorder, Watch, run};
pub use handshake::quantile;
pub use metrics::{Sources, register};
pub use names::Names;
pub use reader::MapReader;
pub use trace::{Caller, trace};
