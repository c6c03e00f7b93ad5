//! The node's kubeconfig, and a client that follows it when it changes.
//!
//! Everything the node needs to call the API server is in this one file: server, CA, certificate and key. It is replaced
//! in one step, so a crash leaves the old one or the new one, never a key without its certificate.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Request, Response};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tower::retry::RetryLayer;
use tower::util::option_layer;
use tower::{BoxError, ServiceExt as _};

/// How long a connection to the API server may take to stand.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the API server may take for an answer, or for the beginning of one to a watch.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// A connection that is silent for so long is probed, as often as [`PROBES`] says before it counts as dead. Without that
/// a host that vanished is noticed after a quarter of an hour.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// Between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// What was sent and is not acknowledged for so long ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// How many connections wait for the next request, and how long. A burst of pods opens one for each request, and every one holds
/// some 40 kB here and as much at the API server.
const SPARE_CONNECTIONS: usize = 8;
const SPARE_FOR: Duration = Duration::from_secs(30);

/// The API server took a request and was silent.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", .0.as_secs())]
struct NoAnswer(Duration);

/// A kubeconfig or a key file that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot use the kubeconfig {}: {reason}", path.display())]
    Kubeconfig { path: PathBuf, reason: String },
}

/// What a node's kubeconfig holds. Certificates and keys are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKubeconfig {
    pub server: String,
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl NodeKubeconfig {
    /// The file's text.
    pub fn render(&self) -> Result<String, serde_saphyr::SerializeError> {
        let data = |pem: &str| BASE64.encode(pem);
        serde_saphyr::to_string(&json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default", "cluster": {
                "server": self.server,
                "certificate-authority-data": data(&self.ca_pem),
            }}],
            "users": [{"name": "node", "user": {
                "client-certificate-data": data(&self.certificate_pem),
                "client-key-data": data(&self.key_pem),
            }}],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "node"}}],
            "current-context": "default",
        }))
    }

    /// Reads a file that [`NodeKubeconfig::render`] wrote; `None` for a kubeconfig of another make, such as one that names
    /// its keys by path: whoever wrote it renews it.
    pub fn parse(text: &str) -> Option<Self> {
        let config: Value = serde_saphyr::from_str(text).ok()?;
        let text = |pointer| config.pointer(pointer).and_then(Value::as_str);
        let pem = |pointer| String::from_utf8(BASE64.decode(text(pointer)?).ok()?).ok();
        Some(NodeKubeconfig {
            server: text("/clusters/0/cluster/server")?.to_owned(),
            ca_pem: pem("/clusters/0/cluster/certificate-authority-data")?,
            certificate_pem: pem("/users/0/user/client-certificate-data")?,
            key_pem: pem("/users/0/user/client-key-data")?,
        })
    }

    /// Writes the file in one step, readable by root only.
    pub fn write(&self, path: &Path) -> Result<(), CredentialsError> {
        let text = self.render().map_err(|error| CredentialsError::Write {
            path: path.to_owned(),
            source: io::Error::other(error.to_string()),
        })?;
        write_private(path, &text)
    }
}

/// Replaces a file in one step; mode 0600.
pub fn write_private(path: &Path, text: &str) -> Result<(), CredentialsError> {
    let write = || {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        // Made with mode 0600, beside its target, as a rename works within one file system only.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| CredentialsError::Write {
        path: path.to_owned(),
        source,
    })
}

/// A client made from a kubeconfig file. When the file changes, [`NodeClient::reload`] turns every client that was handed
/// out to the new credentials; open watches end on the old ones and come back on the new.
#[derive(Clone)]
pub struct NodeClient {
    path: PathBuf,
    /// `HOST:PORT` of the API server.
    server: String,
    authorities: Vec<CertificateDer<'static>>,
    current: Arc<ArcSwap<kube::Client>>,
}

impl NodeClient {
    /// Reads the file and makes a client. Nothing is sent yet.
    pub async fn load(path: &Path) -> Result<Self, CredentialsError> {
        let (config, client) = client_of(path).await?;
        let url = &config.cluster_url;
        let authorities = config.root_cert.iter().flatten().cloned();
        Ok(NodeClient {
            path: path.to_owned(),
            server: format!(
                "{}:{}",
                url.host().unwrap_or_default(),
                url.port_u16().unwrap_or(443)
            ),
            authorities: authorities.map(CertificateDer::from).collect(),
            current: Arc::new(ArcSwap::from_pointee(client)),
        })
    }

    /// The file it follows.
    pub fn kubeconfig(&self) -> &Path {
        &self.path
    }

    /// `HOST:PORT` of the API server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The cluster's CA certificates, which vouch for the API server.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// A client that always uses the latest credentials.
    pub fn client(&self) -> kube::Client {
        let current = self.current.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let client = kube::Client::clone(&current.load());
            async move { answer(&client, request, ANSWER_PATIENCE).await }
        });
        kube::Client::new(service, "default")
    }

    /// Reads the file again.
    pub async fn reload(&self) -> Result<(), CredentialsError> {
        let (_, client) = client_of(&self.path).await?;
        self.current.store(Arc::new(client));
        Ok(())
    }
}

async fn client_of(path: &Path) -> Result<(kube::Config, kube::Client), CredentialsError> {
    let failed = |reason: String| CredentialsError::Kubeconfig {
        path: path.to_owned(),
        reason,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| failed(error.to_string()))?;
    if config.proxy_url.is_some() {
        return Err(failed("proxy-url is not supported".into()));
    }
    let client = connected_by(&config).map_err(|error| failed(error.to_string()))?;
    Ok((config, client))
}

/// The client that kube makes by default, over connections that notice when the API server's host is gone.
fn connected_by(config: &kube::Config) -> kube::Result<kube::Client> {
    let https = config.rustls_https_connector_with_connector(connector())?;
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(SPARE_CONNECTIONS)
        .pool_idle_timeout(SPARE_FOR)
        .pool_timer(TokioTimer::new())
        .build(https);
    let transport = transport.map_err(BoxError::from);
    Ok(
        ClientBuilder::new(transport, config.default_namespace.clone())
            .with_layer(&config.extra_headers_layer()?)
            .with_layer(&option_layer(config.auth_layer()?))
            .with_layer(&RetryLayer::new(RetryPolicy::server_retry()))
            .with_layer(&config.base_uri_layer())
            .build(),
    )
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_PATIENCE));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    connector
}

/// Sends a request and waits for the whole answer, or for the head of one that goes on for as long as it is watched.
async fn answer(
    client: &kube::Client,
    request: Request<Body>,
    patience: Duration,
) -> kube::Result<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let endless = query.split('&').any(|pair| pair == "watch=true");
    let answer = async {
        let (head, body) = client.send(request).await?.into_parts();
        let body = if endless {
            body
        } else {
            body.collect_bytes().await?.into()
        };
        Ok(Response::from_parts(head, body))
    };
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(NoAnswer(patience).into())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::Service;

    use super::*;

    #[tokio::test]
    async fn connections_notice_a_host_that_is_gone() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let stream = connector().call(url.parse().unwrap()).await.unwrap();
        let socket = socket2::SockRef::from(stream.inner());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }

    /// A client of an API server that says `text` to whoever asks, and nothing more.
    async fn says(text: &'static str) -> kube::Client {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = server.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                stream.write_all(text.as_bytes()).await.unwrap();
                held.push(stream);
            }
        });
        connected_by(&kube::Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn an_api_server_that_stops_talking_is_an_error_in_the_end() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        let ask = async |text, path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let client = says(text).await;
            let patience = Duration::from_millis(200);
            answer(&client, request, patience)
                .await
                .map_err(|error| error.to_string())
        };
        for text in ["", head] {
            let error = ask(text, "/api/v1/nodes").await.unwrap_err();
            assert!(error.contains("did not answer within"), "{error}");
        }
        // What a watch tells comes when it comes.
        assert!(ask(head, "/api/v1/nodes?watch=true").await.is_ok());
        assert!(ask("", "/api/v1/nodes?watch=true").await.is_err());
    }
}
