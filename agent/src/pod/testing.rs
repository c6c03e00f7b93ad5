//! A small API server inside the test's process, as far as the pod half talks to one.

pub(super) mod node;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::runtime::{Container, ContainerState, Exit, ExitCause, PodRef};
use crate::testing::steps::Steps;

/// The objects, and everyone who watches them. Clones are the same server.
#[derive(Clone)]
pub(super) struct FakeApi {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<Value>,
}

/// The pods of all tests of this process, and which server each is of.
static NAMES: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Value>,
    version: u64,
    events: Vec<String>,
    config_maps: BTreeMap<String, Value>,
    away: bool,
    /// No ConfigMap is given, and no answer either.
    is_silent: bool,
    /// How many were asked for.
    tokens: u64,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl FakeApi {
    pub(super) fn new() -> FakeApi {
        FakeApi {
            state: Arc::default(),
            changes: broadcast::channel(1024).0,
        }
    }

    pub(super) fn client(&self) -> Client {
        self.client_by(Arc::default())
    }

    /// A client whose writes are steps, but for Events, which are sent whenever there is time.
    pub(super) fn client_by(&self, steps: Arc<Steps>) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (api, steps) = (api.clone(), steps.clone());
            async move {
                let step = step(&request);
                let answer = api.answer(request);
                Ok::<_, Infallible>(match step {
                    Some(step) => steps.take(&step, answer).await,
                    None => answer.await,
                })
            }
        });
        Client::new(service, "default")
    }

    /// Adds a pod that is bound to the node. Its name is to be the only one of all tests; see [`uid`].
    pub(super) fn create(&self, name: &str, spec: Value) {
        let own = Arc::as_ptr(&self.state) as usize;
        let first = *NAMES.lock().unwrap().entry(name.to_owned()).or_insert(own);
        assert_eq!(first, own, "another test has a pod {name}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": uid(name)},
            "spec": spec, "status": {"phase": "Pending"},
        });
        self.put("ADDED", name, pod);
    }

    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.state.lock().unwrap().pods[name].clone();
        change(&mut pod);
        self.put("MODIFIED", name, pod);
    }

    /// What `kubectl delete` does to a pod.
    pub(super) fn delete(&self, name: &str, grace_seconds: i64) {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace_seconds);
        self.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!(at.to_string());
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
        });
    }

    /// What `kubectl delete --force` does to a pod.
    pub(super) fn remove(&self, name: &str) {
        let removed = self.state.lock().unwrap().pods.remove(name);
        if let Some(pod) = removed {
            let _ = self.changes.send(json!({"type": "DELETED", "object": pod}));
        }
    }

    pub(super) fn put_config_map(&self, name: &str, data: Value) {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
        self.state
            .lock()
            .unwrap()
            .config_maps
            .insert(name.into(), map);
    }

    pub(super) fn remove_config_map(&self, name: &str) {
        self.state.lock().unwrap().config_maps.remove(name);
    }

    /// Whether every request fails from now on.
    pub(super) fn set_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// Whether nobody who asks for a ConfigMap is answered from now on.
    pub(super) fn set_silent(&self, is_silent: bool) {
        self.state.lock().unwrap().is_silent = is_silent;
    }

    pub(super) fn pod(&self, name: &str) -> Option<Pod> {
        let pod = self.state.lock().unwrap().pods.get(name).cloned()?;
        Some(serde_json::from_value(pod).unwrap())
    }

    pub(super) fn events(&self) -> Vec<String> {
        self.state.lock().unwrap().events.clone()
    }

    /// Every change of a pod from now on.
    pub(super) fn changes(&self) -> broadcast::Receiver<Value> {
        self.changes.subscribe()
    }

    /// Waits until the status of a pod is as wanted.
    pub(super) async fn wait(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&PodStatus) -> bool,
    ) -> PodStatus {
        let mut changes = self.changes.subscribe();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let status = self
                .pod(name)
                .and_then(|pod| pod.status)
                .unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            if tokio::time::timeout_at(deadline, changes.recv())
                .await
                .is_err()
            {
                panic!(
                    "{name} did not become {what}: {}\n{:#?}",
                    json!(status),
                    self.events()
                );
            }
        }
    }

    pub(super) async fn wait_gone(&self, name: &str) {
        let mut changes = self.changes.subscribe();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while let Some(pod) = self.pod(name) {
            if tokio::time::timeout_at(deadline, changes.recv())
                .await
                .is_err()
            {
                panic!("{name} is still there: {}", json!(pod));
            }
        }
    }

    fn put(&self, kind: &str, name: &str, mut pod: Value) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.pods.insert(name.into(), pod.clone());
        let _ = self.changes.send(json!({"type": kind, "object": pod}));
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let query = parts.uri.query().unwrap_or_default();
        let bytes = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if self.state.lock().unwrap().away {
            return error(503, "away");
        }
        match (&parts.method, path.as_slice()) {
            (&Method::GET, ["api", "v1", "pods"]) if query.contains("watch=true") => {
                self.watch(query)
            }
            (&Method::GET, ["api", "v1", "pods"]) => {
                let state = self.state.lock().unwrap();
                let items: Vec<&Value> = state.pods.values().collect();
                ok(json!({
                    "apiVersion": "v1", "kind": "PodList",
                    "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
                }))
            }
            (&Method::PATCH, ["api", "v1", "namespaces", _, "pods", name, "status"]) => {
                let Some(known) = self.state.lock().unwrap().pods.get(*name).cloned() else {
                    return error(404, "pod not found");
                };
                if known["metadata"]["uid"] != body["metadata"]["uid"] {
                    return error(
                        409,
                        "Precondition failed: UID in precondition: a, UID in object meta: b",
                    );
                }
                let mut pod = known;
                merge(&mut pod["status"], &body["status"]);
                self.put("MODIFIED", name, pod);
                ok(self.state.lock().unwrap().pods[*name].clone())
            }
            // Of each name but one, and its handler is called the same.
            (&Method::GET, ["apis", "node.k8s.io", "v1", "runtimeclasses", name]) => match *name {
                "absent" => error(404, "no such class"),
                name => ok(json!({
                    "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
                    "metadata": {"name": name}, "handler": name,
                })),
            },
            (&Method::GET, ["api", "v1", "nodes", name]) => ok(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": "of-node"},
            })),
            (&Method::POST, ["api", "v1", "namespaces", namespace, "pods"]) => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if self.pod(&name).is_some() {
                    return error(409, "pod already exists");
                }
                let mut pod = body;
                let next = self.state.lock().unwrap().version + 1;
                pod["metadata"]["uid"] = json!(format!("of-the-api-{next}"));
                pod["metadata"]["namespace"] = json!(namespace);
                pod["status"] = json!({"phase": "Pending"});
                self.put("ADDED", &name, pod.clone());
                ok(pod)
            }
            (&Method::DELETE, ["api", "v1", "namespaces", _, "pods", name]) => match self.pod(name)
            {
                None => error(404, "pod not found"),
                Some(pod)
                    if body["preconditions"]["uid"]
                        .as_str()
                        .is_some_and(|uid| Some(uid) != pod.metadata.uid.as_deref()) =>
                {
                    error(
                        409,
                        "Precondition failed: UID in precondition: a, UID in object meta: b",
                    )
                }
                Some(pod) => {
                    self.remove(name);
                    ok(json!(pod))
                }
            },
            (&Method::GET, ["api", "v1", "namespaces", _, "configmaps", _])
                if self.state.lock().unwrap().is_silent =>
            {
                std::future::pending().await
            }
            (&Method::GET, ["api", "v1", "namespaces", _, "configmaps", name]) => {
                match self.state.lock().unwrap().config_maps.get(*name) {
                    Some(map) => ok(map.clone()),
                    None => error(404, "configmap not found"),
                }
            }
            (
                &Method::POST,
                [
                    "api",
                    "v1",
                    "namespaces",
                    _,
                    "serviceaccounts",
                    name,
                    "token",
                ],
            ) => {
                let mut state = self.state.lock().unwrap();
                state.tokens += 1;
                let bound = &body["spec"]["boundObjectRef"]["name"];
                let token = format!(
                    "token-{}-of-{name}-for-{}",
                    state.tokens,
                    bound.as_str().unwrap()
                );
                let seconds = body["spec"]["expirationSeconds"].as_i64().unwrap();
                let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
                ok(json!({
                    "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": body["spec"],
                    "status": {"token": token, "expirationTimestamp": expires.to_string()},
                }))
            }
            (&Method::POST, ["api", "v1", "namespaces", _, "events"]) => {
                let text = format!(
                    "{}: {}",
                    body["reason"].as_str().unwrap(),
                    body["message"].as_str().unwrap()
                );
                self.state.lock().unwrap().events.push(text);
                ok(body)
            }
            _ => error(404, "no such path"),
        }
    }

    /// Tells what changed since the version that the query names, and whatever changes from now on.
    fn watch(&self, query: &str) -> Answer {
        let since: u64 = query
            .split('&')
            .find_map(|part| part.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        let frame =
            |change: Value| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{change}\n"))));
        let state = self.state.lock().unwrap();
        let version = |pod: &Value| {
            pod["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let missed: Vec<_> = state
            .pods
            .values()
            .filter(|pod| version(pod) > since)
            .map(|pod| frame(json!({"type": "MODIFIED", "object": pod})))
            .collect();
        let changes = BroadcastStream::new(self.changes.subscribe())
            .filter_map(move |change| async move { change.ok().map(frame) });
        let all: std::pin::Pin<Box<dyn Stream<Item = _> + Send + Sync>> =
            Box::pin(futures::stream::iter(missed).chain(changes));
        Response::new(BoxBody::new(StreamBody::new(all)))
    }
}

/// The uid of a pod. Ids of containers follow from it, and every containerd of the machine has its processes in the
/// same directory of runc's: so it differs from process to process.
pub(super) fn uid(name: &str) -> String {
    format!("{}-{name}", std::process::id())
}

/// The name of a request that changes something.
fn step(request: &Request<Body>) -> Option<String> {
    let mut parts = request.uri().path().trim_matches('/').split('/').skip(4);
    let kind = parts.next().filter(|kind| *kind != "events")?;
    let (_, part) = (parts.next(), parts.next().unwrap_or_default());
    let is_look = request.method() == Method::GET;
    (!is_look).then(|| format!("{} {kind}/{part}", request.method()))
}

fn ok(value: Value) -> Answer {
    Response::new(BoxBody::new(http_body_util::Full::new(Bytes::from(
        value.to_string(),
    ))))
}

fn error(code: u16, message: &str) -> Answer {
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    let mut answer = ok(status);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}

fn merge(target: &mut Value, patch: &Value) {
    let (Some(fields), Some(patch)) = (target.as_object_mut(), patch.as_object()) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            let mut value = value.clone();
            if let Some(list) = value.as_array_mut() {
                // Lists are replaced as a whole here: what directives say is so already.
                list.retain(|entry| entry.get("$patch").is_none());
            }
            fields.insert(key.clone(), value);
        }
    }
}

/// A container of this name that has failed, when time began.
pub(super) fn failed(name: &str) -> Container {
    let exit = Exit {
        code: 1,
        at: Timestamp::UNIX_EPOCH,
        cause: ExitCause::Process,
        message: String::new(),
    };
    let pod = PodRef {
        uid: "u".into(),
        namespace: "d".into(),
        name: "p".into(),
    };
    Container {
        id: name.to_owned(),
        pod,
        name: name.to_owned(),
        attempt: 0,
        streak: 0,
        spec_hash: String::new(),
        image: String::new(),
        image_id: String::new(),
        given: String::new(),
        stop_signal: 15,
        user: None,
        created_at: Timestamp::UNIX_EPOCH,
        earlier_boot: false,
        hook_due: false,
        state: ContainerState::Exited(exit),
    }
}
