//! From what a client showed to who it is: a certificate of the cluster's authority, or a bearer token.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::{common_name, organizations};
use super::token::JoinToken;
use super::tokens::{Authority, Refused, Verified};
use super::{BOOTSTRAPPERS, NODE_BOOTSTRAPPERS, User};

/// As whom the API server calls agents: nobody who calls an API server.
pub(super) const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// A credential was shown and is not valid: 401. Showing none at all makes the caller anonymous instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Unauthorized")]
pub struct Unauthorized;

/// A credential that is good by itself, or may be.
#[derive(Clone, Debug)]
pub enum Credential {
    User(User),
    /// The token of a service account, if that, and what the token is bound to, are still there.
    Account(Verified),
    /// Whoever the Secret of this token says, if there is one.
    Bootstrap(JoinToken),
}

/// What can be checked without the cluster's objects.
pub struct Authenticator {
    join_token: JoinToken,
    tokens: Arc<Authority>,
}

impl Authenticator {
    pub fn new(join_token: JoinToken, tokens: Arc<Authority>) -> Self {
        Self { join_token, tokens }
    }

    /// Makes service accounts' tokens.
    pub fn tokens(&self) -> &Authority {
        &self.tokens
    }

    /// Who is calling. `peer` is who the client's certificate is of, which TLS has verified against the cluster's authority;
    /// `token` a bearer token. The certificate decides if there is one, as upstream. `now` is seconds since the epoch.
    pub fn authenticate(
        &self,
        peer: Option<Result<User, Unauthorized>>,
        token: Option<&str>,
        now: i64,
    ) -> Result<Credential, Unauthorized> {
        if let Some(user) = peer {
            // API servers show this to agents. One that comes here was led here by an object that says where an agent is,
            // and the request is of whoever wrote that.
            return match user {
                Ok(user) if user.name == KUBELET_CLIENT => Err(Unauthorized),
                user => user.map(Credential::User),
            };
        }
        match token {
            Some(token) => self
                .token(token, &self.tokens.audiences(), now)
                .map_err(|_| Unauthorized),
            None => Ok(Credential::User(User::anonymous())),
        }
    }

    /// Whose bearer token it is. Of a service account's, one of `audiences` must be its.
    pub fn token(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Result<Credential, Refused> {
        if self.join_token.is(token) {
            let name = self.join_token.user_name();
            let groups = [BOOTSTRAPPERS, NODE_BOOTSTRAPPERS].map(str::to_owned);
            let user = User::authenticated(name, groups);
            return Ok(Credential::User(user));
        }
        if let Ok(token) = token.parse() {
            return Ok(Credential::Bootstrap(token));
        }
        self.tokens
            .verify(token, audiences, now)
            .map(Credential::Account)
    }
}

/// Who a certificate is of: the common name is the user, the organizations are the groups.
pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<User, Unauthorized> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| Unauthorized)?;
    let name = common_name(certificate.subject()).filter(|name| !name.is_empty());
    Ok(User::authenticated(
        name.ok_or(Unauthorized)?,
        organizations(certificate.subject()),
    ))
}

/// The token of a `Bearer` header. Other schemes are ignored, as upstream does.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
