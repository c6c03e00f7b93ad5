//! How a stored default role or binding becomes what this version has, without losing what people added. Pure.

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Rule, missing};

/// An object that says `false` here is left alone.
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What is to be done about a binding.
#[derive(Debug, PartialEq)]
pub enum Repair<T> {
    Nothing,
    Update(T),
    /// It has another role, which cannot be changed.
    Replace,
}

/// The role with what it lacks; None if it lacks nothing.
pub fn cluster_role(there: &ClusterRole, wanted: &ClusterRole) -> Option<ClusterRole> {
    if is_left_alone(&there.metadata) {
        return None;
    }
    let mut new = there.clone();
    complete_metadata(&mut new.metadata, &wanted.metadata);
    match &wanted.aggregation_rule {
        // Its rules are the controller's.
        Some(rule) => {
            let selectors = new.aggregation_rule.get_or_insert_default();
            let selectors = selectors.cluster_role_selectors.get_or_insert_default();
            for selector in rule.cluster_role_selectors.iter().flatten() {
                if !selectors.contains(selector) {
                    selectors.push(selector.clone());
                }
            }
        }
        None => complete_rules(&mut new.rules, wanted.rules.as_deref()),
    }
    (new != *there).then_some(new)
}

/// The role with what it lacks; None if it lacks nothing.
pub fn role(there: &Role, wanted: &Role) -> Option<Role> {
    if is_left_alone(&there.metadata) {
        return None;
    }
    let mut new = there.clone();
    complete_metadata(&mut new.metadata, &wanted.metadata);
    complete_rules(&mut new.rules, wanted.rules.as_deref());
    (new != *there).then_some(new)
}

pub fn cluster_binding(
    there: &ClusterRoleBinding,
    wanted: &ClusterRoleBinding,
) -> Repair<ClusterRoleBinding> {
    if is_left_alone(&there.metadata) {
        return Repair::Nothing;
    }
    if there.role_ref != wanted.role_ref {
        return Repair::Replace;
    }
    let mut new = there.clone();
    complete_metadata(&mut new.metadata, &wanted.metadata);
    complete_subjects(&mut new.subjects, wanted.subjects.as_deref());
    if new == *there {
        Repair::Nothing
    } else {
        Repair::Update(new)
    }
}

pub fn binding(there: &RoleBinding, wanted: &RoleBinding) -> Repair<RoleBinding> {
    if is_left_alone(&there.metadata) {
        return Repair::Nothing;
    }
    if there.role_ref != wanted.role_ref {
        return Repair::Replace;
    }
    let mut new = there.clone();
    complete_metadata(&mut new.metadata, &wanted.metadata);
    complete_subjects(&mut new.subjects, wanted.subjects.as_deref());
    if new == *there {
        Repair::Nothing
    } else {
        Repair::Update(new)
    }
}

fn is_left_alone(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.iter().flatten();
    annotations
        .into_iter()
        .any(|(key, value)| key == AUTO_UPDATE && value == "false")
}

fn complete_metadata(there: &mut ObjectMeta, wanted: &ObjectMeta) {
    for (there, wanted) in [
        (&mut there.labels, &wanted.labels),
        (&mut there.annotations, &wanted.annotations),
    ] {
        for (key, value) in wanted.iter().flatten() {
            // Upstream, too, keeps another value.
            there
                .get_or_insert_default()
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
    }
}

fn complete_rules(there: &mut Option<Vec<PolicyRule>>, wanted: Option<&[PolicyRule]>) {
    let owned = |rules: &[PolicyRule]| rules.iter().cloned().map(Rule::from).collect::<Vec<_>>();
    let has = owned(there.as_deref().unwrap_or_default());
    for wanted in wanted.unwrap_or_default() {
        if !missing(&has, &owned(std::slice::from_ref(wanted))).is_empty() {
            there.get_or_insert_default().push(wanted.clone());
        }
    }
}

fn complete_subjects(there: &mut Option<Vec<Subject>>, wanted: Option<&[Subject]>) {
    for wanted in wanted.unwrap_or_default() {
        if !there.iter().flatten().any(|subject| subject == wanted) {
            there.get_or_insert_default().push(wanted.clone());
        }
    }
}
