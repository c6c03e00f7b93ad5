//! The requests that become streams: which container is meant, whether it runs, and who serves it from there.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::negotiate::upgrade;
use super::port_forward::{self, Network};
use super::remote::{self, Asked, Remote};
use super::{attach, exec};
use crate::network::namespaces::Namespace;
use crate::pod::{ContainerSummary, PodSummary};
use crate::server::https::{KubeletApi, find_container, find_pod};

/// Upgraded connections at once. They do not count among those that ask and are answered.
const MAX_SESSIONS: usize = 512;

/// Places for upgraded connections.
#[derive(Clone)]
pub struct Sessions(Arc<Semaphore>);

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions(Arc::new(Semaphore::new(MAX_SESSIONS)))
    }
}

impl Sessions {
    fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = self.0.clone().try_acquire_owned();
        place.map_err(|_| {
            let text = "too many streams are open on this node; close some, or try again later";
            (StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
        })
    }
}

type Refusal = (StatusCode, String);
type Parameters = Query<Vec<(String, String)>>;

pub(in crate::server) fn routes() -> Router<KubeletApi> {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(attach))
        .route("/portForward/{namespace}/{pod}", any(port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(port_forward))
}

/// What a path names: a container of a pod.
#[derive(serde::Deserialize)]
struct Place {
    namespace: String,
    pod: String,
    #[serde(default)]
    uid: Option<String>,
    container: String,
}

impl Place {
    /// The container, if it runs.
    fn running(&self, api: &KubeletApi) -> Result<(PodSummary, ContainerSummary), Refusal> {
        let Place {
            namespace,
            pod,
            uid,
            container,
        } = self;
        let found = find_container(&api.pods, namespace, pod, container)?;
        if uid.as_ref().is_some_and(|uid| *uid != found.0.uid) {
            let text = format!("pod {pod:?} in namespace {namespace:?} has another uid");
            return Err((StatusCode::NOT_FOUND, text));
        }
        if found.1.state != "running" {
            let text = format!(
                "container {container:?} in pod {pod:?} does not run: {}",
                found.1.state
            );
            return Err((StatusCode::BAD_REQUEST, text));
        }
        Ok(found)
    }
}

async fn exec(
    State(api): State<KubeletApi>,
    Path(place): Path<Place>,
    Query(query): Parameters,
    request: Request,
) -> Response {
    let ready = || {
        let (_, container) = place.running(&api)?;
        let asked = Asked::read(&query).map_err(bad_request)?;
        let command = values(&query, "command");
        if command.is_empty() {
            return Err(bad_request("you must specify a command"));
        }
        Ok((container, asked, command, api.sessions.enter()?))
    };
    let (container, asked, command, session) = match ready() {
        Ok(ready) => ready,
        Err(refusal) => return refusal.into_response(),
    };
    let runtime = api.runtime.clone();
    upgrade(
        request,
        &remote::SPDY,
        &remote::WEBSOCKET,
        move |upgraded, version| async move {
            match Remote::open(upgraded, &version, asked).await {
                Ok(remote) => exec::run(runtime, container.id, command, asked, remote).await,
                Err(error) => tracing::debug!(%error, "a command was not begun"),
            }
            drop(session);
        },
    )
    .await
}

async fn attach(
    State(api): State<KubeletApi>,
    Path(place): Path<Place>,
    Query(query): Parameters,
    request: Request,
) -> Response {
    let ready = || {
        let found = place.running(&api)?;
        let asked = Asked::read(&query).map_err(bad_request)?;
        Ok::<_, Refusal>((found, asked, api.sessions.enter()?))
    };
    let ((pod, container), asked, session) = match ready() {
        Ok(ready) => ready,
        Err(refusal) => return refusal.into_response(),
    };
    let log = api
        .paths
        .log(&pod.id(), &container.name, container.restarts);
    let attached = match api.runtime.attach(&container.id, &log).await {
        Ok(attached) => attached,
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    if asked.tty && !attached.stdio.tty {
        let text = format!("container {:?} has no terminal", container.name);
        return bad_request(&text).into_response();
    }
    let runtime = api.runtime.clone();
    // The container's output is that of its terminal, whether or not the client has one.
    let asked = Asked {
        stderr: asked.stderr && !attached.stdio.tty,
        ..asked
    };
    upgrade(
        request,
        &remote::SPDY,
        &remote::WEBSOCKET,
        move |upgraded, version| async move {
            match Remote::open(upgraded, &version, asked).await {
                Ok(remote) => attach::run(runtime, container.id, attached, remote).await,
                Err(error) => tracing::debug!(%error, "a client was not attached"),
            }
            drop(session);
        },
    )
    .await
}

/// What a path names: a pod.
#[derive(serde::Deserialize)]
struct PodPlace {
    namespace: String,
    pod: String,
    #[serde(default)]
    uid: Option<String>,
}

async fn port_forward(
    State(api): State<KubeletApi>,
    Path(place): Path<PodPlace>,
    request: Request,
) -> Response {
    let ready = || {
        let PodPlace {
            namespace,
            pod: name,
            uid,
        } = &place;
        let found = find_pod(&api.pods, namespace, name)
            .filter(|pod| uid.as_ref().is_none_or(|uid| *uid == pod.uid));
        let Some(pod) = found else {
            let text = format!("pod {name:?} in namespace {namespace:?} is not on this node");
            return Err((StatusCode::NOT_FOUND, text));
        };
        if pod.phase != "Running" {
            let text = format!(
                "unable to forward port because pod is not running. Current status={}",
                pod.phase
            );
            return Err(bad_request(&text));
        }
        Ok((pod, api.sessions.enter()?))
    };
    let (pod, session) = match ready() {
        Ok(ready) => ready,
        Err(refusal) => return refusal.into_response(),
    };
    let network = match pod.host_network {
        true => Network::Host,
        false => Network::Namespace(api.paths.pin(Namespace::Net, &pod.uid)),
    };
    upgrade(
        request,
        &port_forward::SPDY,
        &port_forward::WEBSOCKET,
        move |upgraded, _| async move {
            if let Err(error) = port_forward::run(upgraded, network, pod.name).await {
                tracing::debug!(%error, "nothing was forwarded");
            }
            drop(session);
        },
    )
    .await
}

fn bad_request(text: &str) -> Refusal {
    (StatusCode::BAD_REQUEST, text.to_owned())
}

fn values(query: &[(String, String)], name: &str) -> Vec<String> {
    let named = query.iter().filter(|(known, _)| known == name);
    named.map(|(_, value)| value.clone()).collect()
}
