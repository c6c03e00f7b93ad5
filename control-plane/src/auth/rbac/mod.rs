//! RBAC: what the roles allow that are bound to a user and its groups.
//!
//! [`Policy`] is pure: all roles and bindings, indexed by subject. [`Policies`] keeps one that follows the cache. [`defaults`]
//! are the roles that every cluster has, and [`repair`] brings those that are stored up to date.

pub mod defaults;
mod policies;
mod policy;
pub mod repair;
mod rule;
#[cfg(test)]
mod tests;

pub use policies::Policies;
pub use policy::{Policy, RoleRef, Roles, Verdict};
pub(crate) use rule::quoted;
pub use rule::{Rule, described, missing};

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
