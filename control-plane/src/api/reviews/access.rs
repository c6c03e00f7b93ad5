//! Access reviews: what the authorizer would say to a request.

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReviewSpec,
    SelfSubjectRulesReviewSpec, SubjectAccessReviewSpec,
};
use serde_json::{Value, json};

use super::invalid;
use crate::api::Api;
use crate::api::access::{self, Access};
use crate::api::error::ApiError;
use crate::auth::{self, Attributes, User};
use crate::resources::validate::Path;

/// What the spec asks about, borrowed.
fn attributes<'a>(
    kind: &str,
    resource: Option<&'a ResourceAttributes>,
    path: Option<&'a NonResourceAttributes>,
) -> Result<Attributes<'a>, ApiError> {
    fn text(field: &Option<String>) -> &str {
        field.as_deref().unwrap_or_default()
    }
    let spec = Path::new("spec");
    match (resource, path) {
        (Some(a), None) => Ok(Attributes {
            verb: text(&a.verb),
            group: text(&a.group),
            resource: text(&a.resource),
            subresource: text(&a.subresource),
            namespace: text(&a.namespace),
            name: text(&a.name),
            field_selector: "",
            path: "",
        }),
        (None, Some(a)) => Ok(Attributes {
            verb: text(&a.verb),
            path: text(&a.path),
            ..Attributes::default()
        }),
        (Some(_), Some(_)) => {
            let at = spec.child("nonResourceAttributes");
            let why = "cannot be specified in combination with resourceAttributes";
            Err(invalid(kind, at.invalid(shown(&path), why)))
        }
        (None, None) => {
            let at = spec.child("resourceAttributes");
            let why =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            Err(invalid(kind, at.invalid(Value::Null, why)))
        }
    }
}

fn shown<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

pub(super) async fn of_anybody(
    api: &Api,
    spec: SubjectAccessReviewSpec,
) -> Result<Value, ApiError> {
    of_subject(api, "SubjectAccessReview", spec).await
}

pub(super) async fn within(
    api: &Api,
    spec: SubjectAccessReviewSpec,
    namespace: &str,
) -> Result<Value, ApiError> {
    const KIND: &str = "LocalSubjectAccessReview";
    if let Some(path) = &spec.non_resource_attributes {
        let at = Path::new("spec").child("nonResourceAttributes");
        let why = "disallowed on this kind of request";
        return Err(invalid(KIND, at.invalid(shown(path), why)));
    }
    let asked = spec.resource_attributes.as_ref();
    let asked = asked
        .and_then(|a| a.namespace.as_deref())
        .unwrap_or_default();
    if spec.resource_attributes.is_some() && asked != namespace {
        return Err(ApiError::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    of_subject(api, KIND, spec).await
}

async fn of_subject(
    api: &Api,
    kind: &str,
    spec: SubjectAccessReviewSpec,
) -> Result<Value, ApiError> {
    let resource = spec.resource_attributes.as_ref();
    let a = attributes(kind, resource, spec.non_resource_attributes.as_ref())?;
    let groups = spec.groups.unwrap_or_default();
    let name = spec.user.unwrap_or_default();
    if name.is_empty() && groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(
            kind,
            Path::new("spec").child("user").invalid("", why),
        ));
    }
    // Exactly whom the question names: nothing is added to the groups.
    let user = User {
        name,
        groups,
        uid: spec.uid.unwrap_or_default(),
        extra: spec.extra.unwrap_or_default(),
        same_machine: false,
    };
    answer(api, &user, &a).await
}

pub(super) async fn of_caller(
    api: &Api,
    user: &User,
    spec: SelfSubjectAccessReviewSpec,
) -> Result<Value, ApiError> {
    let resource = spec.resource_attributes.as_ref();
    let path = spec.non_resource_attributes.as_ref();
    answer(
        api,
        user,
        &attributes("SelfSubjectAccessReview", resource, path)?,
    )
    .await
}

async fn answer(api: &Api, user: &User, a: &Attributes<'_>) -> Result<Value, ApiError> {
    let (allowed, reason) = match access::decide(&api.registry, user, a).await? {
        Access::Allowed(why) => (true, why),
        Access::Refused(why) => (false, why),
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    Ok(status)
}

pub(super) fn rules(
    api: &Api,
    user: &User,
    spec: SelfSubjectRulesReviewSpec,
) -> Result<Value, ApiError> {
    let namespace = spec.namespace.unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (all, mut incomplete) = api.registry.policies.current().rules_of(user, &namespace);
    let (mut resource_rules, mut paths) = (Vec::new(), Vec::new());
    for rule in all {
        if !rule.resources.is_empty() {
            let mut shown = json!({
                "verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources,
            });
            if !rule.names.is_empty() {
                shown["resourceNames"] = json!(rule.names);
            }
            resource_rules.push(shown);
        }
        if !rule.urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    let mut status = json!({"resourceRules": resource_rules, "nonResourceRules": paths});
    if auth::node_name(user).is_some() {
        incomplete = true;
        status["evaluationError"] = json!("node authorizer does not support user rule resolution");
    }
    status["incomplete"] = json!(incomplete);
    Ok(status)
}
