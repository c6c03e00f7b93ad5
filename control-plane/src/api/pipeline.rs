//! The way of a request: authenticate, authorize, then to the verb that its target asks for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::{CompressionLayer, Predicate};

use super::Api;
use super::access::{self, Access};
use super::applying;
use super::audit::{self, Seen};
use super::authenticate;
use super::body;
use super::components;
use super::error::ApiError;
use super::eviction;
use super::impersonate;
use super::log;
use super::metrics::Labels;
use super::paths;
use super::present;
use super::proxy;
use super::registry::Through;
use super::request::{self, Query, ResourceRequest, Target};
use super::reviews;
use super::scale;
use super::selectors::FieldSelector;
use super::streams;
use super::subresources;
use super::token_request;
use super::verbs::{self, Input};
use crate::admission::Warnings;
use crate::auth::{Attributes, User};
use crate::resources::{self, Kind, Subresource};

/// How long a request may take until its answer begins. Reading its body is part of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A body of so many bytes is not worked on among the short tasks.
const LARGE: usize = 16 * 1024;

/// Answers smaller than this are not worth compressing, in bytes.
const COMPRESS_ABOVE: u64 = 128 * 1024;

/// The API as a tower service. A [`User`] among a request's extensions is believed: only the in-process client sets it.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .fallback(answer)
        .with_state(api)
        .layer(
            CompressionLayer::new()
                .gzip(true)
                .compress_when(LargeAndWhole),
        )
        .layer(CatchPanicLayer::custom(panicked))
}

/// Compresses what is large and known in full: a watch must not wait in a compressor's buffer.
#[derive(Clone, Copy)]
struct LargeAndWhole;

impl Predicate for LargeAndWhole {
    fn should_compress<B: hyper::body::Body>(&self, response: &http::Response<B>) -> bool {
        response
            .body()
            .size_hint()
            .exact()
            .is_some_and(|size| size > COMPRESS_ABOVE)
    }
}

fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = text, "a request's handler panicked");
    ApiError::internal("the request could not be served").into_response()
}

/// One request from its bytes to its answer.
async fn answer(State(api): State<Arc<Api>>, request: Request) -> Response {
    let started = Instant::now();
    let audit_id = uuid::Uuid::new_v4().to_string();
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let audited = api.audit.as_ref();
    let audited = audited.map(|log| (log, audit::Asked::of(&request, &audit_id)));
    let mut seen = Seen::default();
    let (labels, outcome) = serve(&api, request, &mut seen).await;
    if let Some((log, asked)) = audited {
        let answer = outcome.as_ref().map(|response| response.status().as_u16());
        log.record(asked, &seen, answer).await;
    }
    let mut response = outcome.unwrap_or_else(|error| {
        if error.code.is_server_error() {
            tracing::warn!(%method, path, code = error.code.as_u16(), error = %error, "request failed");
        }
        error.into_response()
    });
    if let Ok(id) = HeaderValue::from_str(&audit_id) {
        response.headers_mut().insert("audit-id", id);
    }
    api.metrics
        .answered(labels, response.status().as_u16(), started.elapsed());
    tracing::debug!(%method, path, code = response.status().as_u16(), took = ?started.elapsed(), "request");
    response
}

fn out_of_time() -> ApiError {
    ApiError::timeout(format!(
        "request did not complete within the allotted timeout of {} seconds",
        PATIENCE.as_secs()
    ))
}

async fn serve(
    api: &Arc<Api>,
    request: Request,
    seen: &mut Seen,
) -> (Labels, Result<Response, ApiError>) {
    let query = Query::of(request.uri());
    let Some(target) = request::target(request.method(), request.uri(), &query) else {
        return (Labels::default(), Err(ApiError::no_route()));
    };
    let user = match authenticate::caller(api, request.extensions(), request.headers()).await {
        Ok(user) => {
            seen.caller = Some(user.clone());
            impersonate::effective(&api.registry, user, request.headers()).await
        }
        Err(error) => Err(error),
    };
    let user = match user {
        Ok(user) => user,
        Err(error) => return (Labels::default(), Err(error)),
    };
    seen.user = Some(user.clone());
    let (labels, work) = match target {
        Target::Path => {
            let work = paths::serve(api, &user, &query, request);
            return (Labels::of_path(), work.await);
        }
        Target::Resource(target) => {
            let kind = kind_of(&target);
            let labels = Labels::of(kind, reviews::find(&target), &target);
            let warnings = seen.warnings.clone();
            (
                labels,
                receive(api, (user, warnings), kind, target, query, request),
            )
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(out_of_time()));
    (labels, outcome)
}

/// Reads a request for objects, if its sender may ask that and has not too much running already, and answers it.
async fn receive(
    api: &Arc<Api>,
    (user, warnings): (User, Arc<Warnings>),
    kind: Option<&'static Kind>,
    target: ResourceRequest,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let allowed = authorize(api, &user, &target, &query).await;
    let (decision, why) = match &allowed {
        Ok(why) => ("allow", why),
        Err(error) => ("forbid", &error.message),
    };
    warnings.audit("authorization.k8s.io/decision", decision);
    warnings.audit("authorization.k8s.io/reason", why);
    allowed?;
    let share = api.inflight.share(&user)?;
    if let Some(review) = reviews::find(&target) {
        let _slot = api.inflight.enter(&user, target.verb)?;
        let (parts, body) = request.into_parts();
        let body = body::read(body).await?;
        return reviews::create(api, &user, review, &target, (&query, &parts.headers), &body).await;
    }
    if asks_for_definitions(&target) {
        return Ok(Json(no_definitions()).into_response());
    }
    let kind = kind.ok_or_else(ApiError::no_route)?;
    if let Some(stream) = streams::Stream::of(kind, &target) {
        return streams::serve(api, &user, kind, &target, stream, request).await;
    }
    if proxy::is_asked(kind, &target) {
        return proxy::serve(api, kind, &target, request).await;
    }
    let (parts, body) = request.into_parts();
    let asked = Asked {
        user,
        kind,
        target,
        query,
        headers: parts.headers,
        body: body::read(body).await?,
        warnings,
    };
    if asked.body.len() < LARGE {
        return serve_resource(api, &asked).await;
    }
    // Decoding, patching and validating so much would hold up others. Once begun it goes on without its client, so the
    // share goes along.
    let (api, runtime) = (api.clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _share = share;
        runtime.block_on(serve_resource(&api, &asked))
    })
    .await
    .unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Err(ApiError::internal(error)),
    })
}

/// Whether custom resources' definitions are listed, as kubectl does before it validates what cannot be patched.
fn asks_for_definitions(target: &ResourceRequest) -> bool {
    let resource = (&*target.group, &*target.version, &*target.resource);
    let is_theirs = resource == ("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    is_theirs && target.verb == "list" && target.subresource.is_empty()
}

/// There are no custom resources.
fn no_definitions() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinitionList",
        "metadata": {"resourceVersion": "1"}, "items": [],
    })
}

/// Why the user may do this, where there is more to say than who it is.
pub(super) async fn authorize(
    api: &Api,
    user: &User,
    target: &ResourceRequest,
    query: &Query,
) -> Result<String, ApiError> {
    // A list or watch of one object by its name is a request for that object.
    let selector = FieldSelector::parse(query.get("fieldSelector")).unwrap_or_default();
    let selected = match target.verb {
        "list" | "watch" => selector.required("metadata.name").unwrap_or_default(),
        _ => "",
    };
    let name = if target.name.is_empty() {
        selected
    } else {
        &target.name
    };
    let attributes = Attributes {
        verb: target.verb,
        group: &target.group,
        resource: &target.resource,
        subresource: &target.subresource,
        namespace: &target.namespace,
        name,
        field_selector: query.get("fieldSelector"),
        path: "",
    };
    match access::decide(&api.registry, user, &attributes).await? {
        Access::Allowed(why) => Ok(why),
        Access::Refused(hint) => Err(ApiError::forbidden(
            &target.group,
            &target.resource,
            &target.name,
            &crate::auth::refusal(user, &attributes, &hint),
        )),
    }
}

/// The kind that a path means. `bindings` is an old name for what pods have as a subresource.
fn kind_of(target: &ResourceRequest) -> Option<&'static Kind> {
    let plural = if target.group.is_empty() && target.resource == "bindings" {
        "pods"
    } else {
        &target.resource
    };
    resources::find(&target.group, &target.version, plural)
}

/// A request for objects, read.
struct Asked {
    user: User,
    kind: &'static Kind,
    target: ResourceRequest,
    query: Query,
    headers: HeaderMap,
    body: Bytes,
    warnings: Arc<Warnings>,
}

async fn serve_resource(api: &Api, asked: &Asked) -> Result<Response, ApiError> {
    let (kind, target) = (asked.kind, &asked.target);
    // The slot is held until the answer begins: a watch does not keep one.
    let _slot = api.inflight.enter(&asked.user, target.verb)?;
    if !target.namespace.is_empty() && !kind.namespaced {
        return Err(ApiError::no_route());
    }
    // Across namespaces there are only lists and watches.
    if target.namespace.is_empty() && kind.namespaced && !matches!(target.verb, "list" | "watch") {
        return Err(if target.name.is_empty() {
            ApiError::method_not_allowed()
        } else {
            ApiError::no_route()
        });
    }
    let input = Input {
        user: &asked.user,
        kind,
        request: target,
        query: &asked.query,
        headers: &asked.headers,
        body: asked.body.clone(),
        manager: applying::manager(kind, target, &asked.query, &asked.headers)?,
        warnings: &asked.warnings,
    };
    let mut response = act(api, &input).await?;
    present::warn(&mut response, &input.warnings.take());
    Ok(response)
}

/// Does what a request for objects asks.
async fn act(api: &Api, input: &Input<'_>) -> Result<Response, ApiError> {
    let (kind, target, registry) = (input.kind, input.request, &api.registry);
    if target.resource == "bindings" {
        return match (target.verb, target.name.is_empty()) {
            ("create", true) => subresources::bind(registry, input).await,
            _ => Err(ApiError::method_not_allowed()),
        };
    }
    if kind.computed {
        return components::serve(api, input).await;
    }
    if target.subresource.is_empty() {
        return match target.verb {
            "get" => verbs::get(registry, input).await,
            "list" => verbs::list(registry, input).await,
            "watch" => verbs::watch(registry, input).await,
            "create" if target.name.is_empty() => verbs::create(registry, input).await,
            "update" if !target.name.is_empty() => {
                verbs::update(registry, input, Through::Main).await
            }
            "patch" if !target.name.is_empty() => {
                verbs::patch(registry, input, Through::Main).await
            }
            "delete" => verbs::delete(registry, input).await,
            "deletecollection" if kind.deletes_collections() => {
                verbs::delete_collection(registry, input).await
            }
            _ => Err(ApiError::method_not_allowed()),
        };
    }
    let subresource = subresource_of(kind, &target.subresource).ok_or_else(ApiError::no_route)?;
    match (subresource, target.verb) {
        (
            Subresource::Status
            | Subresource::Approval
            | Subresource::EphemeralContainers
            | Subresource::Resize,
            "get",
        ) => verbs::get(registry, input).await,
        (Subresource::Resize, "update" | "patch") => subresources::resize(registry, input).await,
        (Subresource::EphemeralContainers, "update" | "patch") => {
            subresources::add_ephemeral(registry, input).await
        }
        (Subresource::Status, "update") => verbs::update(registry, input, Through::Status).await,
        (Subresource::Status, "patch") => verbs::patch(registry, input, Through::Status).await,
        (Subresource::Approval, "update" | "patch") => subresources::approve(registry, input).await,
        (Subresource::Finalize, "update") => subresources::finalize(registry, input).await,
        (Subresource::Scale, "get") => scale::get(registry, input).await,
        (Subresource::Scale, "update") => scale::update(registry, input).await,
        (Subresource::Scale, "patch") => scale::patch(registry, input).await,
        (Subresource::Binding, "create") => subresources::bind(registry, input).await,
        (Subresource::Eviction, "create") => eviction::create(registry, input).await,
        (Subresource::Token, "create") => token_request::create(api, input).await,
        (Subresource::Log, "get") => log::serve(api, input).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

pub(super) fn subresource_of(kind: &Kind, name: &str) -> Option<Subresource> {
    let subresource = match name {
        "status" => Subresource::Status,
        "scale" => Subresource::Scale,
        "binding" => Subresource::Binding,
        "log" => Subresource::Log,
        "approval" => Subresource::Approval,
        "finalize" => Subresource::Finalize,
        "eviction" => Subresource::Eviction,
        "exec" => Subresource::Exec,
        "attach" => Subresource::Attach,
        "portforward" => Subresource::PortForward,
        "ephemeralcontainers" => Subresource::EphemeralContainers,
        "resize" => Subresource::Resize,
        "token" => Subresource::Token,
        "proxy" => Subresource::Proxy,
        _ => return None,
    };
    kind.has(subresource).then_some(subresource)
}
