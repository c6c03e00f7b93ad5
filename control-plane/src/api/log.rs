//! `pods/log`: fetched from the node's agent, and passed on as it comes.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use serde_json::Value;

use super::Api;
use super::error::ApiError;
use super::kubelet;
use super::request::Query;
use super::verbs::Input;
use crate::store::cache::Freshness;

/// What may be asked of a log.
const OPTIONS: [&str; 7] = [
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "timestamps",
    "tailLines",
    "limitBytes",
];

pub(super) async fn serve(api: &Api, input: &Input<'_>) -> Result<Response, ApiError> {
    let request = input.request;
    let object = api
        .registry
        .get(
            input.kind,
            &request.namespace,
            &request.name,
            Freshness::Latest,
        )
        .await?;
    let pod: Value = serde_json::from_slice(&object.json).map_err(ApiError::internal)?;
    let container = kubelet::container(&pod, input.query.get("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // Nothing runs yet, so nothing was said.
        return Ok(text(Body::empty()));
    }
    let address = kubelet::agent_address(api, node).await?;
    let path = format!(
        "/containerLogs/{}/{}/{container}{}",
        request.namespace,
        request.name,
        options(input.query)
    );
    let asked = Request::get(&path)
        .body(Empty::<Bytes>::new())
        .map_err(ApiError::internal)?;
    let answer = api
        .kubelet
        .send(address, asked)
        .await
        .map_err(|e| ApiError::internal(format!("Get \"https://{address}{path}\": {e}")))?;
    if answer.status() == StatusCode::OK {
        return Ok(text(Body::new(answer.into_body())));
    }
    Err(kubelet::refused(answer).await)
}

fn text(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

/// The options that were given, as a query.
fn options(query: &Query) -> String {
    let given: Vec<String> = OPTIONS
        .iter()
        .filter(|name| query.has(name))
        .map(|name| format!("{name}={}", kubelet::escape(query.get(name))))
        .collect();
    if given.is_empty() {
        String::new()
    } else {
        format!("?{}", given.join("&"))
    }
}
