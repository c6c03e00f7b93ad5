//! What the agent answers: the kubelet HTTPS API and the introspection socket.

pub mod introspection;
mod present;
