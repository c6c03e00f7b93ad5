//! `kernelet join`: from a token to the node's kubeconfig.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use jiff::Timestamp;
use kube::config::AuthInfo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::certificates::{CertificateError, client_request, node_user, summarize};
use super::credentials::{CredentialsError, NodeKubeconfig};
use super::signing::{SigningError, obtain};

/// Until the API server has to have taken the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the certificate may take: a person waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a person says to join a cluster.
#[derive(Clone)]
pub struct Join {
    /// The API server, `https://…`.
    pub url: String,
    pub token: String,
    /// The cluster's CA certificate, PEM.
    pub ca_file: PathBuf,
    pub node_name: String,
    /// The kubeconfig is written below it.
    pub root_dir: PathBuf,
}

/// How joining ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The kubeconfig was written.
    Now { kubeconfig: PathBuf },
    /// The kubeconfig that is there is good until then, so nothing was done.
    Already {
        kubeconfig: PathBuf,
        until: Timestamp,
    },
}

/// Why joining failed, in words for the person who tried.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{url:?} is no address of an API server; write https://HOST:6443")]
    Url { url: String },
    #[error("{name:?} is no node name: use lower-case letters, digits, '-' and '.', at most 253")]
    NodeName { name: String },
    #[error("cannot read the CA certificate {}: {source}", path.display())]
    ReadCa { path: PathBuf, source: io::Error },
    #[error("{} holds no certificate in PEM", path.display())]
    NoCa { path: PathBuf },
    #[error(
        "this machine has joined {server} as {user} already; to join as another node remove {} first",
        kubeconfig.display()
    )]
    OtherNode {
        server: String,
        user: String,
        kubeconfig: PathBuf,
    },
    #[error("cannot reach the API server at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error(
        "the server at {url} is not the one that {} vouches for: {reason}; check the address and the CA file",
        ca_file.display()
    )]
    CaMismatch {
        url: String,
        ca_file: PathBuf,
        reason: String,
    },
    #[error(
        "the API server does not accept the token: it is mistyped, expired or of another cluster"
    )]
    Token,
    #[error("the token does not allow joining: {0}")]
    Forbidden(String),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Signing(SigningError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("cannot make a connection to the API server: {0}")]
    Client(kube::Error),
}

/// Where the node's kubeconfig is.
pub fn kubeconfig_path(root_dir: &Path) -> PathBuf {
    root_dir.join("kubeconfig")
}

/// Joins the cluster, unless this machine has joined it as the same node already.
pub async fn join(join: &Join) -> Result<Joined, JoinError> {
    let url = server_url(&join.url)?;
    check_node_name(&join.node_name)?;
    let kubeconfig = kubeconfig_path(&join.root_dir);
    if let Some(until) = present(join, &kubeconfig)? {
        return Ok(Joined::Already { kubeconfig, until });
    }
    let ca_pem = fs::read_to_string(&join.ca_file).map_err(|source| JoinError::ReadCa {
        path: join.ca_file.clone(),
        source,
    })?;
    let client = client(join, url, &ca_pem)?;
    let pair = obtain(&client, client_request(&join.node_name)?, PATIENCE)
        .await
        .map_err(|error| explain(error, join))?;
    let written = NodeKubeconfig {
        server: join.url.clone(),
        ca_pem,
        certificate_pem: pair.certificate_pem,
        key_pem: pair.key_pem,
    };
    written.write(&kubeconfig)?;
    Ok(Joined::Now { kubeconfig })
}

fn server_url(url: &str) -> Result<Uri, JoinError> {
    let parsed: Option<Uri> = url.parse().ok();
    let https = parsed.filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    https.ok_or_else(|| JoinError::Url {
        url: url.to_owned(),
    })
}

fn check_node_name(name: &str) -> Result<(), JoinError> {
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(())
    } else {
        Err(JoinError::NodeName {
            name: name.to_owned(),
        })
    }
}

/// Until when the kubeconfig that is there is good; `None` when there is none, or one that no longer is.
fn present(join: &Join, kubeconfig: &Path) -> Result<Option<Timestamp>, JoinError> {
    let Ok(text) = fs::read_to_string(kubeconfig) else {
        return Ok(None);
    };
    let Some(config) = NodeKubeconfig::parse(&text) else {
        return Ok(None);
    };
    let Ok(summary) = summarize(&config.certificate_pem) else {
        return Ok(None);
    };
    if !summary.is_valid(Timestamp::now()) {
        return Ok(None);
    }
    if config.server == join.url && summary.subject == node_user(&join.node_name) {
        return Ok(Some(summary.not_after));
    }
    Err(JoinError::OtherNode {
        server: config.server,
        user: summary.subject,
        kubeconfig: kubeconfig.to_owned(),
    })
}

fn client(join: &Join, url: Uri, ca_pem: &str) -> Result<kube::Client, JoinError> {
    let no_ca = || JoinError::NoCa {
        path: join.ca_file.clone(),
    };
    let roots: Vec<_> = CertificateDer::pem_slice_iter(ca_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| no_ca())?;
    if roots.is_empty() {
        return Err(no_ca());
    }
    let mut config = kube::Config::new(url);
    config.root_cert = Some(roots.iter().map(|root| root.to_vec()).collect());
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.auth_info = AuthInfo {
        token: Some(join.token.trim().to_owned().into()),
        ..AuthInfo::default()
    };
    // A person waits: a failure is told at once instead of being tried again.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(JoinError::Client)
}

/// Turns the client's error into what the person can do about it.
fn explain(error: SigningError, join: &Join) -> JoinError {
    let SigningError::Api(error) = error else {
        return JoinError::Signing(error);
    };
    let url = join.url.clone();
    match &error {
        kube::Error::Api(status) if status.code == 401 => return JoinError::Token,
        kube::Error::Api(status) if status.code == 403 => {
            return JoinError::Forbidden(status.message.clone());
        }
        kube::Error::Api(_) => return JoinError::Signing(SigningError::Api(error)),
        _ => {}
    }
    if let Some(tls) = cause::<rustls::Error>(&error) {
        let (reason, ca_file) = (tls.to_string(), join.ca_file.clone());
        return JoinError::CaMismatch {
            url,
            ca_file,
            reason,
        };
    }
    JoinError::Unreachable {
        url,
        reason: innermost(&error),
    }
}

/// The first error of that type in the chain of causes. An `io::Error` hides what it wraps from its `source`.
fn cause<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// What lies at the bottom, such as "Connection refused".
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
