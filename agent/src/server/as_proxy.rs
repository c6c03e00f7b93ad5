//! What kube-proxy answers, in plain HTTP: metrics for the node, and its health for load balancers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::proxy::{Health, ProxyHandle};

/// How long a request's head may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once. More wait in the kernel.
const MAX_CONNECTIONS: usize = 64;

/// `/metrics`, which `metrics` writes in the format of Prometheus, and `/healthz`: the process is there.
pub fn metrics_api(metrics: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let shown = move || {
        let text = metrics();
        async move { ([(header::CONTENT_TYPE, TEXT)], text) }
    };
    Router::new()
        .route("/metrics", get(shown))
        .route("/healthz", get(|| async { "ok" }))
}

/// `/healthz`: whether this node routes services as the cluster wants them. `/livez` says the same.
pub fn health_api(proxy: ProxyHandle) -> Router {
    let answer = move || {
        let (code, text) = health(&proxy.health(), Timestamp::now());
        async move { (code, [(header::CONTENT_TYPE, "application/json")], text).into_response() }
    };
    Router::new()
        .route("/healthz", get(answer.clone()))
        .route("/livez", get(answer))
}

/// As kube-proxy says it: with 200 `lastUpdated` is now, whether or not anything had to be written.
fn health(health: &Health, now: Timestamp) -> (StatusCode, String) {
    if health.synced && health.problems == 0 {
        let text = json!({"lastUpdated": now.to_string(), "currentTime": now.to_string()});
        return (StatusCode::OK, text.to_string());
    }
    let reason = match &health.first_error {
        Some(error) => error.clone(),
        None => "the services are not known yet".to_owned(),
    };
    let text = json!({"currentTime": now.to_string(), "reason": reason});
    (StatusCode::SERVICE_UNAVAILABLE, text.to_string())
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

    fn seen(synced: bool, error: Option<&str>) -> (u16, String) {
        let found = Health {
            synced,
            addresses: 0,
            backends: 0,
            problems: usize::from(error.is_some()),
            ignored: Vec::new(),
            first_error: error.map(str::to_owned),
        };
        let (code, text) = health(&found, Timestamp::UNIX_EPOCH);
        (code.as_u16(), text)
    }

    #[test]
    fn a_node_is_healthy_when_its_services_are_as_they_should_be() {
        let now = "1970-01-01T00:00:00Z";
        let healthy = format!(r#"{{"lastUpdated":"{now}","currentTime":"{now}"}}"#);
        assert_eq!(seen(true, None), (200, healthy));
        assert_eq!(seen(false, None).0, 503);
        let (code, text) = seen(true, Some("shop/cart: map SERVICES is full"));
        assert!(code == 503 && text.contains("SERVICES is full"), "{text}");
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
