//! The kinds of RBAC: roles are lists of rules, bindings give a role to subjects.

mod binding;
mod role;

/// The group that roles, and users and groups as subjects, belong to.
pub const GROUP: &str = "rbac.authorization.k8s.io";
