//! The whole API, from request to answer, over an embedded store.

mod access;
mod admission;
mod applying;
mod audit;
mod decoders;
mod examples;
mod fair;
mod hostile;
mod input;
mod kinds;
mod lists;
mod metrics;
mod mutated;
mod objects;
mod reviews;
mod roles;
mod several;
mod start;
mod tokens;
mod workloads;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{Api, router, testing};
use crate::auth::{MASTERS, NODES, User};

struct Fixture {
    api: Arc<Api>,
    router: Router,
    dir: tempfile::TempDir,
}

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

fn admin() -> User {
    User::authenticated("admin", [MASTERS.to_owned()])
}

impl Fixture {
    async fn new() -> Self {
        Self::start(tempfile::tempdir().expect("a directory")).await
    }

    /// A start on what the directory holds.
    async fn start(dir: tempfile::TempDir) -> Self {
        Self::start_with(dir, testing::SERVICES).await
    }

    /// The same with the services in these ranges.
    async fn start_with(dir: tempfile::TempDir, ranges: &str) -> Self {
        let (api, _) = testing::start_with(dir.path(), ranges).await;
        Self::of(api, dir)
    }

    /// A second server on the store of `other`.
    async fn beside(other: &Fixture, ranges: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = other.api.registry.store.clone();
        let (api, _) = testing::start_on(store, dir.path(), ranges).await;
        Self::of(api, dir)
    }

    fn of(api: Arc<Api>, dir: tempfile::TempDir) -> Self {
        Fixture {
            router: router(api.clone()),
            api,
            dir,
        }
    }

    async fn send(
        &self,
        user: User,
        request: http::request::Builder,
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let mut request = request.body(body.into()).expect("a request");
        request.extensions_mut().insert(user);
        self.router
            .clone()
            .oneshot(request)
            .await
            .expect("an answer")
    }

    async fn call_as(
        &self,
        user: User,
        method: &str,
        uri: &str,
        content_type: &str,
        body: &str,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, content_type);
        let response = self.send(user, request, body.to_owned()).await;
        let warnings = response.headers().get_all(header::WARNING).iter();
        let warnings = warnings
            .map(|w| w.to_str().expect("text").to_owned())
            .collect();
        let code = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into()));
        Answer {
            code,
            warnings,
            body,
        }
    }

    async fn call(&self, method: &str, uri: &str, body: Value) -> Answer {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.call_as(admin(), method, uri, "application/json", &text)
            .await
    }

    async fn get(&self, uri: &str) -> Answer {
        self.call("GET", uri, Value::Null).await
    }

    /// The first `count` events of a watch.
    async fn events(&self, uri: &str, count: usize) -> Vec<Value> {
        let response = self
            .send(admin(), Request::builder().uri(uri), Body::empty())
            .await;
        let mut body = response.into_body();
        let mut text = Vec::new();
        while text.iter().filter(|b| **b == b'\n').count() < count {
            let frame = tokio::time::timeout(Duration::from_secs(5), body.frame())
                .await
                .expect("an event in time");
            let Some(frame) = frame else { break };
            text.extend_from_slice(&frame.expect("a frame").into_data().expect("data"));
        }
        text.split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect()
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "v"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}
