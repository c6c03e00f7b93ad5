//! Events about pods.

use kube::Client;

pub(super) use crate::events::Kind;
use crate::events::{self, Subject};
use crate::runtime::PodRef;

/// Sends events about pods, and logs them.
#[derive(Clone)]
pub(super) struct Events(events::Events);

impl Events {
    /// Starts the task that sends; it ends when the last clone is gone.
    pub(super) fn start(client: Client, node_name: String) -> Events {
        Events(events::Events::start(client, "kubelet", node_name))
    }

    pub(super) fn send(
        &self,
        pod: &PodRef,
        container: Option<&str>,
        kind: Kind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let message = message.into();
        match kind {
            Kind::Normal => tracing::info!(
                pod = pod.name,
                namespace = pod.namespace,
                container,
                reason,
                message
            ),
            Kind::Warning => tracing::warn!(
                pod = pod.name,
                namespace = pod.namespace,
                container,
                reason,
                message
            ),
        }
        let subject = Subject {
            kind: "Pod",
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        };
        let field_path = container.map(|name| format!("spec.containers{{{name}}}"));
        self.0.send(subject, field_path, kind, reason, message);
    }
}
