//! `pods/exec`, `pods/attach` and `pods/portforward`: the upgrade is asked of the node's agent, and then bytes are passed
//! on both ways. What they mean, client and agent know.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderName, Method, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Api;
use super::error::ApiError;
use super::kubelet::{self, escape};
use super::pipeline;
use super::request::{self, Query, ResourceRequest};
use crate::auth::User;
use crate::resources::{Kind, Subresource};
use crate::store::cache::Freshness;

/// Streams at once. They are neither requests that are worked on nor among the server's connections.
const MOST: usize = 2048;

/// What the client's half of the negotiation says, and the agent's.
const PASSED_ON: [HeaderName; 8] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
    HeaderName::from_static("x-stream-protocol-version"),
    HeaderName::from_static("x-accepted-stream-protocol-versions"),
];

/// Places for streams.
pub(super) struct Open(Arc<Semaphore>);

impl Default for Open {
    fn default() -> Self {
        Open(Arc::new(Semaphore::new(MOST)))
    }
}

impl Open {
    /// One of the places, if there is one.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = self.0.clone().try_acquire_owned();
        place.map_err(|_| ApiError::too_many_requests())
    }
}

/// Passes bytes on between two ends that switch protocols, as long as both are there.
pub(super) fn join(near: OnUpgrade, far: OnUpgrade, place: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        match tokio::try_join!(near, far) {
            Ok((near, far)) => {
                let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
                if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
                    tracing::debug!(%error, "a stream was cut");
                }
            }
            Err(error) => tracing::debug!(%error, "a stream did not begin"),
        }
        drop(place);
    });
}

/// What is asked of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Exec,
    Attach,
    PortForward,
}

impl Stream {
    /// The stream that a request is for, if it is for one.
    pub(super) fn of(kind: &Kind, target: &ResourceRequest) -> Option<Stream> {
        let stream = match pipeline::subresource_of(kind, &target.subresource)? {
            Subresource::Exec => Stream::Exec,
            Subresource::Attach => Stream::Attach,
            Subresource::PortForward => Stream::PortForward,
            _ => return None,
        };
        matches!(target.verb, "get" | "create").then_some(stream)
    }

    /// The name of a parameter in the kubelet's words; `None` for one that it does not take.
    fn parameter(self, name: &str) -> Option<&str> {
        Some(match (self, name) {
            (Stream::PortForward, "ports") => "port",
            (Stream::PortForward, _) => return None,
            (_, "stdin") => "input",
            (_, "stdout") => "output",
            (_, "stderr") => "error",
            (_, "tty") => "tty",
            (Stream::Exec, "command") => "command",
            _ => return None,
        })
    }
}

/// Asks the agent for the upgrade that the client asks for, and passes on what it answers.
pub(super) async fn serve(
    api: &Api,
    user: &User,
    kind: &'static Kind,
    target: &ResourceRequest,
    stream: Stream,
    mut request: Request,
) -> Result<Response, ApiError> {
    if target.verb == "get" {
        // A WebSocket can only begin with GET. What it does to the pod is the same.
        let as_create = ResourceRequest {
            verb: "create",
            ..target.clone()
        };
        pipeline::authorize(api, user, &as_create, &Query::default()).await?;
    }
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let (namespace, name) = (&target.namespace, &target.name);
    let object = api
        .registry
        .get(kind, namespace, name, Freshness::Latest)
        .await?;
    let pod: Value = serde_json::from_slice(&object.json).map_err(ApiError::internal)?;
    let parameters: Vec<_> = request::pairs(request.uri()).collect();
    let path = path(stream, &pod, target, &parameters)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    let place = api.streams.place()?;
    let address = kubelet::agent_address(api, node).await?;
    let method = match *request.method() {
        Method::POST => Method::POST,
        _ => Method::GET,
    };
    let mut asked = http::Request::builder().method(method).uri(&path);
    for name in &PASSED_ON {
        for value in request.headers().get_all(name) {
            asked = asked.header(name, value);
        }
    }
    let asked = asked
        .body(Empty::<Bytes>::new())
        .map_err(ApiError::internal)?;
    let mut answer = api.kubelet.send(address, asked).await.map_err(|error| {
        ApiError::internal(format!("error dialing backend: https://{address}: {error}"))
    })?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(kubelet::refused(answer).await);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in &PASSED_ON {
        for value in answer.headers().get_all(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    let (near, far) = (
        hyper::upgrade::on(&mut request),
        hyper::upgrade::on(&mut answer),
    );
    join(near, far, place);
    Ok(response)
}

/// What the agent is asked for.
fn path(
    stream: Stream,
    pod: &Value,
    target: &ResourceRequest,
    parameters: &[(String, String)],
) -> Result<String, ApiError> {
    let ResourceRequest {
        namespace, name, ..
    } = target;
    let container = || {
        let asked = parameters.iter().find(|(name, _)| name == "container");
        kubelet::container(pod, asked.map_or("", |(_, value)| value))
    };
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let mut path = match stream {
        Stream::PortForward => format!("/portForward/{namespace}/{name}?"),
        Stream::Exec if matches!(phase, "Succeeded" | "Failed") => {
            return Err(ApiError::bad_request(format!(
                "cannot exec into a container in a completed pod; current phase is {phase}"
            )));
        }
        Stream::Exec => format!("/exec/{namespace}/{name}/{}?", container()?),
        Stream::Attach => format!("/attach/{namespace}/{name}/{}?", container()?),
    };
    for (name, value) in parameters {
        let Some(name) = stream.parameter(name) else {
            continue;
        };
        let value = match (name, value.as_str()) {
            ("command" | "port", value) => escape(value),
            // The kubelet knows a flag by this value alone.
            (_, "" | "0" | "false") => continue,
            _ => "1".to_owned(),
        };
        path.push_str(&format!("{name}={value}&"));
    }
    path.pop();
    Ok(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(subresource: &str, query: &str) -> Result<String, ApiError> {
        let kind = crate::resources::find("", "v1", "pods").expect("a kind");
        let uri = format!("/api/v1/namespaces/a/pods/p/{subresource}?{query}");
        let uri: http::Uri = uri.parse().expect("a uri");
        let Some(request::Target::Resource(target)) =
            request::target(&Method::POST, &uri, &Query::of(&uri))
        else {
            panic!("{uri} is no resource");
        };
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        let stream = Stream::of(kind, &target).expect("a stream");
        path(
            stream,
            &pod,
            &target,
            &request::pairs(&uri).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn the_agent_is_asked_in_the_kubelets_words() {
        assert_eq!(
            asked(
                "exec",
                "command=sh&command=-c&command=a%20%26&stdin=true&stdout=1&stderr=false&tty=true"
            )
            .ok()
            .as_deref(),
            Some("/exec/a/p/c?command=sh&command=-c&command=a%20%26&input=1&output=1&tty=1")
        );
        assert_eq!(
            asked("attach", "container=c&stdout=true").ok().as_deref(),
            Some("/attach/a/p/c?output=1")
        );
        assert_eq!(
            asked("portforward", "").ok().as_deref(),
            Some("/portForward/a/p")
        );
        assert_eq!(
            asked("portforward", "ports=80&ports=81").ok().as_deref(),
            Some("/portForward/a/p?port=80&port=81")
        );
        assert!(asked("exec", "container=other").is_err());
    }
}
