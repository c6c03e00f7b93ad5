//! Service accounts' tokens for pods: asked for in time, and kept for all who mount the same.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::pod::spec::PodView;

/// A token is replaced when it is so old, whatever its lifetime.
const OLDEST: SignedDuration = SignedDuration::from_hours(24);
/// Where the volume does not say how long it is to be good, in seconds.
pub(super) const DEFAULT_SECONDS: i64 = 3600;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(in crate::pod) enum TokenError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server answered without one")]
    Nothing,
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) uid: String,
    /// Empty for the API server.
    pub(super) audience: String,
    pub(super) seconds: i64,
}

/// A token, and when it is to be replaced and no longer good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) replace_at: Timestamp,
    expires: Timestamp,
}

/// The tokens that this node's pods have.
#[derive(Default)]
pub(in crate::pod) struct Tokens(Mutex<HashMap<Wanted, Token>>);

impl Tokens {
    /// A good token of the pod's account. One that is to be replaced serves on while no other is to be had.
    pub(super) async fn get(
        &self,
        client: &Client,
        pod: &PodView,
        wanted: &Wanted,
    ) -> Result<Token, TokenError> {
        let known = self.lock().get(wanted).cloned();
        let now = Timestamp::now();
        if let Some(known) = &known
            && now < known.replace_at
        {
            return Ok(known.clone());
        }
        match ask(client, pod, wanted, now).await {
            Ok(token) => {
                let mut all = self.lock();
                all.retain(|_, token| now < token.expires);
                all.insert(wanted.clone(), token.clone());
                Ok(token)
            }
            Err(error) => known.filter(|known| now < known.expires).ok_or(error),
        }
    }

    /// Drops those of a pod that is gone.
    pub(in crate::pod) fn forget(&self, uid: &str) {
        self.lock().retain(|wanted, _| wanted.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Wanted, Token>> {
        // Each change is one call that cannot stop half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(
    client: &Client,
    pod: &PodView,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Token, TokenError> {
    let account = pod.spec().service_account_name.as_deref();
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let api = Api::<ServiceAccount>::namespaced(client.clone(), &pod.id.namespace);
    let (params, request) = (PostParams::default(), request(pod, wanted));
    let answer = api.create_token_request(account, &params, &request).await?;
    let status = answer.status.ok_or(TokenError::Nothing)?;
    let expires = status.expiration_timestamp.0;
    Ok(Token {
        text: status.token,
        replace_at: replace_at(now, expires),
        expires,
    })
}

fn request(pod: &PodView, wanted: &Wanted) -> TokenRequest {
    let audience = Some(wanted.audience.clone()).filter(|audience| !audience.is_empty());
    TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().collect(),
            expiration_seconds: Some(wanted.seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.id.name.clone()),
                uid: Some(pod.id.uid.clone()),
            }),
        },
        ..TokenRequest::default()
    }
}

/// When a token is replaced: after four fifths of its life, or a day.
fn replace_at(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued);
    let after = (life / 5 * 4).min(OLDEST).max(SignedDuration::ZERO);
    issued.checked_add(after).unwrap_or(expires)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_after_four_fifths_of_its_life_or_a_day() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (lifetime, after) in [
            (600, 480),
            (3607, 2885),
            (86_400, 69_120),
            (365 * 86_400, 86_400),
            (-5, 0),
        ] {
            let replaced = replace_at(at(1000), at(1000 + lifetime));
            assert_eq!(replaced.as_second(), 1000 + after, "{lifetime}");
        }
    }
}
