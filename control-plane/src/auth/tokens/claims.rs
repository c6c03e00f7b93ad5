//! What tokens say, in upstream's names. Times are seconds since the epoch.

use serde::{Deserialize, Serialize};

use crate::auth::service_account;

/// The issuer of tokens that Secrets hold.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// An object of which a token knows which one it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What a service account's token says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who it is for.
    #[serde(default)]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub private: Private,
    pub nbf: i64,
    pub sub: String,
}

/// Which account, and what else has to live for the token to be good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Object>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Object>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Object>,
    pub serviceaccount: Object,
    /// From then on whoever shows it should have a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

impl Private {
    pub(super) fn bound(self) -> Bound {
        Bound {
            namespace: self.namespace,
            account: self.serviceaccount,
            pod: self.pod,
            secret: self.secret,
            node: self.node,
            legacy: false,
        }
    }
}

/// What a token in a Secret says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

impl Legacy {
    /// For `secret`, which holds a token of `account`.
    pub fn new(namespace: &str, secret: &str, account: &Object) -> Self {
        Self {
            iss: LEGACY_ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.name.clone(),
            uid: account.uid.clone(),
            sub: service_account(namespace, &account.name),
        }
    }

    pub(super) fn bound(self) -> Bound {
        Bound {
            namespace: self.namespace,
            account: Object {
                name: self.account,
                uid: self.uid,
            },
            pod: None,
            secret: Some(Object {
                name: self.secret,
                uid: String::new(),
            }),
            node: None,
            legacy: true,
        }
    }
}

/// What a token depends on: it is good as long as all of this is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    pub namespace: String,
    pub account: Object,
    pub pod: Option<Object>,
    /// Without a uid for a legacy token.
    pub secret: Option<Object>,
    pub node: Option<Object>,
    /// The Secret holds the token itself.
    pub legacy: bool,
}
