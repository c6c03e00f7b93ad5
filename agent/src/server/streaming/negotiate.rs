//! From a request that asks to be upgraded to the connection that it becomes.

use axum::RequestPartsExt;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{spdy, websocket};

/// Names the versions that a client of SPDY speaks, and the one that the server chose.
const VERSION: &str = "x-stream-protocol-version";
/// Names the versions that the server speaks, where the client speaks none of them.
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// A connection that was upgraded.
pub(super) enum Upgrade {
    Spdy(TokioIo<Upgraded>),
    WebSocket(Box<WebSocket>),
}

/// Answers the request with the upgrade that it asks for, and hands the connection to `run` with the version that both
/// sides speak. `spdy` and `websocket` are those that the server speaks, the best first. A client that names none speaks
/// the last.
pub(super) async fn upgrade<F>(
    request: Request,
    spdy: &[&'static str],
    websocket: &[&'static str],
    run: impl FnOnce(Upgrade, String) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let kind = request.headers().get(header::UPGRADE);
    match kind.and_then(|kind| kind.to_str().ok()) {
        Some(kind) if kind.eq_ignore_ascii_case("websocket") => {
            upgrade_websocket(request, websocket, run).await
        }
        Some(kind) if kind.eq_ignore_ascii_case(spdy::PROTOCOL) => upgrade_spdy(request, spdy, run),
        _ => {
            let text = "unable to upgrade: missing upgrade headers in request";
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

async fn upgrade_websocket<F>(
    request: Request,
    versions: &[&'static str],
    run: impl FnOnce(Upgrade, String) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (mut parts, _) = request.into_parts();
    let names_some = parts.headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let upgrade = match parts.extract::<WebSocketUpgrade>().await {
        Ok(upgrade) => upgrade.protocols(versions.iter().copied()),
        Err(refusal) => return refusal.into_response(),
    };
    let chosen = upgrade
        .selected_protocol()
        .and_then(|chosen| chosen.to_str().ok())
        .map(str::to_owned);
    let version = match (chosen, names_some) {
        (Some(chosen), _) => chosen,
        (None, false) => versions.last().copied().unwrap_or_default().to_owned(),
        (None, true) => {
            let text = format!("unable to upgrade: this server speaks {versions:?}");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    upgrade
        .max_message_size(websocket::LONGEST)
        .max_frame_size(websocket::LONGEST)
        .on_upgrade(move |socket| run(Upgrade::WebSocket(Box::new(socket)), version))
}

fn upgrade_spdy<F>(
    mut request: Request,
    versions: &[&'static str],
    run: impl FnOnce(Upgrade, String) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let Some(version) = choose(request.headers(), versions) else {
        let text = format!("unable to upgrade: this server speaks {versions:?}");
        let mut response = (StatusCode::FORBIDDEN, text).into_response();
        for version in versions {
            let version = HeaderValue::from_static(version);
            response.headers_mut().append(ACCEPTED, version);
        }
        return response;
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(io) => run(Upgrade::Spdy(TokioIo::new(io)), version.to_owned()).await,
            Err(error) => tracing::debug!(%error, "a connection went before it was upgraded"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(spdy::PROTOCOL));
    headers.insert(VERSION, HeaderValue::from_static(version));
    response
}

/// The first of the client's versions that the server speaks, too.
fn choose(headers: &HeaderMap, versions: &[&'static str]) -> Option<&'static str> {
    let named: Vec<&str> = headers
        .get_all(VERSION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    if named.is_empty() {
        return versions.last().copied();
    }
    named
        .iter()
        .find_map(|name| versions.iter().find(|version| *version == name).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_choice_counts() {
        let versions = ["v2", "v1"];
        let choose = |named: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for name in named {
                headers.append(VERSION, HeaderValue::from_static(name));
            }
            choose(&headers, &versions)
        };
        assert_eq!(choose(&["v3", "v2", "v1"]), Some("v2"));
        assert_eq!(choose(&["v3, v1"]), Some("v1"));
        assert_eq!(choose(&[]), Some("v1"));
        assert_eq!(choose(&["v3"]), None);
    }
}
