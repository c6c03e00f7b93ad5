//! The cluster's keys and certificates on disk: made at the first start, adopted at later ones.
//!
//! ```text
//! DIR/pki/ca.crt ca.key                      the cluster's authority: signs all below and the nodes' certificates
//! DIR/pki/apiserver.crt .key                 what the API server shows its clients
//! DIR/pki/apiserver-kubelet-client.crt .key  what it shows an agent when it fetches logs
//! DIR/pki/sa.key                             signs service accounts' tokens
//! DIR/admin.kubeconfig                       the administrator's access, in group system:masters
//! DIR/join-token                             what a machine shows to become a node
//! ```
//!
//! The keys of service accounts' tokens are there too: see [`super::tokens`].

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use rcgen::KeyPair;

use super::MASTERS;
use super::authenticate::KUBELET_CLIENT;
use super::certificate::{Ca, CertificateError, CertifiedKeyPem, Subject};
use super::csr::Reserved;
use super::files::{self, Access};
use super::kubeconfig::Kubeconfig;
use super::token::JoinToken;
use super::tokens::{Keys, KeysError};

/// Where the keys are, and where the API server is found.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// Keys go to `pki/` in it.
    pub data_dir: PathBuf,
    /// The address that clients and nodes use.
    pub advertise: IpAddr,
    pub port: u16,
    /// As in `cluster.local`.
    pub cluster_domain: String,
    pub hostname: String,
}

impl PkiConfig {
    /// What the API server answers to, and `services`, the services' addresses: not for nodes.
    pub fn reserved(&self, services: Vec<IpNet>) -> Reserved {
        let host_name = self.hostname.to_ascii_lowercase();
        let mut names = serving_subject(self, &BTreeSet::new()).names;
        names.remove(&host_name);
        Reserved {
            names,
            host_name,
            host_address: Some(self.advertise.to_canonical()),
            domains: vec![
                "localhost".to_owned(),
                "svc".to_owned(),
                format!("svc.{}", self.cluster_domain.to_ascii_lowercase()),
            ],
            services,
        }
    }
}

/// Why the keys and certificates are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot keep the cluster's keys in {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: {source}; restore the file, or remove the directory to start with a new cluster authority"
    )]
    Unusable {
        path: PathBuf,
        source: CertificateError,
    },
    #[error(
        "{path} is missing while its certificate is there; restore it, or remove both to start with a new authority"
    )]
    NoKey { path: PathBuf },
    #[error(
        "{path}: this is no join token (abcdef.0123456789abcdef); remove the file to have a new one made"
    )]
    Token { path: PathBuf },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] CertificateError),
}

/// The keys and certificates of this control plane.
pub struct Pki {
    pub ca: Ca,
    pub kubelet_client: CertifiedKeyPem,
    pub join_token: JoinToken,
    /// Of service accounts' tokens.
    pub token_keys: Keys,
    /// The administrator's kubeconfig, for messages to people.
    pub admin_kubeconfig: PathBuf,
}

impl Pki {
    /// Adopts what is in the data directory and makes what is missing, expiring, or for other addresses.
    pub fn open(config: &PkiConfig, now: SystemTime) -> Result<Self, PkiError> {
        let dir = config.data_dir.join("pki");
        let mut new = vec![&dir, &config.data_dir];
        new.retain(|dir| !dir.exists());
        Self::open_in(&dir, config, now).inspect_err(|_| {
            for dir in new {
                // A failure to write the first file leaves nothing; what is not empty stays.
                let _ = fs::remove_dir(dir);
            }
        })
    }

    fn open_in(dir: &Path, config: &PkiConfig, now: SystemTime) -> Result<Self, PkiError> {
        for dir in [&config.data_dir, dir] {
            files::private_dir(dir).map_err(at(dir))?;
        }
        let ca = open_ca(dir, now)?;
        let kubelet_client = client(KUBELET_CLIENT);
        let kubelet_client = open_pair(&ca, dir, "apiserver-kubelet-client", &kubelet_client, now)?;
        let admin_kubeconfig = config.data_dir.join("admin.kubeconfig");
        open_kubeconfig(&ca, &admin_kubeconfig, config, now)?;
        Ok(Self {
            token_keys: Keys::open(dir)?,
            join_token: open_token(&config.data_dir.join("join-token"))?,
            ca,
            kubelet_client,
            admin_kubeconfig,
        })
    }

    /// What the API server shows its clients. `services` are the addresses of the service `kubernetes`: those that the
    /// stored one has, which may be of a range that the cluster had before.
    pub fn serving(
        &self,
        config: &PkiConfig,
        services: &BTreeSet<IpAddr>,
        now: SystemTime,
    ) -> Result<CertifiedKeyPem, PkiError> {
        let dir = config.data_dir.join("pki");
        let subject = serving_subject(config, services);
        open_pair(&self.ca, &dir, "apiserver", &subject, now)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    |source| PkiError::Io { path, source }
}

fn serving_subject(config: &PkiConfig, services: &BTreeSet<IpAddr>) -> Subject<'static> {
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ];
    let mut names: BTreeSet<String> = names.map(str::to_owned).into();
    names.insert(format!("kubernetes.default.svc.{}", config.cluster_domain));
    if !config.hostname.is_empty() {
        names.insert(config.hostname.to_ascii_lowercase());
    }
    let mut addresses = services.clone();
    addresses.extend([Ipv4Addr::LOCALHOST.into(), config.advertise]);
    Subject {
        common_name: "kube-apiserver",
        names,
        addresses,
        server: true,
        ..Default::default()
    }
}

fn client(common_name: &str) -> Subject<'_> {
    Subject {
        common_name,
        organization: Some(MASTERS),
        client: true,
        ..Default::default()
    }
}

fn open_ca(dir: &Path, now: SystemTime) -> Result<Ca, PkiError> {
    let (crt, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    let found = (
        files::read(&crt).map_err(at(&crt))?,
        files::read(&key).map_err(at(&key))?,
    );
    let unusable = |source| PkiError::Unusable {
        path: crt.clone(),
        source,
    };
    let (certificate, key_pem) = match found {
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(PkiError::NoKey { path: key }),
        // The key is written first, so a crash in between leaves a key alone, which nobody has met yet.
        (None, _) => {
            let pair = KeyPair::generate().map_err(CertificateError::from)?;
            let (certificate, pem) = (Ca::new_certificate(&pair, now)?, pair.serialize_pem());
            files::write(&key, &pem, Access::Owner).map_err(at(&key))?;
            files::write(&crt, &certificate, Access::Everyone).map_err(at(&crt))?;
            (certificate, pem)
        }
    };
    Ca::adopt(certificate, &key_pem, now).map_err(unusable)
}

fn open_pair(
    ca: &Ca,
    dir: &Path,
    name: &str,
    subject: &Subject<'_>,
    now: SystemTime,
) -> Result<CertifiedKeyPem, PkiError> {
    let (crt, key) = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
    );
    let found = (
        files::read(&crt).map_err(at(&crt))?,
        files::read(&key).map_err(at(&key))?,
    );
    if let (Some(certificate), Some(key)) = found {
        let pair = CertifiedKeyPem { certificate, key };
        if ca.still_good(&pair, subject, now) {
            return Ok(pair);
        }
    }
    let pair = ca.issue(subject, now)?;
    files::write(&key, &pair.key, Access::Owner).map_err(at(&key))?;
    files::write(&crt, &pair.certificate, Access::Everyone).map_err(at(&crt))?;
    Ok(pair)
}

fn open_kubeconfig(
    ca: &Ca,
    path: &Path,
    config: &PkiConfig,
    now: SystemTime,
) -> Result<(), PkiError> {
    let subject = client("kubernetes-admin");
    let server = format!("https://{}", SocketAddr::new(config.advertise, config.port));
    let found = files::read(path)
        .map_err(at(path))?
        .and_then(|text| Kubeconfig::parse(&text));
    let good = found.is_some_and(|found| {
        found.server == server
            && found.ca == ca.certificate()
            && ca.still_good(&found.client, &subject, now)
    });
    if good {
        return Ok(());
    }
    let fresh = Kubeconfig {
        server,
        ca: ca.certificate().to_owned(),
        client: ca.issue(&subject, now)?,
    };
    files::write(path, &fresh.to_yaml(), Access::Owner).map_err(at(path))
}

fn open_token(path: &Path) -> Result<JoinToken, PkiError> {
    match files::read(path).map_err(at(path))? {
        Some(text) => text.trim().parse().map_err(|_| PkiError::Token {
            path: path.to_owned(),
        }),
        None => {
            let token = JoinToken::random();
            files::write(path, &format!("{}\n", token.reveal()), Access::Owner)
                .map_err(at(path))?;
            Ok(token)
        }
    }
}
