//! The roles and bindings that every cluster has: upstream's, and those of this control plane's own parts.

mod parts;
mod people;
mod system;

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef,
    Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::repair::AUTO_UPDATE;
use super::{GROUP, Policy, Roles};
use crate::auth::rules::Rule;

const LABEL: (&str, &str) = ("kubernetes.io/bootstrapping", "rbac-defaults");

/// A default role. `into` and `from` are which aggregated role it is part of, and which parts it is made of, both by the end
/// of a label's name: `view` is `rbac.authorization.k8s.io/aggregate-to-view`.
struct Default {
    name: &'static str,
    rules: &'static [Rule],
    into: Option<&'static str>,
    from: Option<&'static str>,
}

const fn role(name: &'static str, rules: &'static [Rule]) -> Default {
    Default {
        name,
        rules,
        into: None,
        from: None,
    }
}

/// Who has a default role.
struct Bound {
    role: &'static str,
    /// The binding's name.
    name: &'static str,
    users: &'static [&'static str],
    groups: &'static [&'static str],
}

/// A role in a namespace, and the users that have it.
struct Local {
    namespace: &'static str,
    role: Default,
    /// The binding's name.
    binding: &'static str,
    users: &'static [&'static str],
}

fn aggregate_to(role: &str) -> String {
    format!("{GROUP}/aggregate-to-{role}")
}

fn metadata(namespace: &str, name: &str, into: Option<&str>) -> ObjectMeta {
    let mut labels = BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]);
    labels.extend(into.map(|role| (aggregate_to(role), "true".to_owned())));
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        labels: Some(labels),
        annotations: Some([(AUTO_UPDATE.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    }
}

fn policy_rules(rules: &[Rule]) -> Option<Vec<PolicyRule>> {
    (!rules.is_empty()).then(|| rules.iter().map(PolicyRule::from).collect())
}

fn subjects(users: &[&str], groups: &[&str]) -> Option<Vec<Subject>> {
    let of = |kind: &str, name: &str| Subject {
        api_group: Some(GROUP.to_owned()),
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: None,
    };
    let users = users.iter().map(|name| of("User", name));
    let all: Vec<_> = users
        .chain(groups.iter().map(|name| of("Group", name)))
        .collect();
    (!all.is_empty()).then_some(all)
}

fn reference(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: GROUP.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

pub fn cluster_roles() -> Vec<ClusterRole> {
    let all = people::ROLES
        .iter()
        .chain(system::ROLES)
        .chain(parts::ROLES);
    let made = all.map(|role| ClusterRole {
        metadata: metadata("", role.name, role.into),
        rules: policy_rules(role.rules),
        aggregation_rule: role.from.map(|from| AggregationRule {
            cluster_role_selectors: Some(vec![LabelSelector {
                match_labels: Some([(aggregate_to(from), "true".to_owned())].into()),
                match_expressions: None,
            }]),
        }),
    });
    made.collect()
}

pub fn cluster_role_bindings() -> Vec<ClusterRoleBinding> {
    let all = system::BOUND.iter().chain(parts::BOUND);
    let made = all.map(|bound| ClusterRoleBinding {
        metadata: metadata("", bound.name, None),
        role_ref: reference("ClusterRole", bound.role),
        subjects: subjects(bound.users, bound.groups),
    });
    made.collect()
}

/// Roles in namespaces, each with its binding.
pub fn local_roles() -> Vec<(Role, RoleBinding)> {
    let made = parts::LOCAL.iter().map(|local| {
        let role = Role {
            metadata: metadata(local.namespace, local.role.name, None),
            rules: policy_rules(local.role.rules),
        };
        let binding = RoleBinding {
            metadata: metadata(local.namespace, local.binding, None),
            role_ref: reference("Role", local.role.name),
            subjects: subjects(local.users, &[]),
        };
        (role, binding)
    });
    made.collect()
}

/// What the defaults allow, before anything is stored.
pub fn policy() -> Policy {
    let mut roles = Roles::default();
    let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
    for role in cluster_roles() {
        roles.put_cluster_role(&name(&role.metadata), role);
    }
    for binding in cluster_role_bindings() {
        roles
            .cluster_bindings
            .insert(name(&binding.metadata), binding);
    }
    for (role, binding) in local_roles() {
        let namespace = role.metadata.namespace.clone().unwrap_or_default();
        let key = (namespace.clone(), name(&binding.metadata));
        roles.put_role(&namespace, &name(&role.metadata), role);
        roles.bindings.insert(key, binding);
    }
    Policy::new(&roles)
}
