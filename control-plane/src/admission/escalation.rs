//! Nobody gives away what it does not have: who writes a role, or binds one, has all that is in it, or the verb `escalate` or
//! `bind` on it.

use k8s_openapi::api::rbac::v1::{AggregationRule, PolicyRule, RoleRef as Reference};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::auth::rbac::{self, Policy, RoleRef, Rule, Verdict};
use crate::auth::{Attributes, MASTERS};
use crate::resources;

/// Refuses a new or changed role or binding that would give more than the writer has. `old` is the present state for an
/// update.
pub(super) fn refuse(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
    policy: &Policy,
) -> Result<(), ApiError> {
    let written = matches!(review.operation, Operation::Create | Operation::Update);
    if !written
        || review.kind.group != rbac::GROUP
        || review.user.is_in(MASTERS)
        || old.is_some_and(|old| differs_for_garbage_collection_only(object, old))
    {
        return Ok(());
    }
    match review.kind.plural {
        "roles" | "clusterroles" => refuse_role(review, object, old, policy),
        "rolebindings" | "clusterrolebindings" => refuse_binding(review, object, policy),
        _ => Ok(()),
    }
}

/// Garbage collection writes these fields, and holds no roles.
fn differs_for_garbage_collection_only(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("ownerReferences");
            metadata.shift_remove("finalizers");
            metadata.shift_remove("resourceVersion");
        }
        object
    };
    rest(new) == rest(old)
}

fn refuse_role(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
    policy: &Policy,
) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if may(
        review,
        policy,
        "escalate",
        (review.kind.plural, review.namespace, name),
    ) {
        return Ok(());
    }
    let asked: Vec<PolicyRule> = read(&object["rules"]).unwrap_or_default();
    let asked: Vec<Rule> = asked.into_iter().map(Rule::from).collect();
    check(review, policy, name, &asked)?;
    let aggregates = |object: &Value| {
        let rule: Option<AggregationRule> = read(&object["aggregationRule"]);
        rule.and_then(|rule| rule.cluster_role_selectors)
            .is_some_and(|all| !all.is_empty())
    };
    if [Some(object), old].into_iter().flatten().any(aggregates)
        && !missing(review, policy, &everything()).is_empty()
    {
        let why = "must have cluster-admin privileges to use the aggregationRule";
        return Err(forbidden(review, name, why));
    }
    Ok(())
}

fn refuse_binding(review: &Review<'_>, object: &Value, policy: &Policy) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    // Validation says what is wrong with one that cannot be read.
    let Some(reference) = read::<Reference>(&object["roleRef"]) else {
        return Ok(());
    };
    let role = RoleRef::of(&reference, review.namespace);
    let (plural, _, role_name) = role.place();
    if may(
        review,
        policy,
        "bind",
        (plural, review.namespace, role_name),
    ) {
        return Ok(());
    }
    let Some(rules) = policy.role(&role) else {
        let kind = resources::find(rbac::GROUP, "v1", plural).ok_or_else(ApiError::no_route)?;
        return Err(ApiError::not_found(kind, role_name));
    };
    check(review, policy, name, rules)
}

fn check(review: &Review<'_>, policy: &Policy, name: &str, asked: &[Rule]) -> Result<(), ApiError> {
    let missing = missing(review, policy, asked);
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        review.user.name,
        rbac::quoted(&review.user.groups),
        rbac::described(&missing)
    );
    Err(forbidden(review, name, &why))
}

fn missing(review: &Review<'_>, policy: &Policy, asked: &[Rule]) -> Vec<Rule> {
    let (own, _) = policy.rules_of(review.user, review.namespace);
    rbac::missing(&own, asked)
}

fn may(review: &Review<'_>, policy: &Policy, verb: &str, place: (&str, &str, &str)) -> bool {
    let (resource, namespace, name) = place;
    let attributes = Attributes {
        verb,
        group: rbac::GROUP,
        resource,
        namespace,
        name,
        ..Attributes::default()
    };
    matches!(
        policy.authorize(review.user, &attributes),
        Verdict::Allowed(_)
    )
}

fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    let of_resources = Rule {
        verbs: all(),
        groups: all(),
        resources: all(),
        ..Rule::default()
    };
    let of_paths = Rule {
        verbs: all(),
        urls: all(),
        ..Rule::default()
    };
    [of_resources, of_paths]
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn forbidden(review: &Review<'_>, name: &str, why: &str) -> ApiError {
    ApiError::forbidden(review.kind.group, review.kind.plural, name, why)
}
