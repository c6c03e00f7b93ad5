//! `nodes/proxy`, `pods/proxy` and `services/proxy`: a request goes on to what is named, and what that answers comes back.
//!
//! ```text
//! nodes/NAME[:PORT]                  the agent, over mutual TLS; another port of the node, without TLS
//! pods/[http:]NAME[:PORT]            the pod's address, at the first port that it names
//! services/[http:]NAME[:PORT]        one of its ready endpoints
//! ```
//!
//! The client's credentials stay here.

mod destination;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use self::destination::{Destination, Named};
use super::Api;
use super::error::ApiError;
use super::request::{self, ResourceRequest};
use super::stored;
use super::{pipeline, streams};
use crate::resources::{self, Kind, Subresource};
use crate::store::cache::Freshness;

/// What is between two ends of one connection (RFC 9110, section 7.6.1), or for this server alone.
const NOT_PASSED_ON: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::AUTHORIZATION,
];
const KEEP_ALIVE: &str = "keep-alive";
const IMPERSONATION: &str = "impersonate-";

/// Whether a request is to be passed on.
pub(super) fn is_asked(kind: &Kind, target: &ResourceRequest) -> bool {
    pipeline::subresource_of(kind, &target.subresource) == Some(Subresource::Proxy)
}

/// Passes the request on, and its answer back.
pub(super) async fn serve(
    api: &Api,
    kind: &'static Kind,
    target: &ResourceRequest,
    mut request: Request,
) -> Result<Response, ApiError> {
    if kind.namespaced == target.namespace.is_empty() {
        return Err(ApiError::no_route());
    }
    let place = api.streams.place()?;
    let destination = find(api, kind, target).await?;
    let authority = destination.address.to_string();
    let (own, path) = request::split_proxied(request.uri().path());
    let (own, path) = (own.to_owned(), path.to_owned());
    let upgraded = request.headers().contains_key(header::UPGRADE);
    let near = upgraded.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut asked = http::Request::new(body);
    *asked.method_mut() = parts.method;
    *asked.uri_mut() = onward(&path, parts.uri.query())?;
    *asked.headers_mut() = passed_on(&parts.headers, upgraded);
    let answer = match destination.is_agent {
        true => api.kubelet.send(destination.address, asked).await,
        false => super::kubelet::send_plain(destination.address, asked).await,
    };
    let mut answer = answer.map_err(|error| {
        ApiError::unavailable(format!("error trying to reach service: {error}"))
    })?;
    let status = answer.status();
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let mut headers = passed_on(answer.headers(), switches);
    if let Some(location) = headers.get(header::LOCATION)
        && let Ok(location) = location.to_str()
        && let Some(here) = relocated(location, &own, &authority)
    {
        headers.insert(header::LOCATION, here);
    }
    let body = match near {
        Some(near) if switches => {
            streams::join(near, hyper::upgrade::on(&mut answer), place);
            Body::empty()
        }
        _ => Body::new(answer.into_body().map_frame(move |frame| {
            // Until all has been passed on it is one of those that are open.
            let _ = &place;
            frame
        })),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Where the request goes.
async fn find(
    api: &Api,
    kind: &'static Kind,
    target: &ResourceRequest,
) -> Result<Destination, ApiError> {
    let named = Named::read(kind.singular, &target.name)?;
    let (namespace, name) = (&target.namespace, named.name);
    match kind.kind {
        "Node" => {
            let node: Node = read(api, kind, namespace, name).await?;
            destination::of_node(&node, &named)
        }
        "Pod" => {
            let pod: Pod = read(api, kind, namespace, name).await?;
            destination::of_pod(&pod, &named)
        }
        _ => {
            let service: Service = read(api, kind, namespace, name).await?;
            let slices = slices_in(api, namespace).await?;
            destination::of_service(&service, &slices, &named, rand::random())
        }
    }
}

async fn read<T: DeserializeOwned>(
    api: &Api,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
) -> Result<T, ApiError> {
    let object = api
        .registry
        .get(kind, namespace, name, Freshness::Latest)
        .await?;
    serde_json::from_slice(&object.json).map_err(ApiError::internal)
}

async fn slices_in(api: &Api, namespace: &str) -> Result<Vec<EndpointSlice>, ApiError> {
    let kind = resources::find("discovery.k8s.io", "v1", "endpointslices");
    let prefix = stored::prefix(kind.ok_or_else(ApiError::no_route)?, namespace);
    let listed = api.registry.cache.list(&prefix, Freshness::Latest).await;
    let listed = listed.map_err(stored::read_error)?;
    let slices = listed.objects.iter();
    slices
        .map(|object| serde_json::from_slice(&object.json).map_err(ApiError::internal))
        .collect()
}

/// What the other server is asked for.
fn onward(path: &str, query: Option<&str>) -> Result<Uri, ApiError> {
    let path = if path.is_empty() { "/" } else { path };
    let text = match query {
        None => path.to_owned(),
        Some(query) => format!("{path}?{query}"),
    };
    text.parse()
        .map_err(|error| ApiError::bad_request(format!("{text} cannot be passed on: {error}")))
}

/// The headers that are meant for the other end.
fn passed_on(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    // A header that `Connection` names is of that connection alone.
    let listed = headers.get_all(header::CONNECTION).iter();
    let listed = listed.filter_map(|value| value.to_str().ok());
    let listed: Vec<String> = listed
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let stays = |name: &HeaderName| {
        NOT_PASSED_ON.contains(name)
            || name == KEEP_ALIVE
            || name.as_str().starts_with(IMPERSONATION)
            || listed.iter().any(|listed| name == listed.as_str())
    };
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        let switches = upgrade && (name == header::CONNECTION || name == header::UPGRADE);
        if switches || !stays(name) {
            all.append(name, value.clone());
        }
    }
    all
}

/// A redirection to the other server, as one to here; `None` for one to anywhere else.
fn relocated(location: &str, own: &str, authority: &str) -> Option<HeaderValue> {
    let absolute = location.strip_prefix("http://");
    let absolute = absolute.or_else(|| location.strip_prefix("https://"));
    let path = match absolute {
        Some(rest) => rest.strip_prefix(authority)?,
        None if location.starts_with("//") => return None,
        None => location,
    };
    let is_rooted = path.is_empty() || path.starts_with('/');
    let here = is_rooted.then(|| format!("{own}{path}"))?;
    HeaderValue::from_str(&here).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_what_is_of_one_connection_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "root"),
            ("impersonate-extra-a", "b"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("upgrade", "websocket"),
            ("host", "here"),
            ("accept", "text/html"),
            ("x-mine", "2"),
        ] {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_static(value));
        }
        let names = |upgrade| {
            let passed = passed_on(&headers, upgrade);
            let mut names: Vec<String> = passed.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(false), ["accept", "x-mine"]);
        assert_eq!(names(true), ["accept", "connection", "upgrade", "x-mine"]);
    }

    #[test]
    fn a_redirection_to_the_other_server_leads_through_here() {
        let own = "/api/v1/namespaces/a/pods/p/proxy";
        let to = |location: &str| {
            let here = relocated(location, own, "10.1.1.1:80")?;
            Some(here.to_str().expect("text").to_owned())
        };
        let here = format!("{own}/next?a=b");
        assert_eq!(to("/next?a=b").as_ref(), Some(&here));
        assert_eq!(to("http://10.1.1.1:80/next?a=b").as_ref(), Some(&here));
        assert_eq!(to("http://10.1.1.1:80").as_deref(), Some(own));
        for elsewhere in [
            "http://10.1.1.1:800/",
            "https://example.org/",
            "//example.org/",
            "next",
        ] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn the_path_goes_on_as_it_came() {
        let onward = |path, query| onward(path, query).map(|uri| uri.to_string());
        assert_eq!(onward("", None), Ok("/".into()));
        assert_eq!(
            onward("/a%2Fb//c", Some("d=%20")),
            Ok("/a%2Fb//c?d=%20".into())
        );
    }
}
