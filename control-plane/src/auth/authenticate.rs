//! From what a client showed to who it is: a certificate of the cluster's authority, or a bearer token.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::{common_name, organizations};
use super::token::JoinToken;
use super::{BOOTSTRAPPERS, User};

/// A credential was shown and is not valid: 401. Showing none at all makes the caller anonymous instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Unauthorized")]
pub struct Unauthorized;

/// What can be checked. Service-account tokens will be a second kind of bearer token here.
pub struct Authenticator {
    join_token: JoinToken,
}

impl Authenticator {
    pub fn new(join_token: JoinToken) -> Self {
        Self { join_token }
    }

    /// Who is calling. `certificate` is the client's, which TLS has verified against the cluster's authority; `authorization`
    /// the header of that name. The certificate decides if there is one, as upstream.
    pub fn authenticate(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        authorization: Option<&str>,
    ) -> Result<User, Unauthorized> {
        if let Some(certificate) = certificate {
            return from_certificate(certificate);
        }
        match authorization.and_then(bearer) {
            Some(token) => self.check_token(token),
            None => Ok(User::anonymous()),
        }
    }

    fn check_token(&self, token: &str) -> Result<User, Unauthorized> {
        if !self.join_token.is(token) {
            return Err(Unauthorized);
        }
        let name = format!("system:bootstrap:{}", self.join_token.id());
        Ok(User::authenticated(name, [BOOTSTRAPPERS.to_owned()]))
    }
}

/// The common name is the user, the organizations are the groups.
fn from_certificate(certificate: &CertificateDer<'_>) -> Result<User, Unauthorized> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| Unauthorized)?;
    let name = common_name(certificate.subject()).filter(|name| !name.is_empty());
    Ok(User::authenticated(
        name.ok_or(Unauthorized)?,
        organizations(certificate.subject()),
    ))
}

/// The token of a `Bearer` header. Other schemes are ignored, as upstream does.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
