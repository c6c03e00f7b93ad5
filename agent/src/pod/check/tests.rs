use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::runtime::containerd::Containerd;
use crate::runtime::host::Host;

/// As long as a machine may be busy.
const LONG: Duration = Duration::from_secs(60);

fn container() -> ContainerSpec {
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    serde_json::from_value(json!({"name": "c", "ports": ports})).unwrap()
}

fn check(probe: Value) -> Result<Check, String> {
    let probe = serde_json::from_value(probe).unwrap();
    Check::of(
        &probe,
        &container(),
        IpAddr::from([127, 0, 0, 1]),
        Asker::Probe,
    )
}

async fn ask(probe: Value, timeout: Duration) -> Answer {
    let nowhere = std::path::Path::new("/nonexistent");
    let runtime = Containerd::new(nowhere, Host::probe(), nowhere, nowhere);
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    check(probe)
        .unwrap()
        .try_once("id", timeout, &runtime)
        .await
}

/// A server that answers each path as `answer` says; gives its port and what it was asked.
async fn server(answer: fn(&str, u16) -> String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                text.push(byte[0]);
            }
            let text = String::from_utf8(text).unwrap();
            let path = text.split(' ').nth(1).unwrap().to_owned();
            heard.lock().unwrap().push(text);
            let _ = stream.write_all(answer(&path, port).as_bytes()).await;
        }
    });
    (port, asked)
}

fn moved(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 4\r\n\r\nover")
}

#[tokio::test]
async fn redirections_are_followed_to_the_same_host_only() {
    let (port, asked) = server(|path, port| match path {
        "/relative" => moved("here"),
        "/absolute" => moved(&format!("http://127.0.0.1:{port}/here?x=1")),
        "/elsewhere" => moved("http://example.invalid/"),
        "/circle" => moved("/circle"),
        "/not-modified" => "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
        "/here" | "/here?x=1" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        _ => "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_owned(),
    })
    .await;
    let get = |path: &str| ask(json!({"httpGet": {"port": port, "path": path}}), LONG);
    assert_eq!(get("/relative").await, Answer::Success);
    assert_eq!(get("absolute").await, Answer::Success);
    let ended = "Probe terminated redirects, Response body: ";
    assert_eq!(
        get("/elsewhere").await,
        Answer::Warning(format!("{ended}over"))
    );
    assert_eq!(
        get("/not-modified").await,
        Answer::Warning(ended.to_owned())
    );
    assert_eq!(
        get("/").await,
        Answer::Failure("HTTP probe failed with statuscode: 503".to_owned())
    );
    asked.lock().unwrap().clear();
    assert_eq!(
        get("/circle").await,
        Answer::Failure(format!(
            "Get \"http://127.0.0.1:{port}/circle\": stopped after 10 redirects"
        ))
    );
    assert_eq!(asked.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn headers_are_those_of_the_probe_and_upstreams_own() {
    let (port, asked) = server(|_, _| "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()).await;
    let headers = |headers: Value| json!({"httpGet": {"port": port, "httpHeaders": headers}});
    for named in [
        json!([]),
        json!([
            {"name": "Host", "value": "web.example"}, {"name": "user-agent", "value": "me"},
            {"name": "Accept", "value": ""}, {"name": "X-A", "value": "1"}, {"name": "X-A", "value": "2"},
        ]),
    ] {
        assert_eq!(ask(headers(named), LONG).await, Answer::Success);
    }
    let asked = asked.lock().unwrap();
    let has = |n: usize, line: &str| asked[n].lines().any(|known| known == line);
    for line in [
        &format!("host: 127.0.0.1:{port}"),
        "user-agent: kube-probe/1.34",
        "accept: */*",
    ] {
        assert!(has(0, line), "{line} in {}", asked[0]);
    }
    for line in ["host: web.example", "user-agent: me", "x-a: 1", "x-a: 2"] {
        assert!(has(1, line), "{line} in {}", asked[1]);
    }
    assert!(!asked[1].contains("accept"), "{}", asked[1]);
    let bad = check(headers(json!([{"name": "a b", "value": ""}]))).unwrap_err();
    assert!(bad.starts_with("header \"a b\": "), "{bad}");
}

#[tokio::test]
async fn nobody_and_silence_are_told_in_upstreams_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap().port();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(
        ask(json!({"tcpSocket": {"port": port}}), LONG).await,
        Answer::Failure(refused.clone())
    );
    assert_eq!(
        ask(json!({"httpGet": {"port": port}}), LONG).await,
        Answer::Failure(format!("Get \"http://127.0.0.1:{port}/\": {refused}"))
    );
    let short = Duration::from_millis(50);
    assert_eq!(
        ask(json!({"httpGet": {"port": silent}}), short).await,
        Answer::Failure(format!(
            "Get \"http://127.0.0.1:{silent}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))
    );
    let Answer::Failure(why) = ask(json!({"grpc": {"port": port}}), LONG).await else {
        panic!("nobody answers there");
    };
    let start = format!("error: failed to connect service at \"127.0.0.1:{port}\": ");
    assert!(why.starts_with(&start), "{why}");
    assert_eq!(
        ask(json!({"grpc": {"port": silent}}), short).await,
        Answer::Failure("timeout: health rpc did not complete within 50ms".to_owned())
    );
}

#[tokio::test]
async fn grpc_servers_are_asked_for_the_named_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (reporter, service) = tonic_health::server::health_reporter();
    let (serving, not) = (
        tonic_health::ServingStatus::Serving,
        tonic_health::ServingStatus::NotServing,
    );
    reporter.set_service_status("good", serving).await;
    reporter.set_service_status("bad", not).await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    let ask = |service: Value| ask(json!({"grpc": {"port": port, "service": service}}), LONG);
    assert_eq!(ask(Value::Null).await, Answer::Success);
    assert_eq!(ask(json!("good")).await, Answer::Success);
    assert_eq!(
        ask(json!("bad")).await,
        Answer::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned())
    );
    let Answer::Failure(why) = ask(json!("absent")).await else {
        panic!("there is no such service");
    };
    assert!(
        why.starts_with("error: health rpc probe failed: rpc error: code = NotFound"),
        "{why}"
    );
}

#[tokio::test]
async fn a_grpc_server_without_the_protocol_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = tonic::service::Routes::builder().routes();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    let Answer::Failure(why) = ask(json!({"grpc": {"port": port}}), LONG).await else {
        panic!("it implements nothing");
    };
    let start =
        "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ";
    assert!(why.starts_with(start), "{why}");
}

#[test]
fn ports_are_found_by_name_and_number() {
    let tcp = |port: Value| check(json!({"tcpSocket": {"port": port}}));
    let at = |port| {
        let host = "127.0.0.1".to_owned();
        Ok(Check::Tcp { host, port })
    };
    assert_eq!(tcp(json!("web")), at(8080));
    assert_eq!(tcp(json!(9)), at(9));
    assert!(tcp(json!("other")).unwrap_err().contains("no port"));
    assert!(tcp(json!(0)).is_err());
    assert_eq!(check(json!({})), Err("missing probe handler".to_owned()));
}
