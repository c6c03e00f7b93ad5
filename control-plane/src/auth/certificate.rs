//! Certificates as values: issuing them under the cluster's CA, and judging one that was found on disk.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How long the CA is valid.
const CA_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// How long what it issues is valid, unless less was asked for.
pub(super) const LIFETIME: Duration = Duration::from_hours(365 * 24);
/// A certificate with less than this left is issued anew at a start.
const RENEWAL: Duration = Duration::from_hours(60 * 24);
/// Certificates are valid from a little before their making: other machines' clocks may be behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("this is no certificate in PEM form")]
    NotPem,
    #[error("the private key does not belong to the certificate")]
    ForeignKey,
    #[error("the certificate is no certificate authority")]
    NotAuthority,
    #[error("the certificate expired")]
    Expired,
}

/// A certificate and its private key, in PEM form.
#[derive(Clone)]
pub struct CertifiedKeyPem {
    pub certificate: String,
    pub key: String,
}

/// What a certificate is to say.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject<'a> {
    pub(super) common_name: &'a str,
    pub(super) organization: Option<&'a str>,
    pub(super) names: BTreeSet<String>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) server: bool,
    pub(super) client: bool,
    pub(super) key_encipherment: bool,
}

/// The cluster's certificate authority.
pub struct Ca {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Ca {
    /// The PEM of the CA's certificate, which clients trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The PEM of a fresh self-signed CA certificate for `key`.
    pub(super) fn new_certificate(
        key: &KeyPair,
        now: SystemTime,
    ) -> Result<String, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("kubernetes", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + CA_LIFETIME).into();
        Ok(params.self_signed(key)?.pem())
    }

    /// The CA that `certificate` and `key`, both PEM, are.
    pub(super) fn adopt(
        certificate: String,
        key: &str,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(key)?;
        let found = Found::read(&certificate)?;
        if !found.is_ca {
            return Err(CertificateError::NotAuthority);
        }
        if found.public_key != key.subject_public_key_info() {
            return Err(CertificateError::ForeignKey);
        }
        if found.not_after <= now {
            return Err(CertificateError::Expired);
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&certificate, key)?,
            certificate,
            not_after: found.not_after,
        })
    }

    /// A fresh key with a certificate.
    pub(super) fn issue(
        &self,
        subject: &Subject<'_>,
        now: SystemTime,
    ) -> Result<CertifiedKeyPem, CertificateError> {
        let key = KeyPair::generate()?;
        Ok(CertifiedKeyPem {
            certificate: self.sign(subject, &key, LIFETIME, now)?,
            key: key.serialize_pem(),
        })
    }

    /// The PEM of a certificate for `key`.
    pub(super) fn sign(
        &self,
        subject: &Subject<'_>,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(subject.common_name, subject.organization);
        for dns in &subject.names {
            params
                .subject_alt_names
                .push(SanType::DnsName(dns.as_str().try_into()?));
        }
        let addresses = subject.addresses.iter().map(|ip| SanType::IpAddress(*ip));
        params.subject_alt_names.extend(addresses);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if subject.key_encipherment {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        if subject.server {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if subject.client {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime).min(self.not_after).into();
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// Whether a pair that was found still does as `subject`: ours, its key's, for all the names, and not soon to expire.
    pub(super) fn still_good(
        &self,
        pair: &CertifiedKeyPem,
        subject: &Subject<'_>,
        now: SystemTime,
    ) -> bool {
        let Ok(found) = Found::read(&pair.certificate) else {
            return false;
        };
        let own_key = KeyPair::from_pem(&pair.key)
            .is_ok_and(|key| key.subject_public_key_info() == found.public_key);
        own_key
            && self.signed(&pair.certificate)
            && found.not_after > now + RENEWAL
            && found.common_name == subject.common_name
            && found.names.is_superset(&subject.names)
            && found.addresses.is_superset(&subject.addresses)
    }

    fn signed(&self, certificate: &str) -> bool {
        let (Ok(own), Ok(other)) = (der(&self.certificate), der(certificate)) else {
            return false;
        };
        match (
            X509Certificate::from_der(&own),
            X509Certificate::from_der(&other),
        ) {
            (Ok((_, own)), Ok((_, other))) => {
                other.verify_signature(Some(own.public_key())).is_ok()
            }
            _ => false,
        }
    }
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn der(pem: &str) -> Result<Vec<u8>, CertificateError> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CertificateError::NotPem)?;
    Ok(der.to_vec())
}

/// What matters of a certificate that was found.
struct Found {
    common_name: String,
    is_ca: bool,
    public_key: Vec<u8>,
    not_after: SystemTime,
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Found {
    fn read(pem: &str) -> Result<Self, CertificateError> {
        let der = der(pem)?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|_| CertificateError::NotPem)?;
        let mut found = Self {
            common_name: common_name(certificate.subject()).unwrap_or_default(),
            is_ca: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
            not_after: SystemTime::UNIX_EPOCH
                + Duration::from_secs(
                    u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0),
                ),
            names: BTreeSet::new(),
            addresses: BTreeSet::new(),
        };
        if let Ok(Some(sans)) = certificate.subject_alternative_name() {
            for san in &sans.value.general_names {
                match san {
                    GeneralName::DNSName(name) => {
                        found.names.insert((*name).to_owned());
                    }
                    GeneralName::IPAddress(bytes) => found.addresses.extend(ip(bytes)),
                    _ => {}
                }
            }
        }
        Ok(found)
    }
}

/// The first common name of a subject.
pub(super) fn common_name(subject: &x509_parser::x509::X509Name<'_>) -> Option<String> {
    let first = subject.iter_common_name().next()?;
    first.as_str().ok().map(str::to_owned)
}

/// All organizations of a subject.
pub(super) fn organizations(subject: &x509_parser::x509::X509Name<'_>) -> Vec<String> {
    subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok().map(str::to_owned))
        .collect()
}

/// An address from the 4 or 16 bytes, in network order, that a subject alternative name holds.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
