//! The Kubernetes HTTP API: routing, verbs, watch, patch, selectors, tables, discovery, OpenAPI.
//!
//! A request passes one pipeline, [`pipeline::serve`]: authenticate, authorize, decode, admit, validate, store, present.
//! Everything up to "decode" is about the request and lives here; the rest is the generic [`registry`].

pub mod access;
pub mod apply;
pub mod applying;
pub mod audit;
pub mod authenticate;
pub mod body;
pub mod bootstrap;
mod components;
pub mod content;
pub mod decoders;
pub mod default_roles;
pub mod deletion;
pub mod discovery;
pub mod error;
pub mod eviction;
pub mod health;
mod impersonate;
pub mod inflight;
pub mod kubelet;
pub mod list;
pub mod local;
pub mod log;
pub mod meta;
pub mod metrics;
pub mod openapi;
pub mod options;
mod owners;
pub mod patch;
pub mod patching;
mod paths;
pub mod peers;
pub mod pipeline;
pub mod present;
pub mod protobuf;
mod proxy;
pub mod registry;
pub mod request;
pub mod reviews;
pub mod scale;
pub mod selectors;
pub mod server;
mod shares;
pub mod stored;
pub mod streams;
pub mod subresources;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod token_request;
pub mod verbs;
pub mod watch;

use std::sync::Arc;

pub use health::Health;
pub use kubelet::KubeletClient;
pub use list::{fields, index};
pub use local::{leaders_client, local_client};
pub use pipeline::router;

use crate::auth::Authenticator;
use inflight::Inflight;
use metrics::Metrics;
use registry::Registry;

/// What the handlers share.
pub struct Api {
    pub registry: Registry,
    pub authenticator: Authenticator,
    /// How agents are asked for what only they know.
    pub kubelet: KubeletClient,
    /// `ADDRESS:PORT` that clients reach this server at, for discovery.
    pub advertised: String,
    pub health: Health,
    audit: Option<audit::Log>,
    inflight: Inflight,
    streams: streams::Open,
    documents: openapi::Documents,
    metrics: Metrics,
}

impl Api {
    pub fn new(
        registry: Registry,
        authenticator: Authenticator,
        kubelet: KubeletClient,
        advertised: String,
        audit: Option<audit::Log>,
    ) -> Arc<Self> {
        Arc::new(Api {
            registry,
            authenticator,
            kubelet,
            advertised,
            health: Health::default(),
            audit,
            inflight: Inflight::default(),
            streams: streams::Open::default(),
            documents: openapi::Documents::default(),
            metrics: Metrics::default(),
        })
    }
}
