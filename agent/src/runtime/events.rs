//! Listening to containerd's events, through restarts of containerd.

use std::time::Duration;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;

use super::RuntimeEvent;
use super::rpc::{endless, request};

/// The topic of the event that an agent sends itself, to learn that its subscription stands.
const HELLO: &str = "/kernelet/hello";

/// How long to wait before the next attempt to subscribe.
const RETRY: Duration = Duration::from_millis(250);

/// How long an answer to the own event may take before it is sent again.
const HELLO_AGAIN: Duration = Duration::from_millis(50);

/// Forwards events until the receiver is dropped.
pub(super) async fn forward(channel: Channel, sender: mpsc::Sender<RuntimeEvent>) {
    while !sender.is_closed() {
        if let Err(status) = listen(&channel, &sender).await {
            tracing::warn!(
                reason = status.message(),
                "containerd's events stopped; listening again"
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen(channel: &Channel, sender: &mpsc::Sender<RuntimeEvent>) -> Result<(), Status> {
    let mut client = EventsClient::new(channel.clone());
    let filters = vec![
        "topic==\"/tasks/exit\"".to_owned(),
        format!("topic==\"{HELLO}\""),
    ];
    // containerd answers a subscription with its first event and not before, so the agent makes one.
    let subscribe = client.subscribe(endless(SubscribeRequest { filters }, None));
    let hello = async {
        loop {
            let event = Any {
                type_url: "kernelet.io/Hello".to_owned(),
                value: Vec::new(),
            };
            let message = PublishRequest {
                topic: HELLO.to_owned(),
                event: Some(event),
            };
            if let Err(status) = EventsClient::new(channel.clone())
                .publish(request(message, None))
                .await
            {
                return status;
            }
            tokio::time::sleep(HELLO_AGAIN).await;
        }
    };
    let mut stream = tokio::select! {
        stream = subscribe => stream?.into_inner(),
        status = hello => return Err(status),
    };
    if sender.send(RuntimeEvent::Listening).await.is_err() {
        return Ok(());
    }
    loop {
        let envelope = tokio::select! {
            envelope = stream.message() => envelope?,
            () = sender.closed() => return Ok(()),
        };
        let Some(envelope) = envelope else {
            return Err(Status::unavailable("the stream ended"));
        };
        if let Some(event) = decode(&envelope)
            && sender.send(event).await.is_err()
        {
            return Ok(());
        }
    }
}

/// The end of a container's first process; nothing for the end of a command that was run in it.
fn decode(envelope: &Envelope) -> Option<RuntimeEvent> {
    let exit = TaskExit::decode(envelope.event.as_ref()?.value.as_slice()).ok()?;
    (envelope.topic == "/tasks/exit" && exit.id == exit.container_id).then_some(
        RuntimeEvent::Exited {
            id: exit.container_id,
        },
    )
}
