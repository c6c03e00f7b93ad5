//! Tells people what a controller did and why, as core/v1 Events. Best effort: an Event never delays or fails the work.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

/// More than this many Events waiting means that the server cannot take them; newer ones are dropped.
const BACKLOG: usize = 1024;
/// A repeated Event counts up the earlier one if that is not older than this.
const REPEAT_WINDOW: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug)]
struct Report {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Takes Events and writes them in the background.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    sender: mpsc::Sender<Report>,
}

impl Recorder {
    /// `component` is the Event's source, as in `deployment-controller`.
    pub(crate) fn start(client: kube::Client, component: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(write_all(client, component, receiver));
        Self { sender }
    }

    pub(crate) fn report(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        // A full queue drops the Event: it is news, not state.
        let _ = self.sender.try_send(Report {
            about,
            severity,
            reason,
            message,
        });
    }
}

/// How an Event names `object`.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// Same object, reason and message: the same news.
type Sameness = (Option<String>, Option<String>, &'static str, String);

struct Written {
    name: String,
    count: i32,
    at: Timestamp,
}

async fn write_all(
    client: kube::Client,
    component: &'static str,
    mut reports: mpsc::Receiver<Report>,
) {
    let mut known: HashMap<Sameness, Written> = HashMap::new();
    while let Some(report) = reports.recv().await {
        let now = Timestamp::now();
        known.retain(|_, written| now.duration_since(written.at).unsigned_abs() < REPEAT_WINDOW);
        let namespace = report
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let sameness = (
            report.about.uid.clone(),
            report.about.name.clone(),
            report.reason,
            report.message.clone(),
        );
        if let Some(written) = known.get_mut(&sameness) {
            let patch = json!({"count": written.count + 1, "lastTimestamp": Time(now)});
            if api
                .patch(
                    &written.name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await
                .is_ok()
            {
                written.count += 1;
                written.at = now;
                continue;
            }
        }
        let event = event_of(&report, component, &namespace, now);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                let name = event.metadata.name.unwrap_or_default();
                known.insert(
                    sameness,
                    Written {
                        name,
                        count: 1,
                        at: now,
                    },
                );
            }
            Err(error) => debug!(%error, reason = report.reason, "cannot write an Event"),
        }
    }
}

fn event_of(report: &Report, component: &str, namespace: &str, now: Timestamp) -> Event {
    let mut event = Event {
        involved_object: report.about.clone(),
        reason: Some(report.reason.into()),
        message: Some(report.message.clone()),
        type_: Some(report.severity.as_str().into()),
        source: Some(EventSource {
            component: Some(component.into()),
            host: None,
        }),
        reporting_component: Some(component.into()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        ..Event::default()
    };
    // Name and a time in hexadecimal, as upstream names them: unique without asking anybody.
    let name = report.about.name.as_deref().unwrap_or("unknown");
    event.metadata.name = Some(format!("{name}.{:x}", now.as_nanosecond()));
    event.metadata.namespace = Some(namespace.into());
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_about_what_from_whom_and_when() {
        let report = Report {
            about: ObjectReference {
                name: Some("web".into()),
                namespace: Some("ns".into()),
                ..Default::default()
            },
            severity: Severity::Warning,
            reason: "FailedScheduling",
            message: "0/1 nodes are available".into(),
        };
        let event = event_of(
            &report,
            "default-scheduler",
            "ns",
            Timestamp::from_second(1).unwrap(),
        );
        assert_eq!(event.metadata.name.as_deref(), Some("web.3b9aca00"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(
            event.source.unwrap().component.as_deref(),
            Some("default-scheduler")
        );
        assert_eq!(event.count, Some(1));
    }
}
