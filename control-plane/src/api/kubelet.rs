//! How other servers are reached: agents over mutual TLS, at the address that their node tells, and what is proxied.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Api;
use super::error::ApiError;
use super::meta;
use crate::auth::CertifiedKeyPem;
use crate::auth::tls::TlsError;
use crate::resources;
use crate::store::cache::Freshness;

/// How long another server may take to be reached.
const CONNECT: Duration = Duration::from_secs(5);
/// How much of an agent's refusal is passed on, in bytes.
const REFUSAL: usize = 4096;

/// Calls agents, with the API server's own certificate.
pub struct KubeletClient {
    tls: TlsConnector,
}

impl KubeletClient {
    /// Shows `identity` to agents and believes those that `ca` (PEM) vouches for.
    pub fn new(identity: &CertifiedKeyPem, ca: &str) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(KubeletClient {
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Sends a request to the agent at `address`. What the answer upgrades to lasts as long as anybody holds it.
    pub(super) async fn send<B: Outgoing>(
        &self,
        address: SocketAddr,
        request: http::Request<B>,
    ) -> Result<http::Response<Incoming>, SendError> {
        let connect = async {
            let stream = connect(address).await?;
            self.tls
                .connect(ServerName::from(address.ip()), stream)
                .await
        };
        let stream = tokio::time::timeout(CONNECT, connect)
            .await
            .map_err(|_| "the agent did not answer in time")??;
        ask(stream, address, request).await
    }
}

/// Sends a request to any server at `address`, without TLS.
pub(super) async fn send_plain<B: Outgoing>(
    address: SocketAddr,
    request: http::Request<B>,
) -> Result<http::Response<Incoming>, SendError> {
    let stream = tokio::time::timeout(CONNECT, connect(address))
        .await
        .map_err(|_| format!("{address} did not answer in time"))?
        .map_err(|error| format!("{address}: {error}"))?;
    ask(stream, address, request).await
}

/// Why there is no answer.
type SendError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request.
pub(super) trait Outgoing:
    Body<Data = Bytes, Error: Into<SendError>> + Send + Unpin + 'static
{
}

impl<B: Body<Data = Bytes, Error: Into<SendError>> + Send + Unpin + 'static> Outgoing for B {}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn ask<B: Outgoing>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
    mut request: http::Request<B>,
) -> Result<http::Response<Incoming>, SendError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the answer has been read, or is no longer wanted.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to another server ended");
        }
    });
    let host = HeaderValue::from_str(&address.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    Ok(sender.send_request(request).await?)
}

/// What an agent's refusal comes to.
pub(super) async fn refused(answer: http::Response<Incoming>) -> ApiError {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), REFUSAL)
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let said = String::from_utf8_lossy(&body).trim().to_owned();
    let said = if said.is_empty() {
        format!("the agent answered {status}")
    } else {
        said
    };
    if status.is_client_error() {
        ApiError::bad_request(said)
    } else {
        ApiError::internal(said)
    }
}

/// The container that is meant: the named one, or the only one.
pub(super) fn container<'a>(pod: &'a Value, asked: &str) -> Result<&'a str, ApiError> {
    let names = |field: &str| -> Vec<&'a str> {
        pod["spec"][field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let name = meta::text(pod, "name");
    if !asked.is_empty() {
        let found = main
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .find(|n| **n == asked);
        return found.copied().ok_or_else(|| {
            ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))
        });
    }
    match main.as_slice() {
        [one] if init.is_empty() && ephemeral.is_empty() => Ok(*one),
        [one] if ephemeral.is_empty() => Ok(*one),
        many => {
            let mut message = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                message.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

/// Where the agent of a node listens.
pub(super) async fn agent_address(api: &Api, node: &str) -> Result<SocketAddr, ApiError> {
    let kind = resources::find("", "v1", "nodes").ok_or_else(ApiError::no_route)?;
    let object = api.registry.get(kind, "", node, Freshness::Any).await?;
    let found: Node = serde_json::from_slice(&object.json).map_err(ApiError::internal)?;
    address_of(&found).ok_or_else(|| {
        ApiError::internal(format!(
            "node \"{node}\" has not said where its agent listens"
        ))
    })
}

/// Where the agent listens, as its node tells.
pub(super) fn address_of(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let mut addresses = status.addresses.iter().flatten();
    let internal = addresses.find(|it| it.type_ == "InternalIP")?;
    let ip: IpAddr = internal.address.parse().ok()?;
    let endpoints = status.daemon_endpoints.as_ref();
    let agent = endpoints.and_then(|it| it.kubelet_endpoint.as_ref());
    let port = agent.and_then(|it| u16::try_from(it.port).ok());
    Some(SocketAddr::new(ip, port.unwrap_or(10250)))
}

/// `text` as part of a path or of a query.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_only_container_need_not_be_named() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, ""), Ok("a"));
        assert_eq!(container(&one, "i"), Ok("i"));
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            container(&two, "").map_err(|e| e.message),
            Err("a container name must be specified for pod p, choose one of: [a b]".into())
        );
        assert_eq!(
            container(&two, "x").map_err(|e| e.message),
            Err("container x is not valid for pod p".into())
        );
    }

    #[test]
    fn what_is_not_plain_is_escaped() {
        assert_eq!(escape("a b/c&d+e~"), "a%20b%2Fc%26d%2Be~");
    }

    #[test]
    fn agents_are_found_through_their_node() {
        let node: Node = serde_json::from_value(json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.2"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}},
        }}))
        .expect("a node");
        assert_eq!(address_of(&node), "10.0.0.2:10251".parse().ok());
        assert_eq!(address_of(&Node::default()), None);
    }
}
