//! The node's certificates as values: requests for them, what they hold, when to renew them. Pure but for making keys.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::api::ObjectMeta;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

/// Signs what nodes call the API server with.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs what nodes serve the kubelet API with.
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Renewal falls between these parts of a certificate's life, in per cent; each node draws its own, so that nodes that
/// joined together do not come back together.
const RENEW_WINDOW: (u64, u64) = (70, 80);

/// A private key and the request for a certificate over it.
pub struct KeyAndRequest {
    pub key_pem: String,
    pub request: CertificateSigningRequest,
}

/// A certificate or a request for one could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot make a key or a certificate request: {0}")]
    Make(#[from] rcgen::Error),
    #[error("this is no certificate in PEM: {0}")]
    Read(String),
}

/// What a request for a certificate has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Neither decided nor signed yet.
    Pending,
    /// The certificate, in PEM.
    Issued(String),
    /// Why not.
    Refused(String),
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The subject's common name.
    pub subject: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// DNS names and addresses that it is good for.
    pub names: BTreeSet<String>,
}

/// The user that a node is for the API server.
pub fn node_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// A fresh key and the request for the certificate that the node calls the API server with.
pub fn client_request(node: &str) -> Result<KeyAndRequest, CertificateError> {
    request(
        node,
        CertificateParams::new(Vec::new())?,
        CLIENT_SIGNER,
        "client auth",
    )
}

/// What the certificate that the node serves the kubelet API with is for.
pub fn serving_names(node: &str, addresses: &[IpAddr]) -> Vec<String> {
    let addresses = addresses.iter().map(IpAddr::to_string);
    [node.to_owned()].into_iter().chain(addresses).collect()
}

/// A fresh key and the request for the certificate that the node serves the kubelet API with.
pub fn serving_request(
    node: &str,
    addresses: &[IpAddr],
) -> Result<KeyAndRequest, CertificateError> {
    let names = serving_names(node, addresses);
    request(
        node,
        CertificateParams::new(names)?,
        SERVING_SIGNER,
        "server auth",
    )
}

fn request(
    node: &str,
    mut params: CertificateParams,
    signer: &str,
    usage: &str,
) -> Result<KeyAndRequest, CertificateError> {
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, node_user(node));
    let key = KeyPair::generate()?;
    let pem = params.serialize_request(&key)?.pem()?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta {
            name: Some(request_name(key.public_key_raw())),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    Ok(KeyAndRequest {
        key_pem: key.serialize_pem(),
        request,
    })
}

/// A name that no other key's request has.
fn request_name(public_key: &[u8]) -> String {
    let hash = Sha256::digest(public_key);
    let hex: String = hash
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("node-csr-{hex}")
}

/// What has become of a request.
pub fn outcome(request: &CertificateSigningRequest) -> Outcome {
    let Some(status) = &request.status else {
        return Outcome::Pending;
    };
    let refusal = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
    if let Some(refusal) = refusal {
        let why = refusal
            .message
            .as_deref()
            .or(refusal.reason.as_deref())
            .unwrap_or("no reason given");
        return Outcome::Refused(format!("{}: {why}", refusal.type_));
    }
    match &status.certificate {
        Some(ByteString(pem)) => match String::from_utf8(pem.clone()) {
            Ok(pem) => Outcome::Issued(pem),
            Err(_) => Outcome::Refused("the certificate that was issued is not PEM".into()),
        },
        None => Outcome::Pending,
    }
}

/// Reads the first certificate of a PEM text.
pub fn summarize(pem: &str) -> Result<Summary, CertificateError> {
    let unreadable = |error: &dyn std::fmt::Display| CertificateError::Read(error.to_string());
    let mut rest = pem.as_bytes();
    let block = loop {
        let (after, block) = parse_x509_pem(rest).map_err(|error| unreadable(&error))?;
        if block.label == "CERTIFICATE" {
            break block;
        }
        rest = after;
    };
    let certificate = block.parse_x509().map_err(|error| unreadable(&error))?;
    let time = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| unreadable(&error))
    };
    let common_name = certificate.subject().iter_common_name().next();
    Ok(Summary {
        subject: common_name
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned(),
        not_before: time(certificate.validity().not_before)?,
        not_after: time(certificate.validity().not_after)?,
        names: names(&certificate),
    })
}

fn names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension
        .iter()
        .flat_map(|extension| &extension.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(octets) => match **octets {
                [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
                _ => <[u8; 16]>::try_from(*octets)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
            },
            _ => None,
        })
        .collect()
}

impl Summary {
    /// Whether it may be used now.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// How long to wait until it should be renewed; `draw`, from 0 to 1, is where in the window this node renews.
    pub fn renew_in(&self, now: Timestamp, draw: f64) -> Duration {
        let (from, to) = RENEW_WINDOW;
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unsigned_abs();
        let earliest = life.mul_f64(from as f64 / 100.0);
        let window = life.mul_f64((to - from) as f64 / 100.0);
        let due = earliest + window.mul_f64(draw.clamp(0.0, 1.0));
        let age = Duration::try_from(now.duration_since(self.not_before)).unwrap_or_default();
        due.saturating_sub(age)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };
    use rcgen::CertificateSigningRequestParams;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn requests_name_the_node_its_group_and_what_it_serves() {
        let made = serving_request("worker-1", &["192.0.2.1".parse().unwrap()]).unwrap();
        let spec = &made.request.spec;
        assert_eq!(spec.signer_name, "kubernetes.io/kubelet-serving");
        assert_eq!(
            spec.usages.as_deref(),
            Some(&["digital signature".into(), "server auth".into()][..])
        );
        let pem = std::str::from_utf8(&spec.request.0).unwrap();
        let read = CertificateSigningRequestParams::from_pem(pem)
            .unwrap()
            .params;
        let subject = &read.distinguished_name;
        assert_eq!(
            subject.get(&DnType::CommonName),
            Some(&"system:node:worker-1".into())
        );
        assert_eq!(
            subject.get(&DnType::OrganizationName),
            Some(&"system:nodes".into())
        );
        assert_eq!(read.subject_alt_names.len(), 2);

        let client = client_request("worker-1").unwrap().request;
        assert_eq!(
            client.spec.signer_name,
            "kubernetes.io/kube-apiserver-client-kubelet"
        );
        assert_ne!(client.metadata.name, made.request.metadata.name);
    }

    #[test]
    fn an_outcome_is_read_from_the_status() {
        let mut request = client_request("worker-1").unwrap().request;
        assert_eq!(outcome(&request), Outcome::Pending);
        let condition = |kind: &str, message: &str| CertificateSigningRequestCondition {
            type_: kind.into(),
            status: "True".into(),
            message: Some(message.into()),
            ..CertificateSigningRequestCondition::default()
        };
        request.status = Some(CertificateSigningRequestStatus {
            conditions: Some(vec![condition("Approved", "by policy")]),
            certificate: None,
        });
        assert_eq!(outcome(&request), Outcome::Pending);
        request.status.as_mut().unwrap().certificate = Some(ByteString(b"PEM".to_vec()));
        assert_eq!(outcome(&request), Outcome::Issued("PEM".into()));
        request.status.as_mut().unwrap().conditions =
            Some(vec![condition("Denied", "unknown node")]);
        assert_eq!(
            outcome(&request),
            Outcome::Refused("Denied: unknown node".into())
        );
    }

    #[test]
    fn a_certificate_tells_whom_it_is_for_and_how_long() {
        let made = serving_request("worker-1", &["192.0.2.1".parse().unwrap()]).unwrap();
        let pem = std::str::from_utf8(&made.request.spec.request.0).unwrap();
        let mut params = CertificateSigningRequestParams::from_pem(pem)
            .unwrap()
            .params;
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let key = KeyPair::from_pem(&made.key_pem).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();

        // The key may stand before it in the same file.
        let summary = summarize(&format!("{}{certificate}", made.key_pem)).unwrap();
        assert_eq!(summary.subject, "system:node:worker-1");
        assert_eq!(
            summary.names,
            BTreeSet::from(["worker-1".into(), "192.0.2.1".into()])
        );
        assert!(summary.is_valid("2026-06-01T00:00:00Z".parse().unwrap()));
        assert!(!summary.is_valid("2027-01-01T00:00:00Z".parse().unwrap()));
        assert!(summarize("nonsense").is_err());
    }

    #[test]
    fn renewal_comes_before_four_fifths_of_the_life() {
        let summary = Summary {
            subject: String::new(),
            not_before: at(1000),
            not_after: at(2000),
            names: BTreeSet::new(),
        };
        assert_eq!(summary.renew_in(at(1000), 0.0), Duration::from_secs(700));
        assert_eq!(summary.renew_in(at(1000), 1.0), Duration::from_secs(800));
        assert_eq!(summary.renew_in(at(1600), 0.5), Duration::from_secs(150));
        assert_eq!(summary.renew_in(at(1900), 0.5), Duration::ZERO);
        // A certificate of the future, by a clock that is behind.
        assert_eq!(summary.renew_in(at(500), 0.0), Duration::from_secs(700));
    }
}
