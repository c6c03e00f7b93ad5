//! Certificate signing requests of clients and of the two kubelet signers: which are well-formed, which may be approved
//! without a person, and signing them. The rules are upstream's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, GeneralName};

use super::certificate::{self, Ca, LIFETIME, Subject, common_name, organizations};
use super::{MASTERS, NODE_BOOTSTRAPPERS, NODE_USER_PREFIX, NODES, User};

/// Signs the certificates with which people and programs call the API server. A person approves them.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Signs the certificates with which agents call the API server.
pub const KUBELET_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs the certificates that agents serve with.
pub const KUBELET_SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// The shortest lifetime that may be asked for.
const SHORTEST: Duration = Duration::from_secs(600);

/// What of a CertificateSigningRequest object matters here.
#[derive(Clone, Copy, Debug)]
pub struct SigningRequest<'a> {
    /// `spec.request`, decoded from base64: PEM.
    pub pem: &'a str,
    /// `spec.signerName`
    pub signer: &'a str,
    /// `spec.usages`
    pub usages: &'a [String],
    /// `spec.expirationSeconds`
    pub expiration_seconds: Option<i32>,
}

/// Why a request is not approved or not signed. The text goes into the request's condition.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is no signer of this control plane")]
    UnknownSigner(String),
    #[error("spec.request is no certificate request: {0}")]
    Malformed(String),
    #[error("the subject's organization is {0:?}, not [\"system:nodes\"]")]
    Organization(Vec<String>),
    #[error(
        "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    )]
    Masters,
    #[error("only one organization can be signed, not {0:?}; ask for a certificate for each")]
    Organizations(Vec<String>),
    #[error("the subject's common name is \"{0}\", not system:node:<name>")]
    CommonName(String),
    #[error("the usages {0:?} are not those of the signer")]
    Usages(Vec<String>),
    #[error("a node's client certificate has no subject alternative names")]
    NamesNotAllowed,
    #[error("a serving certificate needs a DNS name or an IP address")]
    NoNames,
    #[error("subject alternative names may only be DNS names and IP addresses")]
    KindOfName,
    #[error("user \"{user}\" may not have a certificate for {node}")]
    NotTheirs { user: String, node: String },
    #[error("{0} is not an address of the node")]
    ForeignAddress(String),
    #[error("{0} is not for nodes: the API server or a service may answer to it")]
    Reserved(String),
    #[error(
        "{0} is also the name or an address of another node; delete the Node that has it no longer"
    )]
    Taken(String),
    #[error(transparent)]
    Signing(#[from] certificate::CertificateError),
}

/// Names and addresses that are not for nodes: with a certificate for one of them a node could pass for the API server, or
/// for a service.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    /// The API server's names, apart from the host's.
    pub names: BTreeSet<String>,
    /// A node on the machine of the control plane has this name and this address, too.
    pub host_name: String,
    pub host_address: Option<IpAddr>,
    /// Domains below which services have their names.
    pub domains: Vec<String>,
    /// The services' addresses.
    pub services: Vec<IpNet>,
}

impl Reserved {
    /// Whether `name`, a DNS name or an address, is not for the node that asks.
    fn has(&self, name: &str, same_machine: bool) -> bool {
        if let Ok(address) = name.parse::<IpAddr>() {
            let address = address.to_canonical();
            let of_host = self.host_address == Some(address) && !same_machine;
            return of_host
                || address.is_loopback()
                || address.is_unspecified()
                || self.services.iter().any(|range| range.contains(&address));
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let below = |domain: &String| {
            name.strip_suffix(domain)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        (name == self.host_name && !same_machine)
            || name.contains('*')
            || self.names.contains(&name)
            || self.domains.iter().any(below)
    }
}

/// Whose the names in a serving certificate are.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// What the Node object of the one who asks says of itself (`status.addresses`).
    pub own: &'a [String],
    /// The names and addresses of all other nodes.
    pub others: &'a [String],
    pub reserved: &'a Reserved,
}

/// A request that its signer's rules allow.
struct Checked {
    request: CertificateSigningRequestParams,
    common_name: String,
    organization: Option<String>,
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

/// Whether the request may be approved without a person. `user` is who made it (`spec.username`, `spec.groups`). A serving
/// certificate may name the node and the addresses that its Node object says it has. A node writes that object itself, so
/// what belongs to somebody else is refused all the same.
///
/// A holder of the join token, or of another of kubeadm's group, may have any node's first client certificate, as with kubeadm;
/// a node only its own. What holders of other bootstrap tokens ask for waits for a person.
pub fn approve(
    request: &SigningRequest<'_>,
    user: &User,
    names: &Names<'_>,
) -> Result<(), Refusal> {
    let checked = check(request)?;
    if request.signer == CLIENT_SIGNER {
        return Err(Refusal::NotTheirs {
            user: user.name.clone(),
            node: checked.common_name,
        });
    }
    let own = user.name == checked.common_name && user.is_in(NODES);
    let joining = user.is_in(NODE_BOOTSTRAPPERS) && request.signer == KUBELET_CLIENT_SIGNER;
    if !own && !joining {
        return Err(Refusal::NotTheirs {
            user: user.name.clone(),
            node: checked.common_name,
        });
    }
    let node = checked
        .common_name
        .strip_prefix(NODE_USER_PREFIX)
        .unwrap_or_default();
    let ips = checked.addresses.iter().map(IpAddr::to_string);
    for name in checked.names.iter().cloned().chain(ips) {
        if names.reserved.has(&name, user.same_machine) {
            return Err(Refusal::Reserved(name));
        }
        if names
            .others
            .iter()
            .any(|other| other.eq_ignore_ascii_case(&name))
        {
            return Err(Refusal::Taken(name));
        }
        if name != node && !names.own.contains(&name) {
            return Err(Refusal::ForeignAddress(name));
        }
    }
    Ok(())
}

/// The PEM of the certificate that an approved request asks for. Only what the rules allow goes into it.
pub fn sign_csr(ca: &Ca, request: &SigningRequest<'_>, now: SystemTime) -> Result<String, Refusal> {
    let checked = check(request)?;
    let asked = request
        .expiration_seconds
        .and_then(|s| u64::try_from(s).ok());
    let lifetime = asked.map_or(LIFETIME, |s| {
        Duration::from_secs(s).clamp(SHORTEST, LIFETIME)
    });
    let subject = Subject {
        common_name: &checked.common_name,
        organization: checked.organization.as_deref(),
        names: checked.names,
        addresses: checked.addresses,
        server: request.signer == KUBELET_SERVING_SIGNER,
        client: request.signer != KUBELET_SERVING_SIGNER,
        key_encipherment: request.usages.iter().any(|u| u == "key encipherment"),
    };
    Ok(ca.sign(&subject, &checked.request.public_key, lifetime, now)?)
}

/// Whether an API client's certificate would make its holder an administrator, which no approval is enough for. What is no
/// request is refused elsewhere.
pub fn asks_for_masters(request: &SigningRequest<'_>) -> bool {
    request.signer == CLIENT_SIGNER && matches!(check(request), Err(Refusal::Masters))
}

fn check(request: &SigningRequest<'_>) -> Result<Checked, Refusal> {
    let own_usage = match request.signer {
        CLIENT_SIGNER | KUBELET_CLIENT_SIGNER => "client auth",
        KUBELET_SERVING_SIGNER => "server auth",
        other => return Err(Refusal::UnknownSigner(other.to_owned())),
    };
    let malformed = |e: &dyn std::fmt::Display| Refusal::Malformed(e.to_string());
    let der = CertificateSigningRequestDer::from_pem_slice(request.pem.as_bytes())
        .map_err(|e| malformed(&e))?;
    let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|e| malformed(&e))?;
    // Also verifies that the caller holds the private key.
    let params = CertificateSigningRequestParams::from_der(&der).map_err(|e| malformed(&e))?;

    let subject = &parsed.certification_request_info.subject;
    let organizations = organizations(subject);
    let common_name = common_name(subject).unwrap_or_default();
    if request.signer == CLIENT_SIGNER {
        if organizations.iter().any(|one| one == MASTERS) {
            return Err(Refusal::Masters);
        }
        if organizations.len() > 1 {
            return Err(Refusal::Organizations(organizations));
        }
    } else {
        check_node(&organizations, &common_name)?;
    }
    if !allowed_usages(request, own_usage) {
        return Err(Refusal::Usages(request.usages.to_vec()));
    }

    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for extension in parsed.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(sans) = extension else {
            continue;
        };
        for san in &sans.general_names {
            match san {
                GeneralName::DNSName(name) => {
                    names.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    addresses.insert(certificate::ip(bytes).ok_or(Refusal::KindOfName)?);
                }
                _ => return Err(Refusal::KindOfName),
            }
        }
    }
    match (request.signer, names.is_empty() && addresses.is_empty()) {
        (KUBELET_SERVING_SIGNER, true) => Err(Refusal::NoNames),
        (KUBELET_CLIENT_SIGNER, false) => Err(Refusal::NamesNotAllowed),
        _ => Ok(Checked {
            request: params,
            common_name,
            organization: organizations.into_iter().next(),
            names,
            addresses,
        }),
    }
}

fn check_node(organizations: &[String], common_name: &str) -> Result<(), Refusal> {
    if organizations != [NODES] {
        return Err(Refusal::Organization(organizations.to_vec()));
    }
    match common_name.strip_prefix(NODE_USER_PREFIX) {
        None | Some("") => Err(Refusal::CommonName(common_name.to_owned())),
        Some(_) => Ok(()),
    }
}

/// The signer's own usage, and nothing else but `digital signature`, which nodes have to name, and `key encipherment`.
fn allowed_usages(request: &SigningRequest<'_>, own: &str) -> bool {
    let usages: BTreeSet<&str> = request.usages.iter().map(String::as_str).collect();
    let signs = request.signer == CLIENT_SIGNER || usages.contains("digital signature");
    signs
        && usages.contains(own)
        && usages
            .iter()
            .all(|u| ["digital signature", "key encipherment", own].contains(u))
}

#[cfg(test)]
mod tests;
