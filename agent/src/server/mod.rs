//! What the agent answers: the kubelet HTTPS API and the introspection socket; as kube-proxy, metrics and health.

pub mod as_proxy;
pub mod https;
pub mod introspection;
mod logs;
mod present;
pub mod socket;

/// How one part of the agent is, at the moment it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentHealth {
    pub healthy: bool,
    pub detail: String,
}
