//! What the agent answers: the kubelet HTTPS API and the introspection socket.

pub mod https;
pub mod introspection;
mod logs;
mod present;
