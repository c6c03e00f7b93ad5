//! Events, as `kubectl describe` shows them: sent without making anyone wait, and not too many.

mod correlate;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use self::correlate::{Correlator, Entry, Told};
pub use self::correlate::{Kind, Subject};

/// Events that wait to be sent. More than this are dropped: they explain, nothing depends on them.
const QUEUE: usize = 512;

/// How long the API server may take over one. Those behind it wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who tells.
struct Source {
    component: &'static str,
    node_name: String,
}

/// Sends events.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Entry>,
}

impl Events {
    /// Starts the task that sends; it ends when the last clone is gone.
    pub fn start(client: Client, component: &'static str, node_name: String) -> Events {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source = Source {
            component,
            node_name,
        };
        tokio::spawn(send_all(client, source, receiver));
        Events { sender }
    }

    /// Tells what happened to `subject`, or to the part of it at `field_path`. Whoever calls it has logged it.
    pub fn send(
        &self,
        subject: Subject,
        field_path: Option<String>,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        let entry = Entry {
            subject,
            field_path,
            kind,
            reason,
            message,
        };
        // A full queue means that the API server is away; the log has it.
        let _ = self.sender.try_send(entry);
    }
}

async fn send_all(client: Client, source: Source, mut receiver: mpsc::Receiver<Entry>) {
    let mut correlator = Correlator::default();
    while let Some(entry) = receiver.recv().await {
        let reason = entry.reason;
        let Some(told) = correlator.tell(entry, Timestamp::now()) else {
            tracing::debug!(reason, "an event too many of one object");
            continue;
        };
        let sent = tokio::time::timeout(PATIENCE, send(&client, &source, &told)).await;
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
    source: &Source,
    told: &Told,
) -> Result<Option<String>, kube::Error> {
    let api = Api::<Event>::namespaced(client.clone(), &told.entry.subject.namespace);
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
    let event = event(&told.entry, source);
    api.create(&PostParams::default(), &event).await?;
    Ok(event.metadata.name)
}

fn event(entry: &Entry, source: &Source) -> Event {
    let now = Timestamp::now();
    let subject = &entry.subject;
    // A number that rises keeps names apart and in order.
    let name = format!("{}.{:x}", subject.name, now.as_nanosecond());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(subject.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(subject.kind.into()),
            name: Some(subject.name.clone()),
            // The event of a node is in a namespace, the node is in none.
            namespace: Some(subject.namespace.clone()).filter(|_| subject.kind != "Node"),
            uid: Some(subject.uid.clone()).filter(|uid| !uid.is_empty()),
            field_path: entry.field_path.clone(),
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
            component: Some(source.component.into()),
            host: Some(source.node_name.clone()),
        }),
        reporting_component: Some(source.component.into()),
        reporting_instance: Some(source.node_name.clone()),
        ..Event::default()
    }
}
