//! The kubelet API: what the API server asks a node about its pods, over TLS with client certificates.
//!
//! A caller is whom its certificate, signed by the cluster's CA, names. Only the API server and administrators may ask:
//! members of `system:masters`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use rustls::RootCertStore;
use rustls::server::{ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::json;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::logs::{self, Options};
use crate::pod::{ContainerSummary, Paths, PodSummary, PodTable};

/// The group whose members may ask.
const ADMINISTRATORS: &str = "system:masters";

/// How long a handshake may take, and then each request's head. A connection without a request ends after that too: its
/// caller may not even have shown who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection on which nothing happens is probed after so long.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Connections at once. More wait in the kernel.
const MAX_CONNECTIONS: usize = 256;
/// Pieces of a log that wait for a slow reader.
const LOG_QUEUE: usize = 16;

/// Why the kubelet API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    #[error("the cluster's CA certificate cannot be read: {0}")]
    Authority(String),
    #[error("callers cannot be checked: {0}")]
    Verifier(#[from] VerifierBuilderError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// What the answers are made from.
#[derive(Clone)]
pub struct KubeletApi {
    pub pods: PodTable,
    /// Where the pods' logs are.
    pub paths: Paths,
    /// Text of the metrics, in the format of Prometheus.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// How callers are checked and the server shows itself. `authorities` are the cluster's CA certificates.
pub fn tls_config(
    authorities: &[CertificateDer<'static>],
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<rustls::ServerConfig, HttpsError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots
            .add(certificate.clone())
            .map_err(|error| HttpsError::Authority(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Without a certificate the handshake succeeds, so that the caller is told 401 rather than cut off.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // One request after the other on a connection: a stream for a log is rare, and what holds a connection is bounded.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, tls: rustls::ServerConfig, api: KubeletApi) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let router = router(api);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // It is never closed.
    while let Ok(permit) = connections.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, acceptor, router, PATIENCE).await {
                        tracing::debug!(%error, "a connection to the kubelet API ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely too many open files: some have to be closed first.
                tracing::warn!(%error, "the kubelet API cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    patience: Duration,
) -> io::Result<()> {
    // A caller that follows a log and vanishes says nothing, and may never be written to.
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER);
    SockRef::from(&stream).set_tcp_keepalive(&probes.with_interval(PATIENCE))?;
    let stream = timeout(patience, acceptor.accept(stream)).await??;
    let caller = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(caller);
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Caller {
    name: String,
    groups: Vec<String>,
}

fn caller(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().ok().map(str::to_owned)
    };
    Some(Caller {
        name: subject.iter_common_name().next().and_then(text)?,
        groups: subject.iter_organization().filter_map(text).collect(),
    })
}

fn router(api: KubeletApi) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs),
        )
        .route("/pods", get(pods))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn(authorize))
        .with_state(api)
}

async fn authorize(request: axum::extract::Request, next: Next) -> Response {
    let caller = request
        .extensions()
        .get::<Option<Caller>>()
        .cloned()
        .flatten();
    match caller {
        None => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Some(caller) if !caller.groups.iter().any(|group| group == ADMINISTRATORS) => {
            let text = format!(
                "Forbidden (user={}, verb=get, resource=nodes, subresource=proxy)",
                caller.name
            );
            (StatusCode::FORBIDDEN, text).into_response()
        }
        Some(_) => next.run(request).await,
    }
}

/// The query of a request for logs, in the API's words.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogQuery {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail_lines: Option<usize>,
    limit_bytes: Option<usize>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
}

impl LogQuery {
    fn options(&self, now: Timestamp) -> Result<Options, String> {
        let since = match (&self.since_time, self.since_seconds) {
            (Some(time), _) => Some(
                time.parse::<Timestamp>()
                    .map_err(|error| format!("sinceTime {time:?}: {error}"))?,
            ),
            (None, Some(seconds)) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, None) => None,
        };
        Ok(Options {
            follow: self.follow,
            tail: self.tail_lines,
            since,
            timestamps: self.timestamps,
            limit: self.limit_bytes,
        })
    }
}

async fn container_logs(
    State(api): State<KubeletApi>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    let options = match query.options(Timestamp::now()) {
        Ok(options) => options,
        Err(reason) => return (StatusCode::BAD_REQUEST, reason).into_response(),
    };
    let found = find(&api.pods, &namespace, &pod, &container);
    let Some((pod, container)) = found else {
        let text = format!(
            "container \"{container}\" of pod \"{pod}\" in namespace \"{namespace}\" is not on this node"
        );
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let attempt = match (container.id.is_empty(), query.previous, container.restarts) {
        (true, _, _) => {
            let text = format!(
                "container \"{}\" in pod \"{}\" is waiting to start: {}",
                container.name, pod.name, container.state
            );
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
        (_, true, 0) => {
            let text = format!(
                "previous terminated container \"{}\" in pod \"{}\" not found",
                container.name, pod.name
            );
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
        (_, true, restarts) => restarts - 1,
        (_, false, restarts) => restarts,
    };
    let path = api.paths.log(&pod.id(), &container.name, attempt);
    let alive = {
        let (pods, id) = (api.pods.clone(), container.id.clone());
        move || is_running(&pods, &id)
    };
    let (sender, receiver) = mpsc::channel(LOG_QUEUE);
    tokio::spawn(async move {
        if let Err(error) = logs::send(path, options, alive, sender).await {
            tracing::warn!(%error, "a log could not be read to its end");
        }
    });
    let body = ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
    (
        [(header::CONTENT_TYPE, "text/plain")],
        Body::from_stream(body),
    )
        .into_response()
}

fn find(
    pods: &PodTable,
    namespace: &str,
    name: &str,
    container: &str,
) -> Option<(PodSummary, ContainerSummary)> {
    let pod = pods
        .list()
        .into_iter()
        .find(|pod| pod.namespace == namespace && pod.name == name)?;
    let container = pod
        .containers
        .iter()
        .find(|known| known.name == container)?
        .clone();
    Some((pod, container))
}

fn is_running(pods: &PodTable, id: &str) -> bool {
    pods.list()
        .iter()
        .flat_map(|pod| &pod.containers)
        .any(|container| container.id == id && container.state == "running")
}

async fn pods(State(api): State<KubeletApi>) -> Response {
    let items: Vec<_> = api
        .pods
        .list()
        .iter()
        .map(|pod| {
            json!({
                "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "status": {"phase": pod.phase},
            })
        })
        .collect();
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
        .into_response()
}

async fn metrics(State(api): State<KubeletApi>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // It reads maps, which may take a while.
    match tokio::task::spawn_blocking(move || (api.metrics)()).await {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests;
