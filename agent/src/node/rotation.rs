//! Keeps the node's certificates fresh while the agent runs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{debug, info, warn};

use super::certificates::{
    CertificateError, Summary, client_request, serving_names, serving_request, summarize,
};
use super::credentials::{CredentialsError, NodeClient, NodeKubeconfig, write_private};
use super::signing::{Pair, SigningError, obtain};

/// After a failed renewal, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a decision may take: an upstream control plane leaves serving certificates to a person.
const PATIENCE: Duration = Duration::from_secs(900);
/// The longest sleep: a clock that is set while the agent sleeps is noticed after so long.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// A renewal that failed; the certificate in use stays in use.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("the certificate cannot be served with: {0}")]
    Unusable(String),
}

/// Renews the certificate in the node's kubeconfig until the process ends. Returns at once for a kubeconfig that is not of
/// `kernelet join`'s making.
pub async fn keep_client_certificate(node_client: NodeClient, node: String) {
    let draw = rand::random();
    let mut retry = RETRY.0;
    loop {
        let (config, pause) = match due(node_client.kubeconfig(), draw) {
            Ok(Some(due)) => due,
            Ok(None) => {
                debug!("the kubeconfig holds no certificate of its own; whoever made it renews it");
                return;
            }
            // It may be mended or come back: the certificate in use is good for a while yet.
            Err(error) => {
                warn!(%error, "cannot tell when the node's client certificate ends; looking again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
                continue;
            }
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause.min(LONGEST_SLEEP)).await;
            continue;
        }
        match renew_client(&node_client, &node, config).await {
            Ok(()) => {
                info!("renewed the node's client certificate");
                retry = RETRY.0;
            }
            Err(error) => {
                warn!(%error, "cannot renew the node's client certificate; trying again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
}

/// What the kubeconfig holds and how long its certificate needs no renewal; `None` for a file of another make.
fn due(path: &Path, draw: f64) -> Result<Option<(NodeKubeconfig, Duration)>, RotationError> {
    let text = fs::read_to_string(path).map_err(|source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let Some(config) = NodeKubeconfig::parse(&text) else {
        return Ok(None);
    };
    let pause = summarize(&config.certificate_pem)?.renew_in(Timestamp::now(), draw);
    Ok(Some((config, pause)))
}

async fn renew_client(
    node_client: &NodeClient,
    node: &str,
    config: NodeKubeconfig,
) -> Result<(), RotationError> {
    let Pair {
        certificate_pem,
        key_pem,
    } = obtain(&node_client.client(), client_request(node)?, PATIENCE).await?;
    NodeKubeconfig {
        certificate_pem,
        key_pem,
        ..config
    }
    .write(node_client.kubeconfig())?;
    Ok(node_client.reload().await?)
}

/// The certificate that the kubelet API is served with. Until there is one, handshakes fail.
#[derive(Debug, Default)]
pub struct ServingCertificate(ArcSwapOption<CertifiedKey>);

impl ServingCertificate {
    /// Whether there is one.
    pub fn is_ready(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Gets the serving certificate, puts it into `serving` and renews it until the process ends. The API server signs only for
/// addresses that the Node object has, so tries before that fail and are repeated.
pub async fn keep_serving_certificate(
    client: kube::Client,
    node: String,
    addresses: Vec<IpAddr>,
    root_dir: &Path,
    serving: Arc<ServingCertificate>,
) {
    let path = serving_path(root_dir);
    let draw = rand::random();
    let mut retry = RETRY.0;
    let mut current = fs::read_to_string(&path).ok().and_then(|pem| {
        let summary = summarize(&pem).ok()?;
        let names = serving_names(&node, &addresses);
        let good = summary.is_valid(Timestamp::now())
            && names.iter().all(|name| summary.names.contains(name));
        serving
            .0
            .store(Some(certified_key(&pem).ok().filter(|_| good)?));
        Some(summary)
    });
    loop {
        let due = current
            .as_ref()
            .map(|summary| summary.renew_in(Timestamp::now(), draw));
        if let Some(pause) = due.filter(|pause| !pause.is_zero()) {
            tokio::time::sleep(pause.min(LONGEST_SLEEP)).await;
            continue;
        }
        match renew_serving(&client, &node, &addresses, &path, &serving).await {
            Ok(summary) => {
                info!(until = %summary.not_after, "have a serving certificate");
                current = Some(summary);
                retry = RETRY.0;
            }
            Err(error) => {
                warn!(%error, "no serving certificate yet; trying again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
}

async fn renew_serving(
    client: &kube::Client,
    node: &str,
    addresses: &[IpAddr],
    path: &Path,
    serving: &ServingCertificate,
) -> Result<Summary, RotationError> {
    let pair = obtain(client, serving_request(node, addresses)?, PATIENCE).await?;
    // One file, so that a crash cannot part the certificate from its key.
    let pem = format!("{}{}", pair.key_pem, pair.certificate_pem);
    let key = certified_key(&pem).map_err(RotationError::Unusable)?;
    write_private(path, &pem)?;
    serving.0.store(Some(key));
    Ok(summarize(&pair.certificate_pem)?)
}

fn serving_path(root_dir: &Path) -> PathBuf {
    root_dir.join("pki").join("serving.pem")
}

/// Reads a key and its certificates from one PEM text.
fn certified_key(pem: &str) -> Result<Arc<CertifiedKey>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| text(&error))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| text(&error))?;
    let ring = rustls::crypto::ring::default_provider();
    let provider: &CryptoProvider = CryptoProvider::get_default().map_or(&ring, |default| default);
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| text(&error))?;
    Ok(Arc::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kubeconfig_of_another_make_ends_the_renewal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let read = due(&path, 0.5);
        assert!(
            matches!(
                read,
                Err(RotationError::Credentials(CredentialsError::Read { .. }))
            ),
            "{read:?}"
        );
        fs::write(&path, "apiVersion: v1\nkind: Config\n").unwrap();
        assert!(due(&path, 0.5).unwrap().is_none());
        let config = NodeKubeconfig {
            server: "https://192.0.2.1:6443".into(),
            ca_pem: String::new(),
            certificate_pem: "nothing".into(),
            key_pem: String::new(),
        };
        config.write(&path).unwrap();
        let read = due(&path, 0.5);
        assert!(
            matches!(read, Err(RotationError::Certificate(_))),
            "{read:?}"
        );
    }
}
