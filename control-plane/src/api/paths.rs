//! What is answered besides objects: health, version, metrics, discovery, OpenAPI.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::json;

use super::Api;
use super::content;
use super::discovery;
use super::error::ApiError;
use super::health;
use super::metrics::Present;
use super::openapi;
use super::present;
use super::request::Query;
use super::stored;
use crate::auth::{self, Attributes, User};
use crate::resources;

/// The Kubernetes version whose API this server speaks.
const MAJOR: &str = "1";
const MINOR: &str = "34";

/// Answers a request that is not for objects.
pub(super) async fn serve(
    api: &Api,
    user: &User,
    query: &Query,
    request: Request,
) -> Result<Response, ApiError> {
    let path = request.uri().path();
    let verb = request.method().as_str().to_ascii_lowercase();
    let attributes = Attributes {
        // Who may read may ask whether there is something to read.
        verb: if verb == "head" { "get" } else { &verb },
        path,
        ..Attributes::default()
    };
    let policy = api.registry.policies.current();
    if !auth::authorize(&policy, user, &attributes).is_allowed() {
        return Err(ApiError::forbidden_path(&user.name, &verb, path));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    // Whoever looks after this process must get an answer also when it has much to do.
    if let ["healthz" | "livez" | "readyz", ..] = parts.as_slice() {
        return Ok(health::answer(api, request.uri(), query).await);
    }
    let _share = api.inflight.share(user)?;
    let _slot = api.inflight.enter(user, "get")?;
    let found = match parts.as_slice() {
        ["version"] => Some(version()),
        ["metrics"] => {
            return Ok(health::plain(
                StatusCode::OK,
                api.metrics.text(present(api)),
            ));
        }
        ["api" | "apis"] if discovery::aggregated_version(request.headers()).is_some() => {
            return Ok(aggregated(&request, parts[0] == "api"));
        }
        [".well-known", "openid-configuration"] => {
            let document = api.authenticator.tokens().discovery(&api.advertised);
            return Ok(relying_parties("application/json", &document));
        }
        ["openid", "v1", "jwks"] => {
            let keys = api.authenticator.tokens().key_set();
            return Ok(relying_parties("application/jwk-set+json", &keys));
        }
        ["openapi", path @ ..] => {
            return openapi_document(&api.documents, path, request.headers()).await;
        }
        ["api"] => Some(discovery::core_versions(&api.advertised)),
        ["apis"] => Some(discovery::group_list()),
        ["api", version] => discovery::resource_list("", version),
        ["apis", group] => discovery::group(group),
        ["apis", group, version] => discovery::resource_list(group, version),
        [""] => Some(
            json!({"paths": ["/.well-known/openid-configuration", "/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]}),
        ),
        _ => None,
    };
    let found = found.ok_or_else(ApiError::no_route)?;
    content::require_json(request.headers())?;
    Ok(present::value(StatusCode::OK, &found))
}

/// How things are for metrics.
fn present(api: &Api) -> Present {
    let stored = resources::kinds()
        .iter()
        .filter(|kind| kind.conversion.is_none() && !kind.computed);
    let counted = stored.map(|kind| {
        let count = api.registry.cache.count(&stored::prefix(kind, ""));
        (kind.qualified_plural(), count)
    });
    let (reading, writing) = api.inflight.running();
    Present {
        objects: counted.collect(),
        reading,
        writing,
    }
}

/// What those are told who verify service accounts' tokens themselves.
fn relying_parties(content_type: &'static str, document: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(document.to_string()));
    let headers = response.headers_mut();
    let kept = HeaderValue::from_static("public, max-age=3600");
    headers.insert(header::CACHE_CONTROL, kept);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn openapi_document(
    documents: &openapi::Documents,
    path: &[&str],
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let document = documents
        .get(path, accept)
        .await
        .ok_or_else(ApiError::no_route)?;
    let mut response = Response::new(Body::from(document.body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(document.content_type),
    );
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", document.etag)) {
        headers.insert(header::ETAG, etag);
    }
    Ok(response)
}

fn aggregated(request: &Request, core: bool) -> Response {
    let version = discovery::aggregated_version(request.headers()).unwrap_or("v2");
    let body = Body::from(discovery::aggregated(core, version).to_string());
    let mut response = present::json_response(StatusCode::OK, body);
    let content_type =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(value) = HeaderValue::from_str(&content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn version() -> serde_json::Value {
    json!({
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": format!("v{MAJOR}.{MINOR}.0+kernelet-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}
