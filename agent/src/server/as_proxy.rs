//! What kube-proxy answers, in plain HTTP: metrics for the node, and its health for load balancers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::proxy::{Health, ProxyHandle};

/// How long a request's head may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once. More wait in the kernel.
const MAX_CONNECTIONS: usize = 64;

/// How long a change may be queued before the proxy counts as stuck: kube-proxy's two periods.
const STUCK: Duration = Duration::from_secs(60);

/// `/metrics`, which `metrics` writes in the format of Prometheus, and `/healthz`: the process is there.
pub fn metrics_api(metrics: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    Router::new()
        .route("/metrics", get(move || shown(metrics.clone())))
        .route("/healthz", get(|| async { "ok" }))
}

async fn shown(metrics: impl Fn() -> String + Send + 'static) -> Response {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // It reads maps, which may take a while.
    match tokio::task::spawn_blocking(metrics).await {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// `/healthz`: whether this node routes services. `/livez`: whether the proxy works at all, for who would start it anew.
pub fn health_api(proxy: ProxyHandle) -> Router {
    let ready = proxy.clone();
    Router::new()
        .route("/healthz", get(move || answer(ready.clone(), is_ready)))
        .route("/livez", get(move || answer(proxy.clone(), is_alive)))
}

async fn answer(proxy: ProxyHandle, is_well: fn(&Health) -> bool) -> Response {
    let (code, text) = said(&proxy.health(), is_well, Timestamp::now());
    (code, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Whether this node routes services.
pub(super) fn is_well(proxy: &ProxyHandle) -> bool {
    let (synced, since_pass) = proxy.pulse();
    synced && since_pass < STUCK
}

/// Every change is taken up. What is wrong with one service says nothing about the others.
fn is_alive(health: &Health) -> bool {
    health.since_pass < STUCK
}

fn is_ready(health: &Health) -> bool {
    health.synced && is_alive(health)
}

/// As kube-proxy says it: with 200 `lastUpdated` is now, whether or not anything had to be written.
fn said(health: &Health, is_well: fn(&Health) -> bool, now: Timestamp) -> (StatusCode, String) {
    let updated = now - SignedDuration::try_from(health.since_pass).unwrap_or_default();
    let (code, updated) = match is_well(health) {
        true => (StatusCode::OK, now),
        false => (StatusCode::SERVICE_UNAVAILABLE, updated),
    };
    let mut text = json!({"lastUpdated": updated.to_string(), "currentTime": now.to_string()});
    if !is_alive(health) {
        text["reason"] = json!("changes are not taken up");
    } else if !health.synced {
        text["reason"] = json!("the services are not known yet");
    }
    if let Some(error) = &health.first_error {
        text["problems"] = json!(health.problems);
        text["firstProblem"] = json!(error);
    }
    (code, text.to_string())
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // It is never closed.
    while let Ok(permit) = connections.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, router).await {
                        tracing::debug!(%error, "a connection for metrics or health ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely too many open files: some have to be closed first.
                tracing::warn!(%error, "a connection for metrics or health cannot be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) -> io::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::proxy::LbState;

    fn health() -> Health {
        Health {
            synced: true,
            addresses: 0,
            backends: 0,
            problems: 0,
            ignored: Vec::new(),
            first_error: None,
            since_pass: Duration::ZERO,
        }
    }

    /// What `/healthz` and `/livez` say, and the text of the former.
    fn codes(health: &Health) -> ([u16; 2], String) {
        let [ready, alive] =
            [is_ready, is_alive].map(|is_well| said(health, is_well, Timestamp::UNIX_EPOCH));
        ([ready.0.as_u16(), alive.0.as_u16()], ready.1)
    }

    #[test]
    fn a_node_is_healthy_when_it_knows_the_services_and_takes_up_changes() {
        let now = "1970-01-01T00:00:00Z";
        let healthy = format!(r#"{{"lastUpdated":"{now}","currentTime":"{now}"}}"#);
        assert_eq!(codes(&health()), ([200, 200], healthy));
        let unknown = Health {
            synced: false,
            ..health()
        };
        assert_eq!(codes(&unknown).0, [503, 200]);
        let stuck = Health {
            since_pass: Duration::from_secs(61),
            ..health()
        };
        let (code, text) = codes(&stuck);
        assert_eq!(code, [503, 503]);
        assert!(
            text.contains(r#""lastUpdated":"1969-12-31T23:58:59Z""#),
            "{text}"
        );
    }

    #[test]
    fn one_service_fails_no_node() {
        let wrong = Health {
            problems: 1,
            first_error: Some("shop/cart: map SERVICES is full".to_owned()),
            ..health()
        };
        let (code, text) = codes(&wrong);
        assert_eq!(code, [200, 200]);
        assert!(text.contains("SERVICES is full"), "{text}");
    }

    #[tokio::test]
    async fn metrics_are_read_where_they_hold_nobody_up() {
        let worker = std::thread::current().id();
        let metrics = move || {
            assert_ne!(std::thread::current().id(), worker);
            "up 1\n".to_owned()
        };
        assert_eq!(shown(metrics).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn both_are_answered_over_http() {
        let ask = async |router, path: &str| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let server = tokio::spawn(serve(listener, router));
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            server.abort();
            answer
        };
        let metrics = || metrics_api(|| "up 1\n".to_owned());
        assert!(ask(metrics(), "/metrics").await.ends_with("up 1\n"));
        assert!(ask(metrics(), "/healthz").await.ends_with("ok"));
        let proxy = ProxyHandle::new(LbState::new());
        let said = ask(health_api(proxy), "/healthz").await;
        assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    }
}
