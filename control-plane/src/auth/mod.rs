//! Who asks, and may they: the cluster CA, client certificates, tokens, the authorizer.

mod authenticate;
mod authorize;
mod certificate;
pub mod csr;
mod files;
mod kubeconfig;
mod node;
pub mod pki;
mod references;
mod rules;
#[cfg(test)]
mod tests;
pub mod tls;
mod token;

pub use authenticate::{Authenticator, Unauthorized};
pub use authorize::{Attributes, Decision, authorize};
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
            same_machine: false,
        }
    }

    /// A caller without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            same_machine: false,
        }
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
