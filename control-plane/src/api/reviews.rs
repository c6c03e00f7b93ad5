//! Reviews: questions that are asked by creating an object, answered in its status, and never stored. Who may do what, who am
//! I, whose token is this.

mod access;
mod identity;

use axum::response::Response;
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Api;
use super::body::{self, FieldValidation};
use super::content;
use super::error::ApiError;
use super::meta;
use super::present;
use super::request::{Query, ResourceRequest};
use crate::auth::User;
use crate::resources::form::{self, Form};
use bytes::Bytes;
use http::HeaderMap;

const AUTHORIZATION: &str = "authorization.k8s.io";

/// A kind of question.
#[derive(Debug)]
pub struct Review {
    pub form: Form,
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

const fn review(form: Form, plural: &'static str, singular: &'static str, about: About) -> Review {
    Review {
        form,
        plural,
        singular,
        namespaced: matches!(about, About::LocalAccess),
        about,
    }
}

static REVIEWS: [Review; 6] = [
    review(
        form::SELF_SUBJECT_REVIEW,
        "selfsubjectreviews",
        "selfsubjectreview",
        About::OwnIdentity,
    ),
    review(
        form::TOKEN_REVIEW,
        "tokenreviews",
        "tokenreview",
        About::Token,
    ),
    review(
        form::LOCAL_SUBJECT_ACCESS_REVIEW,
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        About::LocalAccess,
    ),
    review(
        form::SELF_SUBJECT_ACCESS_REVIEW,
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        About::OwnAccess,
    ),
    review(
        form::SELF_SUBJECT_RULES_REVIEW,
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        About::OwnRules,
    ),
    review(
        form::SUBJECT_ACCESS_REVIEW,
        "subjectaccessreviews",
        "subjectaccessreview",
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
        review.form.group == request.group
            && review.form.version == request.version
            && review.plural == request.resource
    })
}

/// POST of a question; the answer is the same object with its status.
pub async fn create(
    api: &Api,
    user: &User,
    review: &Review,
    request: &ResourceRequest,
    (query, headers): (&Query, &HeaderMap),
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
    let validation = FieldValidation::of(request, query)?;
    let encoding = content::encoding(headers)?;
    let mut decoded = body::form(&review.form, bytes, encoding, validation)?;
    let spec = decoded.object["spec"].take();
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
        "kind": review.form.kind,
        "apiVersion": review.form.api_version(),
        "metadata": {},
    });
    if matches!(review.about, About::OwnIdentity) {
        answer["metadata"]["creationTimestamp"] = json!(meta::rfc3339(meta::now()));
    }
    if !spec.is_null() {
        answer["spec"] = spec;
    }
    answer["status"] = status;
    let mut response = present::value(StatusCode::CREATED, &answer);
    present::warn(&mut response, &decoded.warnings);
    Ok(response)
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
            review.form.kind, review.form.version, review.form.kind
        ))
    })
}

fn invalid(kind: &str, error: crate::resources::FieldError) -> ApiError {
    ApiError::invalid(AUTHORIZATION, kind, "", &[error])
}
