//! Asking over HTTP. A redirection is followed as far as it stays with the same host.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;
use url::{Position, Url};

use super::{Answer, Asker, dial};
use crate::chain::chain;
use crate::pod::insecure;

/// Requests for one answer, the first one included; as Go's client.
const MOST_REQUESTS: usize = 10;
/// Bytes of an answer's body that are shown.
const BODY_SHOWN: usize = 10 << 10;

/// A GET request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pod) struct Get {
    url: Url,
    /// The value of `Host`, where the URL's own will not do.
    host: Option<HeaderValue>,
    headers: HeaderMap,
    /// To a hook, any answer is as good as another.
    asker: Asker,
}

/// What a request came to, short of an answer.
type Failed = String;

impl Get {
    /// What `get` asks of `at`, a host and port.
    pub(super) fn of(get: &HTTPGetAction, at: &str, asker: Asker) -> Result<Get, String> {
        let scheme = match get.scheme.as_deref() {
            Some("HTTPS") => "https",
            _ => "http",
        };
        let path = get.path.as_deref().unwrap_or_default();
        let text = format!("{scheme}://{at}/{}", path.trim_start_matches('/'));
        let url = Url::parse(&text).map_err(|error| format!("{text}: {error}"))?;
        let mut headers = HeaderMap::new();
        for named in get.http_headers.iter().flatten() {
            let bad = |error: String| format!("header {:?}: {error}", named.name);
            let name = HeaderName::try_from(&named.name).map_err(|error| bad(error.to_string()))?;
            let value =
                HeaderValue::try_from(&named.value).map_err(|error| bad(error.to_string()))?;
            headers.append(name, value);
        }
        // Unless it says so with its port, a server may take it for another one.
        let host = match headers.remove(header::HOST) {
            Some(named) if !named.is_empty() => Some(named),
            _ => HeaderValue::try_from(at).ok(),
        };
        for (name, usual) in [
            (header::USER_AGENT, asker.user_agent()),
            (header::ACCEPT, "*/*"),
        ] {
            match headers.get(&name) {
                None => {
                    headers.insert(name, HeaderValue::from_static(usual));
                }
                // An empty one says that none is to be sent.
                Some(named) if named.is_empty() => {
                    headers.remove(name);
                }
                Some(_) => {}
            }
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(Get {
            url,
            host,
            headers,
            asker,
        })
    }

    pub(super) async fn try_once(&self, timeout: Duration) -> Answer {
        let failed = |why: String| Answer::Failure(format!("Get \"{}\": {why}", self.url));
        match tokio::time::timeout(timeout, self.follow()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => failed(why),
            Err(_) => failed(
                "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                    .to_owned(),
            ),
        }
    }

    async fn follow(&self) -> Result<Answer, Failed> {
        let (mut url, mut host) = (self.url.clone(), self.host.clone());
        for _ in 0..MOST_REQUESTS {
            // The connection lives as long as its task.
            let (response, _connection) = self.ask(&url, host.clone()).await?;
            let status = response.status();
            if !status.is_redirection() {
                return Ok(match self.asker {
                    Asker::Probe => judge(status),
                    Asker::Hook => Answer::Success,
                });
            }
            match target(&url, &response) {
                Some(next) if next.host_str() == url.host_str() => {
                    if next.origin() != url.origin() {
                        host = None;
                    }
                    url = next;
                }
                _ => {
                    let body = beginning(response.into_body()).await;
                    return Ok(Answer::Warning(format!(
                        "Probe terminated redirects, Response body: {body}"
                    )));
                }
            }
        }
        Err(format!("stopped after {MOST_REQUESTS} redirects"))
    }

    async fn ask(
        &self,
        url: &Url,
        host: Option<HeaderValue>,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Failed> {
        let name = url.host_str().unwrap_or_default();
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(80);
        let mut request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = self.headers.clone();
        let host = match host {
            Some(host) => host,
            None => HeaderValue::try_from(&url[Position::BeforeHost..Position::AfterPort])
                .map_err(|error| error.to_string())?,
        };
        request.headers_mut().insert(header::HOST, host);
        let stream = dial(name, port).await?;
        match url.scheme() {
            "https" => {
                let stream = insecure::connect(name, stream).await;
                send(stream.map_err(|error| chain(&error))?, request).await
            }
            _ => send(stream, request).await,
        }
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Failed> {
    let broken = |error: hyper::Error| chain(&error);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Whoever waits for the answer hears of it.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok((response, connection))
}

/// What an answer that is no redirection says.
fn judge(status: StatusCode) -> Answer {
    match status.as_u16() {
        200..300 => Answer::Success,
        code => Answer::Failure(format!("HTTP probe failed with statuscode: {code}")),
    }
}

/// As much of a body as is shown.
async fn beginning(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_SHOWN
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes.extend(frame.into_data().unwrap_or_default());
    }
    bytes.truncate(BODY_SHOWN);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where a redirection leads, if it is one to follow.
fn target(from: &Url, response: &Response<Incoming>) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    let target = from.join(location).ok()?;
    matches!(target.scheme(), "http" | "https").then_some(target)
}
