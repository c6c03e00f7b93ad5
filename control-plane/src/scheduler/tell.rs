//! Tells people why a pod waits: an Event at each try, and the pod's condition when the reason is new.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::debug;

use super::snapshot::PodInfo;
use crate::controllers::events::{Recorder, Severity};

/// A message that a pod has now.
struct Told {
    uid: String,
    message: String,
}

pub(super) struct Teller {
    client: kube::Client,
    events: Recorder,
    /// The message that each waiting pod has, by uid.
    told: HashMap<String, String>,
    /// Writes under way. One that fails gives nothing: it is told again at the next try.
    writing: JoinSet<Option<Told>>,
    /// To take them back, by uid.
    handles: HashMap<String, AbortHandle>,
}

impl Teller {
    pub(super) fn new(client: kube::Client) -> Self {
        Self {
            events: Recorder::start(client.clone(), "default-scheduler"),
            client,
            told: HashMap::new(),
            writing: JoinSet::new(),
            handles: HashMap::new(),
        }
    }

    pub(super) fn scheduled(&self, pod: &PodInfo, node: &str) {
        let message = format!(
            "Successfully assigned {}/{} to {node}",
            pod.namespace, pod.name
        );
        self.events
            .report(about(pod), Severity::Normal, "Scheduled", message);
    }

    pub(super) fn events(&self) -> Recorder {
        self.events.clone()
    }

    pub(super) fn unschedulable(&mut self, pod: &PodInfo, message: String) {
        self.events.report(
            about(pod),
            Severity::Warning,
            "FailedScheduling",
            message.clone(),
        );
        if self.told.get(&pod.uid) == Some(&message) {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let (uid, name) = (pod.uid.clone(), pod.name.clone());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": Time(Timestamp::now()), "lastProbeTime": null,
        });
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
        let handle = self.writing.spawn(async move {
            let params = PatchParams::default();
            match api
                .patch_status(&name, &params, &Patch::Strategic(&patch))
                .await
            {
                Ok(_) => Some(Told { uid, message }),
                Err(error) => {
                    debug!(pod = name, %error, "cannot say that the pod is unschedulable");
                    None
                }
            }
        });
        if let Some(older) = self.handles.insert(pod.uid.clone(), handle) {
            older.abort();
        }
    }

    /// The pod waits no more: what is not yet written must not be written over its binding.
    pub(super) fn take_back(&mut self, uid: &str) {
        self.told.remove(uid);
        if let Some(handle) = self.handles.remove(uid) {
            handle.abort();
        }
    }

    /// Takes note of the next write that ends. Cancel-safe: a join set loses nothing when polled in vain.
    pub(super) async fn written(&mut self) {
        match self.writing.join_next().await {
            Some(outcome) => self.note(outcome),
            None => std::future::pending().await,
        }
    }

    fn note(&mut self, outcome: Result<Option<Told>, JoinError>) {
        if let Ok(Some(told)) = outcome
            && self.handles.contains_key(&told.uid)
        {
            self.told.insert(told.uid, told.message);
        }
        self.handles.retain(|_, handle| !handle.is_finished());
    }
}

pub(super) fn about(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Method, Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::controllers::testing::pod;

    fn waiting() -> PodInfo {
        PodInfo::of(&pod("p").build())
    }

    #[tokio::test]
    async fn what_is_not_yet_written_is_taken_back() {
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let mut teller = Teller::new(kube::Client::new(silent, "default"));
        teller.unschedulable(&waiting(), "no node".into());
        teller.take_back(&waiting().uid);
        let ended = teller.writing.join_next().await.unwrap();
        assert!(ended.is_err_and(|error| error.is_cancelled()));
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_told_again() {
        let patches = Arc::new(AtomicUsize::new(0));
        let count = patches.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let is_patch = request.method() == Method::PATCH;
            let first = is_patch && count.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                let (code, body) = match first {
                    true => (500, Vec::new()),
                    false => (200, serde_json::to_vec(&pod("p").build()).unwrap()),
                };
                let response = Response::builder().status(code).body(Body::from(body));
                Ok::<_, Infallible>(response.unwrap())
            }
        });
        let mut teller = Teller::new(kube::Client::new(server, "default"));
        for expected in [1, 2, 2] {
            teller.unschedulable(&waiting(), "no node".into());
            if !teller.writing.is_empty() {
                teller.written().await;
            }
            assert_eq!(patches.load(Ordering::SeqCst), expected);
        }
    }
}
