//! Who asks, and may they: the cluster CA, client certificates, tokens, the authorizer.

mod account;
mod authenticate;
mod authorize;
pub mod bootstrap_token;
mod certificate;
pub mod csr;
mod files;
mod kubeconfig;
mod node;
pub mod pki;
pub mod rbac;
mod references;
mod rules;
pub mod shared;
#[cfg(test)]
mod tests;
pub mod tls;
mod token;
pub mod tokens;

use std::collections::BTreeMap;

pub use account::{service_account, service_account_of};
pub use authenticate::{Authenticator, Credential, Unauthorized, bearer, of_certificate};
pub use authorize::{Attributes, Decision, authorize, refusal};
pub use certificate::{Ca, CertificateError, CertifiedKeyPem};
pub use node::{node_may_touch, node_name};
pub use references::{Referenced, references};
pub use token::{JoinToken, NotAToken};

/// The group of those who may do everything.
pub const MASTERS: &str = "system:masters";
/// Everyone who showed a valid credential.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everyone who showed none.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Every service account; followed by `:NAMESPACE` those of one namespace.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// The agents.
pub const NODES: &str = "system:nodes";
/// Those who hold a join token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// What a node's name follows in its user name.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// The scheduler's user name.
pub const SCHEDULER: &str = "system:kube-scheduler";
/// The controllers' user name.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// The user name of a service proxy: kube-proxy, or `kernelet run --proxy-only`.
pub const KUBE_PROXY: &str = "system:kube-proxy";

/// In `spec.extra` of a signing request that came from the machine of the control plane.
pub const SAME_MACHINE: &str = "kernelet.io/same-machine";

/// A caller's identity. It travels with a request as an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
    /// Tells one bearer of the name from a later one; empty where there is none.
    pub uid: String,
    /// What else is known, by key.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Whether the request came from the machine that the control plane runs on.
    pub same_machine: bool,
}

impl User {
    /// A caller who proved to be `name`; `system:authenticated` is added to the groups.
    pub fn authenticated(
        name: impl Into<String>,
        groups: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.into(),
            groups,
            uid: String::new(),
            extra: BTreeMap::new(),
            same_machine: false,
        }
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = [
            SERVICE_ACCOUNTS.to_owned(),
            format!("{SERVICE_ACCOUNTS}:{namespace}"),
        ];
        Self {
            uid: uid.to_owned(),
            ..Self::authenticated(service_account(namespace, name), groups)
        }
    }

    /// A caller without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            uid: String::new(),
            extra: BTreeMap::new(),
            same_machine: false,
        }
    }

    /// The API server itself, where it writes what a request brings with it.
    pub fn api_server() -> Self {
        Self::authenticated("system:apiserver", [MASTERS.to_owned()])
    }

    /// The in-process scheduler.
    pub fn scheduler() -> Self {
        Self::authenticated(SCHEDULER, [])
    }

    /// The in-process controllers.
    pub fn controller_manager() -> Self {
        Self::authenticated(CONTROLLER_MANAGER, [])
    }

    /// Whether the user belongs to `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
