//! Requests, so many at once, and what they take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt};
use http::{Request, header};
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::percentile;
use crate::servers::Server;

pub const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PAGE: usize = 500;

/// What a number of requests took.
pub struct Taken {
    pub a_second: f64,
    pub p99: Duration,
    /// Of the server's processor time, each.
    pub cpu: Duration,
}

fn request(method: &str, uri: &str, content_type: &str, body: Option<&Value>) -> Request<Vec<u8>> {
    Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, content_type)
        .body(body.map(Value::to_string).unwrap_or_default().into_bytes())
        .expect("a request")
}

async fn send(client: &Client, request: Request<Vec<u8>>) -> String {
    let shown = format!("{} {}", request.method(), request.uri());
    let answer = client.request_text(request).await;
    answer.unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// Sends `total` requests, `at_once` at a time; `make` makes the one of a number.
async fn measured(
    server: &Server,
    client: &Client,
    (total, at_once): (u64, usize),
    make: impl Fn(u64) -> Request<Vec<u8>> + Send + Sync + 'static,
) -> Taken {
    let (next, make) = (Arc::new(AtomicU64::new(0)), Arc::new(make));
    let (began, used) = (Instant::now(), server.processor_time());
    let mut workers = JoinSet::new();
    for _ in 0..at_once {
        let (next, make, client) = (next.clone(), make.clone(), client.clone());
        workers.spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return times;
                }
                let request = make(number);
                let sent = Instant::now();
                send(&client, request).await;
                times.push(sent.elapsed());
            }
        });
    }
    let mut times = workers.join_all().await.concat();
    taken(server, (began, used), total, &mut times)
}

fn taken(
    server: &Server,
    (began, used): (Instant, Duration),
    total: u64,
    times: &mut [Duration],
) -> Taken {
    Taken {
        a_second: total as f64 / began.elapsed().as_secs_f64(),
        p99: percentile(times, 99),
        cpu: (server.processor_time() - used) / u32::try_from(total).expect("not so many"),
    }
}

/// A pod as a Deployment has them, that no scheduler takes.
fn pod(number: u64, round: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"),
            "labels": {"app": format!("app-{}", number % 100), "round": round.to_string()},
        },
        "spec": {
            "schedulerName": "nobody", "automountServiceAccountToken": false,
            "serviceAccountName": "default", "serviceAccount": "default",
            "containers": [{
                "name": "main", "image": "registry.example/team/application:v1.2.3",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "MODE", "value": "production"}, {"name": "LEVEL", "value": "info"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/healthz"}},
            }],
        },
    })
}

const JSON: &str = "application/json";

pub async fn create(server: &Server, client: &Client, pods: u64) -> Taken {
    measured(server, client, (pods, 64), |number| {
        request("POST", PODS, JSON, Some(&pod(number, 0)))
    })
    .await
}

/// Small objects, to fill the server's memory.
pub async fn fill(server: &Server, client: &Client, maps: u64) {
    measured(server, client, (maps, 64), |number| {
        let name = json!({"name": format!("map-{number}")});
        let map = json!({"metadata": name, "data": {"key": "x".repeat(200)}});
        request("POST", MAPS, JSON, Some(&map))
    })
    .await;
}

pub async fn get(server: &Server, client: &Client, pods: u64, total: u64) -> Taken {
    measured(server, client, (total, 64), move |number| {
        let uri = format!("{PODS}/pod-{}", number * 7919 % pods);
        request("GET", &uri, JSON, None)
    })
    .await
}

/// Whole lists, as caches ask for them.
pub async fn list(server: &Server, client: &Client, total: u64) -> Taken {
    measured(server, client, (total, 2), |_| {
        request("GET", &format!("{PODS}?resourceVersion=0"), JSON, None)
    })
    .await
}

/// Lists in pages, each measured by itself.
pub async fn pages(server: &Server, client: &Client, lists: u64) -> Taken {
    let (began, used, mut times) = (Instant::now(), server.processor_time(), Vec::new());
    for _ in 0..lists {
        let mut token = String::new();
        loop {
            let uri = format!("{PODS}?limit={PAGE}&continue={token}");
            let sent = Instant::now();
            let text = send(client, request("GET", &uri, JSON, None)).await;
            times.push(sent.elapsed());
            let list: Value = serde_json::from_str(&text).expect("JSON");
            match list["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut token),
                _ => break,
            }
        }
    }
    let total = times.len() as u64;
    taken(server, (began, used), total, &mut times)
}

pub async fn put(server: &Server, client: &Client, pods: u64, total: u64) -> Taken {
    measured(server, client, (total, 64), move |number| {
        let (number, round) = (number % pods, 1 + number / pods);
        let uri = format!("{PODS}/pod-{number}");
        request("PUT", &uri, JSON, Some(&pod(number, round)))
    })
    .await
}

pub async fn patch(server: &Server, client: &Client, pods: u64, total: u64) -> Taken {
    measured(server, client, (total, 64), move |number| {
        let change = json!({"metadata": {"annotations": {"round": number.to_string()}}});
        let uri = format!("{PODS}/pod-{}", number % pods);
        let kind = "application/strategic-merge-patch+json";
        request("PATCH", &uri, kind, Some(&change))
    })
    .await
}

/// Changes that so many watchers hear of, an event a watcher being what is counted; times are from a change to when the last
/// watcher has heard of it.
pub async fn fan_out(
    server: &Server,
    config: &kube::Config,
    watchers: usize,
    changes: u64,
) -> Taken {
    let client = Client::try_from(config.clone()).expect("a client");
    let (heard, mut all) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for _ in 0..watchers {
        let uri = format!("{MAPS}?watch=1&fieldSelector=metadata.name=watched");
        let watch = client.request_stream(request("GET", &uri, JSON, None));
        let mut lines = watch.await.expect("a watch").lines();
        let heard = heard.clone();
        tasks.spawn(async move {
            while let Some(Ok(_)) = lines.next().await {
                if heard.send(()).is_err() {
                    return;
                }
            }
        });
    }
    let map =
        |round: u64| json!({"metadata": {"name": "watched"}, "data": {"round": round.to_string()}});
    send(&client, request("POST", MAPS, JSON, Some(&map(0)))).await;
    wait(&mut all, watchers).await;
    let (began, used, mut times) = (Instant::now(), server.processor_time(), Vec::new());
    for round in 1..=changes {
        let sent = Instant::now();
        let uri = format!("{MAPS}/watched");
        send(&client, request("PUT", &uri, JSON, Some(&map(round)))).await;
        wait(&mut all, watchers).await;
        times.push(sent.elapsed());
    }
    taken(server, (began, used), changes * watchers as u64, &mut times)
}

async fn wait(heard: &mut tokio::sync::mpsc::UnboundedReceiver<()>, events: usize) {
    for _ in 0..events {
        heard.recv().await.expect("the watchers run");
    }
}
