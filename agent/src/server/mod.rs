//! What the agent answers: the kubelet HTTPS API and the introspection socket; as kube-proxy, metrics and health;
//! health checks of services.

pub mod access;
pub mod as_proxy;
mod cadvisor;
mod direct_return;
pub mod health_checks;
pub mod https;
pub mod introspection;
mod logs;
mod pods;
mod policy;
mod present;
mod probe_metrics;
mod rates;
pub mod socket;
mod stats;
pub mod streaming;

/// How one part of the agent is, at the moment it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentHealth {
    pub healthy: bool,
    pub detail: String,
}
