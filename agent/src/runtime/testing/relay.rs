//! Between an agent and its containerd: passes requests on and counts those that change something.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::testing::steps::Steps;

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// What changes nothing. The rest are steps.
const LOOKS: [&str; 12] = [
    "Get",
    "List",
    "Stat",
    "Mounts",
    "Info",
    "Read",
    "Usage",
    "Wait",
    "Version",
    "Subscribe",
    "Publish",
    "ImageFsInfo",
];

/// Listens at `socket` and passes everything on to the containerd at `target` until the handle is dropped. Requests whose
/// sender is gone are taken back, as when it was connected itself.
pub(crate) fn start(socket: &Path, target: &Path, steps: Arc<Steps>) -> AbortOnDropHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let target = target.to_owned();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (target, steps) = (target.clone(), steps.clone());
            connections.spawn(async move {
                let Ok(upstream) = UnixStream::connect(target).await else {
                    return;
                };
                let upstream =
                    client::handshake(TokioExecutor::new(), TokioIo::new(upstream)).await;
                let (sender, connection) = upstream.unwrap();
                let pass = service_fn(|request| pass(sender.clone(), steps.clone(), request));
                let serve = server::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), pass);
                // Whichever side goes first, the other one is let go.
                tokio::select! {
                    _ = serve => {}
                    _ = connection => {}
                }
            });
        }
    }))
}

async fn pass(
    mut sender: client::SendRequest<Incoming>,
    steps: Arc<Steps>,
    request: Request<Incoming>,
) -> hyper::Result<Answer> {
    let path = request.uri().path().to_owned();
    let mut parts = path.rsplit('/');
    let (method, service) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let service = service.rsplit('.').next().unwrap_or_default();
    if LOOKS.contains(&method) {
        steps.go_on().await;
        return Ok(sender.send_request(request).await?.map(BodyExt::boxed));
    }
    if steps.is_late() {
        return Ok(late());
    }
    let step = async { sender.send_request(request).await };
    let answer = steps.take(&format!("{service}/{method}"), step).await;
    Ok(answer?.map(BodyExt::boxed))
}

/// What a client hears when the time is up that it gave a containerd that hangs.
fn late() -> Answer {
    let nothing = Empty::new().map_err(|never| match never {});
    let mut answer = Response::new(nothing.boxed());
    for (name, value) in [
        ("content-type", "application/grpc"),
        ("grpc-status", "4"),
        ("grpc-message", "context deadline exceeded"),
    ] {
        let value = http::HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}
