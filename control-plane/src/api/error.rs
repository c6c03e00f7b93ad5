//! Refusals: what went wrong with a request, as the `Status` object that Kubernetes' clients know.

use std::collections::HashSet;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::apply::ApplyError;
use crate::resources::{FieldError, Kind};

/// How many of the things that are wrong with an object are named.
const SHOWN: usize = 100;

/// A request's refusal. It becomes a `v1 Status` with the code, reason, message and details that upstream would give.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: StatusCode,
    pub reason: &'static str,
    pub message: String,
    /// `Status.details`; null when there is nothing to add.
    pub details: Box<Value>,
    /// Seconds after which it is worth trying again.
    pub retry_after: Option<u32>,
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            code,
            reason,
            message: message.into(),
            details: Box::default(),
            retry_after: None,
        }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = Box::new(details(kind.group, kind.plural, name));
        self
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("{} \"{name}\" not found", kind.qualified_plural()),
        )
        .about(kind, name)
    }

    /// No such path. The details tell kubectl that it was the server, not an object, that was asked for too much.
    pub fn no_route() -> Self {
        let mut error = Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        );
        error.details = Box::new(json!({}));
        error
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", kind.qualified_plural()),
        )
        .about(kind, name)
    }

    /// The object moved on since the client read it.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {} \"{name}\": {why}",
                kind.qualified_plural()
            ),
        )
        .about(kind, name)
    }

    /// An apply would change what others own. Each conflict is a field and what is said of it.
    pub fn apply_conflict(kind: &Kind, name: &str, why: &ApplyError) -> Self {
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", why.to_string());
        let mut details = details(kind.group, kind.plural, name);
        if let ApplyError::Conflicts(conflicts) = why {
            details["causes"] = conflicts
                .iter()
                .map(|one| {
                    let message = format!("conflict with {}", one.with);
                    json!({"reason": "FieldManagerConflict", "message": message, "field": one.field})
                })
                .collect();
        }
        error.details = Box::new(details);
        error
    }

    /// Everything that validation found, as one answer. `errors` is not empty.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let shown = &errors[..errors.len().min(SHOWN)];
        let mut seen = HashSet::new();
        let mut messages: Vec<String> = shown.iter().map(ToString::to_string).collect();
        messages.retain(|message| seen.insert(message.clone()));
        if errors.len() > shown.len() {
            messages.push(format!("and {} more", errors.len() - shown.len()));
        }
        let what = match messages.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let causes: Vec<Value> = shown
            .iter()
            .map(|e| json!({"reason": e.reason.as_str(), "message": e.body(), "field": e.path}))
            .collect();
        let mut details = details(group, kind, name);
        details["causes"] = Value::Array(causes);
        let message = format!("{qualified} \"{name}\" is invalid: {what}");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        error.details = Box::new(details);
        error
    }

    /// Parameters of a request that make no sense; `options` is the kind that they belong to, such as `ListOptions`.
    pub fn invalid_options(options: &str, error: FieldError) -> Self {
        Self::invalid("meta.k8s.io", options, "", &[error])
    }

    /// Parameters of a request that contradict each other, or lack something.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let qualified = if group.is_empty() {
            resource.to_owned()
        } else {
            format!("{resource}.{group}")
        };
        let subject = if name.is_empty() {
            qualified
        } else {
            format!("{qualified} \"{name}\"")
        };
        let mut error = Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{subject} is forbidden: {why}"),
        );
        error.details = Box::new(details(group, resource, name));
        error
    }

    /// Refused access to something that is not a resource, `/metrics` for example.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let mut error = Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""),
        );
        error.details = Box::new(json!({}));
        error
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub fn not_acceptable(spoken: &str) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            format!("only the following media types are accepted: {spoken}"),
        )
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            message,
        )
    }

    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// A `resourceVersion` older than the history that is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A `resourceVersion` that has not happened yet.
    pub fn future_version(asked: u64, current: u64) -> Self {
        let mut error = Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Too large resource version: {asked}, current: {current}"),
        );
        error.details = Box::new(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        error.retry_after = Some(1);
        error
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    pub fn too_many_requests() -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "Too many requests, please try again later.",
        );
        error.details = Box::new(json!({"retryAfterSeconds": 1}));
        error.retry_after = Some(1);
        error
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            message,
        )
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
    }

    /// An eviction that a disruption budget refuses. `retry_after` is in seconds; 0: nobody knows when it is worth trying.
    pub fn disruption(why: &str, retry_after: u32) -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "Cannot evict pod as it would violate the pod's disruption budget.",
        );
        if retry_after > 0 {
            error.details = Box::new(json!({"retryAfterSeconds": retry_after}));
            error.retry_after = Some(retry_after);
        }
        error.with_cause("DisruptionBudget", why)
    }

    /// A pod that several disruption budgets guard. Upstream gives no reason for it either.
    pub fn several_budgets() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "",
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )
    }

    /// With one cause more in its details.
    pub fn with_cause(mut self, reason: &str, message: &str) -> Self {
        if !self.details.is_object() {
            self.details = Box::new(json!({}));
        }
        self.details["causes"] = json!([{"reason": reason, "message": message}]);
        self
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if !self.details.is_null() {
            status["details"] = Value::clone(&self.details);
        }
        status["code"] = json!(self.code.as_u16());
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code, axum::Json(self.status())).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({});
    if !name.is_empty() {
        details["name"] = json!(name);
    }
    if !group.is_empty() {
        details["group"] = json!(group);
    }
    if !kind.is_empty() {
        details["kind"] = json!(kind);
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::FieldErrorReason;

    fn wrong(
        path: &str,
        reason: FieldErrorReason,
        value: Option<Value>,
        detail: &str,
    ) -> FieldError {
        FieldError {
            path: path.into(),
            reason,
            value,
            detail: detail.into(),
        }
    }

    #[test]
    fn one_problem_reads_as_kubectl_users_know_it() {
        let errors = [wrong(
            "spec.replicas",
            FieldErrorReason::Invalid,
            Some(json!(-1)),
            "must be greater than or equal to 0",
        )];
        let error = ApiError::invalid("apps", "Deployment", "web", &errors);
        assert_eq!(
            error.message,
            "Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        let status = error.status();
        assert_eq!(status["code"], 422);
        assert_eq!(status["details"]["group"], "apps");
        assert_eq!(
            status["details"]["causes"][0]["reason"],
            "FieldValueInvalid"
        );
        assert_eq!(status["details"]["causes"][0]["field"], "spec.replicas");
    }

    #[test]
    fn several_problems_are_a_bracketed_list_without_repeats() {
        let name = wrong(
            "metadata.name",
            FieldErrorReason::Required,
            None,
            "name or generateName is required",
        );
        let port = wrong(
            "spec.port",
            FieldErrorReason::Invalid,
            Some(json!("a\"b")),
            "",
        );
        let error = ApiError::invalid("", "Pod", "x", &[name.clone(), port, name]);
        assert_eq!(
            error.message,
            "Pod \"x\" is invalid: [metadata.name: Required value: name or generateName is required, spec.port: Invalid value: \"a\\\"b\"]"
        );
    }

    #[test]
    fn forbidden_names_the_object_when_there_is_one() {
        assert_eq!(
            ApiError::forbidden("", "pods", "", "User \"x\" cannot list resource \"pods\"").message,
            "pods is forbidden: User \"x\" cannot list resource \"pods\""
        );
        assert!(
            ApiError::forbidden("apps", "deployments", "a", "no")
                .message
                .starts_with("deployments.apps \"a\" is forbidden: no")
        );
    }
}
