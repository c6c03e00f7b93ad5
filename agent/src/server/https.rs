//! The kubelet API: what the API server asks a node about its pods, over TLS.
//!
//! A caller is whom its certificate, signed by the cluster's CA, names, or whose its bearer token is; what it may ask, the API
//! server's authorizer says ([`super::access`]).

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
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::access::{Access, Caller, Question};
use super::logs::{self, Options};
use super::pods::{configz, pods, running_pods};
use super::rates::Rates;
use super::streaming::routes::{self, Sessions};
use super::{cadvisor, probe_metrics, stats};
use crate::housekeeping::room::Room;
use crate::pod::usage::{self, NodeUsage};
use crate::pod::{ContainerSummary, Paths, PodSummary, PodTable};
use crate::runtime::Runtime;

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
    /// The node's name.
    pub node: String,
    /// Who may ask.
    pub access: Arc<Access>,
    pub pods: PodTable,
    /// Where the pods' logs are.
    pub paths: Paths,
    /// Where their containers are.
    pub runtime: Arc<dyn Runtime>,
    pub sessions: Sessions,
    pub rates: Arc<Rates>,
    /// The configuration, as `kubelet.config.k8s.io/v1beta1` has it.
    pub configz: Arc<serde_json::Value>,
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
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

fn caller(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().ok().map(str::to_owned)
    };
    Some(Caller::certified(
        subject.iter_common_name().next().and_then(text)?,
        subject.iter_organization().filter_map(text).collect(),
    ))
}

fn router(api: KubeletApi) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs),
        )
        .route("/pods", get(pods))
        .route("/runningpods/", get(running_pods))
        .route("/metrics", get(metrics))
        .route("/metrics/resource", get(resource_metrics))
        .route("/metrics/cadvisor", get(cadvisor_metrics))
        .route("/metrics/probes", get(probe_metrics))
        .route("/configz", get(configz))
        .route("/stats/summary", get(stats_summary))
        .merge(routes::routes())
        .layer(middleware::from_fn_with_state(api.clone(), authorize))
        .with_state(api)
}

async fn authorize(
    State(api): State<KubeletApi>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let certified = request.extensions().get::<Option<Caller>>();
    let header = request.headers().get(header::AUTHORIZATION);
    let caller = match (certified.cloned().flatten(), header.and_then(bearer)) {
        (Some(caller), _) => Ok(Some(caller)),
        (None, Some(token)) => api.access.bearer(token).await,
        (None, None) => Ok(None),
    };
    let caller = match caller {
        Ok(Some(caller)) => caller,
        Ok(None) => return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Err(error) => {
            tracing::warn!(%error, "the API server does not say whose a token is");
            return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
        }
    };
    let path = request.uri().path();
    let question = Question::of(request.method(), path);
    let about = format!(
        "(user={}, verb={}, resource=nodes, subresource={})",
        caller.name, question.verb, question.subresource
    );
    for question in question.narrowly(path).into_iter().chain([question]) {
        match api.access.may(&caller, question).await {
            Ok(true) => return next.run(request).await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, about, "the API server does not say whether this is allowed");
                let text = format!("Authorization error {about}");
                return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
            }
        }
    }
    (StatusCode::FORBIDDEN, format!("Forbidden {about}")).into_response()
}

/// The token of a `Bearer` header.
fn bearer(header: &axum::http::HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
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
    let (pod, container) = match find_container(&api.pods, &namespace, &pod, &container) {
        Ok(found) => found,
        Err(refusal) => return refusal.into_response(),
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

/// A container by its names, or the answer that it is not here.
pub(super) fn find_container(
    pods: &PodTable,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<(PodSummary, ContainerSummary), (StatusCode, String)> {
    let known = find_pod(pods, namespace, pod);
    let found = known.and_then(|pod| {
        let named = |known: &&ContainerSummary| known.name == container;
        let container = pod.containers.iter().find(named)?.clone();
        Some((pod, container))
    });
    found.ok_or_else(|| {
        let text = format!(
            "container \"{container}\" of pod \"{pod}\" in namespace \"{namespace}\" is not on this node"
        );
        (StatusCode::NOT_FOUND, text)
    })
}

/// A pod by its names. Where there are two, one going and one coming, the one that runs.
pub(super) fn find_pod(pods: &PodTable, namespace: &str, name: &str) -> Option<PodSummary> {
    let named = |pod: &PodSummary| pod.namespace == namespace && pod.name == name;
    let found = pods.list().into_iter().filter(named);
    found.max_by_key(|pod| pod.phase == "Running")
}

fn is_running(pods: &PodTable, id: &str) -> bool {
    pods.list()
        .iter()
        .flat_map(|pod| &pod.containers)
        .any(|container| container.id == id && container.state == "running")
}

/// What the node and its pods use. Reading it takes files, which may take a while.
async fn usage(api: &KubeletApi) -> Option<NodeUsage> {
    let (pods, paths) = (api.pods.clone(), api.paths.clone());
    tokio::task::spawn_blocking(move || usage::read(&pods, &paths))
        .await
        .ok()
}

async fn stats_summary(State(api): State<KubeletApi>) -> Response {
    // Where the runtime does not say it, images have no file system.
    let images = api.runtime.image_directory().await.ok().flatten();
    let paths = api.paths.clone();
    let room = tokio::task::spawn_blocking(move || Room::of(paths.root(), images.as_deref()));
    match (usage(&api).await, room.await) {
        (Some(usage), Ok(room)) => {
            let rates = api.rates.of(&usage);
            axum::Json(stats::summary(&usage, &room, &rates, &api.node)).into_response()
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn resource_metrics(State(api): State<KubeletApi>) -> Response {
    prometheus(
        usage(&api)
            .await
            .map(|usage| stats::resource_metrics(&usage)),
    )
}

async fn cadvisor_metrics(State(api): State<KubeletApi>) -> Response {
    prometheus(usage(&api).await.map(|usage| cadvisor::text(&usage)))
}

async fn probe_metrics(State(api): State<KubeletApi>) -> Response {
    prometheus(Some(probe_metrics::text(&api.pods.probes().list())))
}

/// Text in the older of Prometheus's formats, in which kubelets answer.
fn prometheus(text: Option<String>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    match text {
        Some(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
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
