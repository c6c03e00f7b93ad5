//! Who somebody is: the caller, or whoever holds a token.

use k8s_openapi::api::authentication::v1::{TokenReviewSpec, UserInfo};
use serde_json::{Value, json};

use crate::api::Api;
use crate::api::authenticate;
use crate::api::error::ApiError;
use crate::auth::User;

pub(super) fn user_info(user: &User) -> UserInfo {
    UserInfo {
        username: Some(user.name.clone()),
        uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
        groups: Some(user.groups.clone()),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
    }
}

/// Whose token it is, if it is one for one of the audiences that were asked for.
pub(super) async fn of_token(api: &Api, spec: TokenReviewSpec) -> Result<Value, ApiError> {
    let token = spec.token.unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let asked = spec.audiences.unwrap_or_default();
    Ok(match authenticate::token(api, &token, &asked).await? {
        Ok((user, audiences)) => {
            let mut status = json!({"authenticated": true, "user": user_info(&user)});
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Err(why) => json!({"user": {}, "error": why}),
    })
}
