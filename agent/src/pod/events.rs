//! Events about pods, as `kubectl describe` shows them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

pub(super) use super::correlate::Kind;
use super::correlate::{Correlator, Entry, Told};
use crate::runtime::PodRef;

/// Events that wait to be sent. More than this are dropped: they explain, nothing depends on them.
const QUEUE: usize = 512;

/// How long the API server may take over one. Those behind it wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends events, without making anyone wait.
#[derive(Clone)]
pub(super) struct Events {
    sender: mpsc::Sender<Entry>,
}

impl Events {
    /// Starts the task that sends; it ends when the last clone is gone.
    pub(super) fn start(client: Client, node_name: String) -> Events {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, node_name, receiver));
        Events { sender }
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
        let entry = Entry {
            pod: pod.clone(),
            container: container.map(str::to_owned),
            kind,
            reason,
            message,
        };
        // A full queue means that the API server is away; the log has it.
        let _ = self.sender.try_send(entry);
    }
}

async fn send_all(client: Client, node_name: String, mut receiver: mpsc::Receiver<Entry>) {
    let mut correlator = Correlator::default();
    while let Some(entry) = receiver.recv().await {
        let reason = entry.reason;
        let told = correlator.tell(entry, Timestamp::now());
        let sent = tokio::time::timeout(PATIENCE, send(&client, &node_name, &told)).await;
        match sent {
            Ok(Ok(Some(name))) => correlator.sent(told, name),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, reason, "an event was not taken"),
            Err(_) => tracing::debug!(reason, "an event was not answered"),
        }
    }
}

/// Gives the name of the event, if it is a new one.
async fn send(
    client: &Client,
    node_name: &str,
    told: &Told,
) -> Result<Option<String>, kube::Error> {
    let api = Api::<Event>::namespaced(client.clone(), &told.entry.pod.namespace);
    if let Some((name, count)) = &told.again {
        let patch = json!({
            "count": count,
            "lastTimestamp": Time(Timestamp::now()),
            "message": told.entry.message,
        });
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            // Events do not live for ever: it has to be told anew.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => return result.map(|_| None),
        }
    }
    let event = event(&told.entry, node_name);
    api.create(&PostParams::default(), &event).await?;
    Ok(event.metadata.name)
}

fn event(entry: &Entry, node_name: &str) -> Event {
    let now = Timestamp::now();
    // A number that rises keeps names apart and in order.
    let name = format!("{}.{:x}", entry.pod.name, now.as_nanosecond());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(entry.pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(entry.pod.name.clone()),
            namespace: Some(entry.pod.namespace.clone()),
            uid: Some(entry.pod.uid.clone()),
            field_path: entry
                .container
                .as_ref()
                .map(|name| format!("spec.containers{{{name}}}")),
            ..ObjectReference::default()
        },
        type_: Some(match entry.kind {
            Kind::Normal => "Normal".into(),
            Kind::Warning => "Warning".into(),
        }),
        reason: Some(entry.reason.into()),
        message: Some(entry.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node_name.to_owned()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}
