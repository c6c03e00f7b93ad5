//! Service accounts' tokens: signed claims (JWT), the keys that sign and verify them, and what relying parties are told
//! (OpenID discovery). Pure, but for reading the key files.

mod claims;
mod keys;
#[cfg(test)]
mod tests;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub use claims::{Bound, Claims, LEGACY_ISSUER, Legacy, Object, Private};
pub use keys::{Keys, KeysError};

/// Why a token is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it is no token of a service account of this cluster")]
    Foreign,
    #[error("no key of this cluster signed it")]
    Signature,
    #[error("it is not valid before {0} seconds after the epoch")]
    Early(i64),
    #[error("it expired {0} seconds after the epoch")]
    Expired(i64),
    #[error("it is for the audiences {0:?}, not for {1:?}")]
    Audience(Vec<String>, Vec<String>),
}

/// A token that is good by itself. Whether its account and what it is bound to are still there is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub bound: Bound,
    /// Of the audiences that were asked for, those that it is for.
    pub audiences: Vec<String>,
    /// The token's own id, if it has one.
    pub id: String,
    /// It is used after the time for which it was asked for; the extension is for programs that do not read it anew.
    pub stale: bool,
}

/// Makes tokens, and tells which are good.
pub struct Authority {
    keys: Keys,
    issuer: String,
}

impl Authority {
    /// The issuer is a URL, under which relying parties outside would look for the keys.
    pub fn new(keys: Keys, issuer: String) -> Self {
        Self { keys, issuer }
    }

    /// Who a token is for that says nothing: the API server.
    pub fn audiences(&self) -> Vec<String> {
        vec![self.issuer.clone()]
    }

    /// A token with these claims. Only the issuer is filled in.
    pub fn issue(&self, claims: Claims) -> Result<String, KeysError> {
        let claims = Claims {
            iss: self.issuer.clone(),
            ..claims
        };
        self.sign(&json!(claims))
    }

    /// A token without an end, for a Secret that holds one.
    pub fn issue_legacy(&self, claims: &Legacy) -> Result<String, KeysError> {
        self.sign(&json!(claims))
    }

    fn sign(&self, claims: &Value) -> Result<String, KeysError> {
        let header = json!({"alg": self.keys.algorithm(), "kid": self.keys.id()});
        let signed = format!("{}.{}", encoded(&header), encoded(claims));
        let signature = self.keys.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Verifies a token for one of `audiences` at time `now`, in seconds since the epoch.
    pub fn verify(&self, token: &str, audiences: &[String], now: i64) -> Result<Verified, Refused> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Foreign)?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Foreign)?;
        let (header, claims) = (decoded(header)?, decoded(claims)?);
        let issuer = claims["iss"].as_str().unwrap_or_default();
        if issuer != self.issuer && issuer != LEGACY_ISSUER {
            return Err(Refused::Foreign);
        }
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| Refused::Foreign)?;
        let text = |field: &str| header[field].as_str().unwrap_or_default();
        if !self
            .keys
            .verify(text("alg"), text("kid"), signed.as_bytes(), &signature)
        {
            return Err(Refused::Signature);
        }
        if issuer == LEGACY_ISSUER {
            return self.legacy(claims, audiences);
        }
        let claims: Claims = serde_json::from_value(claims).map_err(|_| Refused::Foreign)?;
        if now < claims.nbf {
            return Err(Refused::Early(claims.nbf));
        }
        if now >= claims.exp {
            return Err(Refused::Expired(claims.exp));
        }
        let stale = claims.private.warnafter.is_some_and(|after| after < now);
        Ok(Verified {
            audiences: common(&claims.aud, audiences)?,
            id: claims.jti,
            bound: claims.private.bound(),
            stale,
        })
    }

    /// A legacy token is for the API server.
    fn legacy(&self, claims: Value, audiences: &[String]) -> Result<Verified, Refused> {
        let claims: Legacy = serde_json::from_value(claims).map_err(|_| Refused::Foreign)?;
        Ok(Verified {
            audiences: common(&self.audiences(), audiences)?,
            id: String::new(),
            bound: claims.bound(),
            stale: false,
        })
    }

    /// The keys that verify, as a JSON Web Key Set.
    pub fn key_set(&self) -> Value {
        self.keys.set()
    }

    /// The document at `/.well-known/openid-configuration`; `server` is `ADDRESS:PORT` of this server.
    pub fn discovery(&self, server: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.keys.algorithms(),
        })
    }
}

fn common(has: &[String], asked: &[String]) -> Result<Vec<String>, Refused> {
    let common: Vec<String> = has
        .iter()
        .filter(|one| asked.contains(one))
        .cloned()
        .collect();
    if common.is_empty() {
        return Err(Refused::Audience(has.to_vec(), asked.to_vec()));
    }
    Ok(common)
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decoded(part: &str) -> Result<Value, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Foreign)?;
    serde_json::from_slice(&bytes).map_err(|_| Refused::Foreign)
}
