use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::cluster::{Names, slim_service, slim_slice};
use crate::proxy::LbState;

const NODE: &str = "a";

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

/// A service with a health check at `port`, and endpoints: address, node, ready.
fn put(view: &mut View, name: &str, port: i32, endpoints: &[(&str, &str, bool)]) {
    let mut names = Names::default();
    let object: core::Service = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
        },
    }))
    .unwrap();
    view.set_service(key(name), Some(slim_service(&object, &mut names)));
    for (family, is_v6) in [("IPv4", false), ("IPv6", true)] {
        let of_family = endpoints.iter().filter(|it| it.0.contains(':') == is_v6);
        let endpoints: Vec<Value> = of_family
            .map(|(ip, node, ready)| {
                json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready}})
            })
            .collect();
        let object: discovery::EndpointSlice = serde_json::from_value(json!({
            "metadata": {"labels": {"kubernetes.io/service-name": name}},
            "addressType": family, "endpoints": endpoints,
        }))
        .unwrap();
        let slice = slim_slice(&object, &mut names);
        view.set_slice(key(&format!("{name}-{family}")), slice);
    }
}

#[test]
fn ready_endpoints_of_this_node_count_once_each() {
    let mut view = View::default();
    let endpoints = [
        ("10.244.0.1", "a", true),
        ("fd00::1", "a", true),
        ("10.244.0.2", "a", true),
        ("10.244.0.3", "a", false),
        ("10.244.0.4", "b", true),
    ];
    put(&mut view, "web", 30_999, &endpoints);
    put(&mut view, "zed", 30_999, &[]);
    put(&mut view, "none", 0, &endpoints);
    let wanted = BTreeMap::from([(
        30_999,
        Check {
            service: key("web"),
            uid: None,
            local: 2,
        },
    )]);
    assert_eq!(checks(&view, NODE), wanted);
}

#[tokio::test]
async fn the_answer_is_kube_proxys() {
    for (local, healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
        let response = answer(&key("web"), local, healthy);
        assert_eq!(response.status().as_u16(), code);
        assert_eq!(response.headers()[&WEIGHT], local.to_string());
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": local,
                "serviceProxyHealthy": healthy,
            })
        );
    }
}

/// An API server that takes events, and hands on their messages.
fn events() -> (Events, tokio::sync::mpsc::UnboundedReceiver<Value>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let sender = sender.clone();
        async move {
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            let _ = sender.send(serde_json::from_slice(&bytes).unwrap());
            let body = kube::client::Body::from(bytes.to_vec());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        }
    });
    let client = kube::Client::new(service, "default");
    (Events::start(client, "kernelet", NODE.into()), receiver)
}

async fn ask(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn listeners_follow_the_view_and_a_port_in_use_is_told_once_and_tried_again() {
    let (events, mut told) = events();
    let proxy = ProxyHandle::new(LbState::new());
    let mut running = HealthChecks {
        proxy,
        events,
        listening: BTreeMap::new(),
        refused: BTreeMap::new(),
    };
    let taken = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut view = View::default();
    put(&mut view, "web", port.into(), &[("10.244.0.1", "a", true)]);

    running.pass(checks(&view, NODE));
    running.pass(checks(&view, NODE));
    let event = told.recv().await.unwrap();
    assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!(event["involvedObject"]["name"], "web");
    assert!(told.try_recv().is_err());

    drop(taken);
    running.pass(checks(&view, NODE));
    let said = ask(port).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 503"), "not synced: {said}");
    assert!(said.contains("\"localEndpoints\":1"), "{said}");

    put(&mut view, "web", port.into(), &[]);
    running.pass(checks(&view, NODE));
    let said = ask(port).await.unwrap();
    assert!(said.contains("\"localEndpoints\":0"), "{said}");

    running.pass(BTreeMap::new());
    // The task ends at its next turn.
    while ask(port).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
