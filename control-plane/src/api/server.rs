//! The listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2, and an end that lets requests finish.

mod activity;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Unauthorized, User, of_certificate};
use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::audit::Source;
use super::shares::Shares;
use activity::{Activity, Answering};

/// How long a client may take for its TLS handshake, and until its first request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection is kept without a request: longer than clients keep theirs, which is 90 seconds in Go and in Rust.
/// It is for them to close it, who know that no request is on its way.
const IDLE: Duration = Duration::from_secs(100);
/// How long running requests get to finish. Watches do not finish by themselves; their clients come back.
const DRAIN: Duration = Duration::from_secs(2);
/// How many connections are served at once.
const CONNECTIONS: usize = 8192;
/// How many of them may be from one address.
const PER_ADDRESS: usize = CONNECTIONS / 8;
/// How many of them may be without a client certificate.
const STRANGERS: usize = CONNECTIONS / 4;

/// Who showed a certificate that TLS verified: read once a connection, as it would be the largest part of what a
/// small request takes.
/// It travels with a request as an extension.
#[derive(Clone)]
pub struct Peer(pub Arc<Result<User, Unauthorized>>);

/// The request came from the machine that the control plane runs on. It travels with a request as an extension.
#[derive(Clone, Copy)]
pub struct SameMachine;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{0} is in use by another program; stop that, or choose another address with --listen")]
    Busy(SocketAddr),
    #[error("cannot listen on {address}: {source}")]
    Other {
        address: SocketAddr,
        source: io::Error,
    },
}

/// Opens the listening socket.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::Busy(address),
            _ => ListenError::Other { address, source },
        })
}

/// Serves until `stop` is cancelled; returns when requests have finished or had their time.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let server = Arc::new(Server {
        acceptor: TlsAcceptor::from(tls),
        router,
        strangers: Semaphore::new(STRANGERS),
        stop,
    });
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let peers = Shares::new(PER_ADDRESS);
    loop {
        // Cancel-safe: an accepted socket is returned or not accepted at all; a permit not handed on is released.
        let (permit, stream, peer) = tokio::select! {
            () = server.stop.cancelled() => break,
            accepted = async {
                let permit = slots.clone().acquire_owned().await;
                (permit, listener.accept().await)
            } => match accepted {
                (Ok(permit), Ok((stream, peer))) => (permit, stream, peer),
                (_, Err(error)) => {
                    // Out of file descriptors, most likely: those that are open will close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                // The semaphore is never closed.
                (Err(_), _) => break,
            },
        };
        let Some(share) = peers.take(peer.ip().to_canonical()) else {
            tracing::debug!(%peer, "too many connections from this address");
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            server.connection(stream, peer).await;
            drop((permit, share));
        });
    }
    drop(listener);
    // All slots are free when all connections have ended.
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(DRAIN, slots.acquire_many(all)).await;
}

struct Server {
    acceptor: TlsAcceptor,
    router: Router,
    /// Places for clients without a certificate.
    strangers: Semaphore,
    stop: CancellationToken,
}

impl Server {
    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let same_machine = stream
            .local_addr()
            .is_ok_and(|own| own.ip().to_canonical() == peer.ip().to_canonical());
        let stream = match tokio::time::timeout(PATIENCE, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                return;
            }
            Err(_) => return,
        };
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|certificate| Peer(Arc::new(of_certificate(certificate))));
        let _place = if certificate.is_some() {
            None
        } else if let Ok(place) = self.strangers.try_acquire() {
            Some(place)
        } else {
            tracing::debug!(%peer, "too many connections without a certificate");
            return;
        };
        let router = self.router.clone();
        let source = Source(peer.ip().to_canonical());
        let service = move |mut request: Request<Body>| {
            request.extensions_mut().insert(source);
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            if same_machine {
                request.extensions_mut().insert(SameMachine);
            }
            router.clone().oneshot(request)
        };
        http(stream, service, PATIENCE, IDLE, &self.stop).await;
    }
}

/// Serves HTTP on one connection until its client has gone, `stop`, or there was no request for so long: `first` at the
/// beginning, `idle` later.
async fn http<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    respond: impl Fn(Request<Body>) -> F + Send,
    first: Duration,
    idle: Duration,
    stop: &CancellationToken,
) where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let activity = Activity::new();
    let begun = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let running = begun.begin();
        let answer = respond(request.map(Body::new));
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answering {
                body,
                _running: running,
            }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // It would run between requests, too; what bounds a head that does not end is `Activity`.
        .header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut connection =
        pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    // Cancel-safe: the connection is polled on below; the others only wait.
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = activity.idle(first, idle) => {}
            }
        } => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests;
