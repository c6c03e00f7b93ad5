//! Reviews: questions that are asked by creating an object, answered in its status, and never stored. Who may do what, who am
//! I, whose token is this.

mod access;
mod identity;

use axum::response::Response;
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Api;
use super::body;
use super::content;
use super::error::ApiError;
use super::present;
use super::request::ResourceRequest;
use crate::auth::User;
use bytes::Bytes;
use http::HeaderMap;

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// A kind of question.
#[derive(Debug)]
pub struct Review {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub namespaced: bool,
    about: About,
}

#[derive(Clone, Copy, Debug)]
enum About {
    /// What somebody may do.
    Access,
    /// What somebody may do in one namespace.
    LocalAccess,
    /// What the caller may do.
    OwnAccess,
    /// All that the caller may do.
    OwnRules,
    /// Who the caller is.
    OwnIdentity,
    /// Whose token it is.
    Token,
}

const fn review(
    group: &'static str,
    (kind, plural, singular): (&'static str, &'static str, &'static str),
    about: About,
) -> Review {
    Review {
        group,
        version: "v1",
        kind,
        plural,
        singular,
        namespaced: matches!(about, About::LocalAccess),
        about,
    }
}

static REVIEWS: [Review; 6] = [
    review(
        AUTHENTICATION,
        (
            "SelfSubjectReview",
            "selfsubjectreviews",
            "selfsubjectreview",
        ),
        About::OwnIdentity,
    ),
    review(
        AUTHENTICATION,
        ("TokenReview", "tokenreviews", "tokenreview"),
        About::Token,
    ),
    review(
        AUTHORIZATION,
        (
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        ),
        About::LocalAccess,
    ),
    review(
        AUTHORIZATION,
        (
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            "selfsubjectaccessreview",
        ),
        About::OwnAccess,
    ),
    review(
        AUTHORIZATION,
        (
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            "selfsubjectrulesreview",
        ),
        About::OwnRules,
    ),
    review(
        AUTHORIZATION,
        (
            "SubjectAccessReview",
            "subjectaccessreviews",
            "subjectaccessreview",
        ),
        About::Access,
    ),
];

/// Every kind of question, by group.
pub fn all() -> &'static [Review] {
    &REVIEWS
}

/// The question that a request asks, if it is one.
pub fn find(request: &ResourceRequest) -> Option<&'static Review> {
    REVIEWS.iter().find(|review| {
        review.group == request.group
            && review.version == request.version
            && review.plural == request.resource
    })
}

/// POST of a question; the answer is the same object with its status.
pub async fn create(
    api: &Api,
    user: &User,
    review: &Review,
    request: &ResourceRequest,
    headers: &HeaderMap,
    bytes: &Bytes,
) -> Result<Response, ApiError> {
    let elsewhere = review.namespaced == request.namespace.is_empty();
    if elsewhere || !request.name.is_empty() {
        return Err(ApiError::no_route());
    }
    if request.verb != "create" {
        return Err(ApiError::method_not_allowed());
    }
    content::require_json(headers)?;
    let mut object = body::parse(bytes, content::encoding(headers)?)?;
    check_kind(review, &object)?;
    let spec = object["spec"].take();
    let status = match review.about {
        About::Access => access::of_anybody(api, typed(review, &spec)?).await?,
        About::LocalAccess => {
            access::within(api, typed(review, &spec)?, &request.namespace).await?
        }
        About::OwnAccess => access::of_caller(api, user, typed(review, &spec)?).await?,
        About::OwnRules => access::rules(api, user, typed(review, &spec)?)?,
        About::OwnIdentity => json!({"userInfo": identity::user_info(user)}),
        About::Token => identity::of_token(api, typed(review, &spec)?).await?,
    };
    let mut answer = json!({
        "kind": review.kind,
        "apiVersion": format!("{}/{}", review.group, review.version),
        "metadata": {},
    });
    if !spec.is_null() {
        answer["spec"] = spec;
    }
    answer["status"] = status;
    Ok(present::value(StatusCode::CREATED, &answer))
}

fn check_kind(review: &Review, object: &Value) -> Result<(), ApiError> {
    let expected = format!("{}/{}", review.group, review.version);
    for (field, expected) in [("kind", review.kind), ("apiVersion", &expected)] {
        let given = object[field].as_str().unwrap_or_default();
        if !given.is_empty() && given != expected {
            return Err(ApiError::bad_request(format!(
                "the {field} in the data ({given}) does not match the expected one ({expected})"
            )));
        }
    }
    Ok(())
}

fn typed<T: DeserializeOwned>(review: &Review, spec: &Value) -> Result<T, ApiError> {
    let spec = if spec.is_null() {
        json!({})
    } else {
        spec.clone()
    };
    serde_json::from_value(spec).map_err(|error| {
        ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: spec: {error}",
            review.kind, review.version, review.kind
        ))
    })
}

fn invalid(kind: &str, error: crate::resources::FieldError) -> ApiError {
    ApiError::invalid(AUTHORIZATION, kind, "", &[error])
}
