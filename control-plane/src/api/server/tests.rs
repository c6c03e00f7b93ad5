//! Connections whose clients do nothing.

use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};

use super::*;

const FIRST: Duration = Duration::from_millis(300);
const REST: Duration = Duration::from_millis(1500);
/// Far longer than both.
const LONG: Duration = Duration::from_millis(2500);
/// When a test gives up.
const ENOUGH: Duration = Duration::from_secs(30);

/// Serves one end of a pipe. `/long` takes its time.
fn serve_pipe() -> (tokio::io::DuplexStream, tokio::task::JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(1 << 16);
    let served = tokio::spawn(async move {
        let respond = |request: Request<Body>| async move {
            if request.uri().path() == "/long" {
                tokio::time::sleep(LONG).await;
            }
            Ok(Response::new(Body::from("done")))
        };
        http(server, respond, FIRST, REST, &CancellationToken::new()).await;
    });
    (client, served)
}

async fn http2(client: tokio::io::DuplexStream) -> SendRequest<Empty<Bytes>> {
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(client))
        .await
        .expect("a connection");
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let (_client, served) = serve_pipe();
    let ended = tokio::time::timeout(ENOUGH, served).await;
    ended.expect("in time").expect("no panic");
}

#[tokio::test]
async fn a_client_that_asks_for_nothing_over_http2_is_let_go() {
    let (client, served) = serve_pipe();
    let _sender = http2(client).await;
    let ended = tokio::time::timeout(ENOUGH, served).await;
    ended.expect("in time").expect("no panic");
}

#[tokio::test]
async fn a_long_request_is_answered_and_then_the_connection_rests_for_a_while() {
    let started = Instant::now();
    let (client, served) = serve_pipe();
    let mut sender = http2(client).await;
    for path in ["/long", "/short"] {
        let request = Request::builder().uri(format!("https://a{path}"));
        let answer = sender
            .send_request(request.body(Empty::new()).expect("a request"))
            .await
            .expect("an answer");
        let body = answer.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), "done");
    }
    let ended = tokio::time::timeout(ENOUGH, served).await;
    ended.expect("in time").expect("no panic");
    assert!(started.elapsed() >= LONG + REST);
}

#[tokio::test]
async fn a_connection_over_http1_rests_between_requests_and_no_head_goes_on_for_ever() {
    let (mut client, served) = serve_pipe();
    let mut answer = [0; 1024];
    for pause in [Duration::ZERO, (FIRST + REST) / 2] {
        tokio::time::sleep(pause).await;
        let request = b"GET /short HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(request).await.expect("it is open");
        let length = client.read(&mut answer).await.expect("an answer");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    }
    client.write_all(b"GET /sh").await.expect("it is open");
    let ended = tokio::time::timeout(ENOUGH, served).await;
    ended.expect("in time").expect("no panic");
}
