//! Requests to containerd: the connection, how long an answer may take, and what an error means.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use super::RuntimeError;

/// containerd's namespace for Kubernetes: its CRI ImageService pulls into the same one.
const NAMESPACE: &str = "k8s.io";

/// How long containerd may take for what it knows by heart: its version, a record, the state of a task.
pub(super) const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// How long containerd may take for an answer; the kubelet gives it as long. Without an end, a containerd that hangs would
/// hold the workers of its pods for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// The same for what moves a whole layer.
pub(super) const LAYER_PATIENCE: Duration = Duration::from_secs(3600);

/// Connects at the first request, and again whenever the connection is lost.
pub(super) fn connect(socket: &Path) -> Channel {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is only there for the form: the connector knows the socket.
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector)
}

/// A request that is given up after `patience`, here and in containerd.
pub(super) fn within<T>(patience: Duration, mut request: Request<T>) -> Request<T> {
    request.set_timeout(patience);
    request
}

/// A request that carries containerd's namespace, and a lease if there is one. It is given up after [`PATIENCE`].
pub(super) fn request<T>(message: T, lease: Option<&str>) -> Request<T> {
    within(PATIENCE, endless(message, lease))
}

/// The same for an answer that goes on and on.
pub(super) fn endless<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = tonic::metadata::MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    if let Some(lease) = lease.and_then(|lease| lease.parse().ok()) {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    request
}

/// The error of a request that containerd did not fulfil.
pub(super) fn failed(action: impl Into<String>, status: &Status) -> RuntimeError {
    // The connection's own word that the time is up, or containerd's, whose code for it is not always the right one.
    let late = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
        || status.message().contains("context deadline exceeded");
    if late {
        return RuntimeError::Late {
            action: action.into(),
        };
    }
    if is_transport(status) {
        return RuntimeError::Unreachable {
            socket: PathBuf::new(),
            reason: status.message().to_owned(),
        };
    }
    RuntimeError::Failed {
        action: action.into(),
        reason: status.message().to_owned(),
    }
}

/// Whether containerd itself was away.
pub(super) fn is_transport(status: &Status) -> bool {
    // A status that never came from containerd has the transport's error as its source.
    let local = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable || (local && status.code() == Code::Unknown)
}

/// The error of a container that could not be started, apart from the runtime's own troubles.
pub(super) fn start_failure(id: &str, status: &Status) -> RuntimeError {
    let error = failed(format!("start container {id}"), status);
    let RuntimeError::Failed { reason, .. } = &error else {
        return error;
    };
    // Only runc's word is about the container. Before it is asked, or where an earlier attempt is in the way that containerd
    // still takes apart because its agent was killed, the container may yet be started.
    if reason.contains("OCI runtime") && !reason.contains("already exists") {
        return RuntimeError::Start(reason.clone());
    }
    error
}

/// Escapes a path for a URI's path or query value.
pub(super) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
