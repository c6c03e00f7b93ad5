//! Who sends a request: what was shown, and for a service account's token whether the account, and what the token is bound to,
//! are still there.

use http::{Extensions, HeaderMap, header};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::Api;
use super::error::ApiError;
use super::meta;
use super::registry::Registry;
use super::server::strangers::Stranger;
use super::server::{Peer, SameMachine};
use crate::auth::tokens::{Bound, Object, Verified};
use crate::auth::{Credential, JoinToken, UNAUTHENTICATED, User, bearer, bootstrap_token};
use crate::resources;
use crate::store::cache::Freshness;

/// How long something that is being deleted keeps its tokens good, in seconds: its own end may need them.
const LEEWAY: i64 = 60;

/// Why a token is nobody's, for the log and for who reviews it.
type Why = String;

/// The sender of a request, of which these are the extensions and headers.
pub(super) async fn caller(
    api: &Api,
    extensions: &Extensions,
    headers: &HeaderMap,
) -> Result<User, ApiError> {
    if let Some(user) = extensions.get::<User>() {
        return Ok(user.clone());
    }
    let peer = extensions.get::<Peer>().map(|peer| (*peer.0).clone());
    let header = headers.get(header::AUTHORIZATION);
    let token = header
        .and_then(|value| value.to_str().ok())
        .and_then(bearer);
    let shown = api.authenticator.authenticate(peer, token, meta::now());
    let mut user = match shown.map_err(|_| ApiError::unauthorized())? {
        Credential::User(user) => user,
        Credential::Account(verified) => {
            let user = account(&api.registry, &verified, token.unwrap_or_default()).await?;
            user.map_err(|why| {
                tracing::debug!(why, "a service account's token is no longer good");
                ApiError::unauthorized()
            })?
        }
        Credential::Bootstrap(token) => {
            let user = bootstrapper(&api.registry, &token).await?;
            user.map_err(|why| {
                tracing::debug!(why, id = token.id(), "a bootstrap token is not good");
                ApiError::unauthorized()
            })?
        }
    };
    if let Some(stranger) = extensions.get::<Stranger>()
        && !user.is_in(UNAUTHENTICATED)
    {
        stranger.is_known();
    }
    user.same_machine = extensions.get::<SameMachine>().is_some();
    Ok(user)
}

/// Whose token it is, and for which of the audiences; without any, for this server.
pub(super) async fn token(
    api: &Api,
    token: &str,
    audiences: &[String],
) -> Result<Result<(User, Vec<String>), Why>, ApiError> {
    let own = api.authenticator.tokens().audiences();
    let asked = if audiences.is_empty() {
        &own
    } else {
        audiences
    };
    match api.authenticator.token(token, asked, meta::now()) {
        Ok(Credential::User(user)) => Ok(Ok((user, Vec::new()))),
        Ok(Credential::Account(verified)) => {
            let user = account(&api.registry, &verified, token).await?;
            Ok(user.map(|user| (user, verified.audiences)))
        }
        Ok(Credential::Bootstrap(token)) => {
            let user = bootstrapper(&api.registry, &token).await?;
            Ok(user.map(|user| (user, Vec::new())))
        }
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Who shows a bootstrap token, by the Secret that it would be in.
async fn bootstrapper(
    registry: &Registry,
    token: &JoinToken,
) -> Result<Result<User, Why>, ApiError> {
    let name = bootstrap_token::secret_name(token);
    let namespace = bootstrap_token::NAMESPACE;
    let kind = resources::find("", "v1", "secrets").ok_or_else(ApiError::no_route)?;
    let now = Timestamp::from_second(meta::now()).map_err(ApiError::internal)?;
    let read = async |freshness| {
        let secret = match registry.get(kind, namespace, &name, freshness).await {
            Ok(secret) => serde_json::from_slice(&secret.json).map_err(ApiError::internal)?,
            Err(error) if error.reason == "NotFound" => {
                return Ok(Err(format!("Secret {name:?} is not there")));
            }
            Err(error) => return Err(error),
        };
        Ok(bootstrap_token::bearer(token, &secret, now))
    };
    // Anybody can show something that looks like a token: that costs the store nothing.
    if let Err(why) = read(Freshness::Any).await? {
        return Ok(Err(why));
    }
    // Who takes a token back expects that it is of no use from then on.
    read(Freshness::Latest).await
}

/// The account that a token is of.
async fn account(
    registry: &Registry,
    verified: &Verified,
    token: &str,
) -> Result<Result<User, Why>, ApiError> {
    let Bound {
        namespace,
        account,
        pod,
        secret,
        node,
        legacy,
    } = &verified.bound;
    // A pod's node is told, and a token without a pod may be bound to a node.
    let bound_to_node = node.as_ref().filter(|_| pod.is_none());
    let needed = [
        ("serviceaccounts", &namespace[..], Some(account)),
        ("secrets", namespace, secret.as_ref()),
        ("pods", namespace, pod.as_ref()),
        ("nodes", "", bound_to_node),
    ];
    for (plural, namespace, object) in needed {
        let Some(object) = object else { continue };
        let found = match find(registry, plural, namespace, &object.name).await? {
            Some(found) => found,
            None => return Ok(Err(format!("{plural} {:?} is not there", object.name))),
        };
        if let Err(why) = is_it(&found, plural, object, meta::now()) {
            return Ok(Err(why));
        }
        if *legacy && plural == "secrets" && !holds(&found, token) {
            return Ok(Err("the Secret holds another token".to_owned()));
        }
    }
    let mut user = User::service_account(namespace, &account.name, &account.uid);
    let mut tell = |key: &str, value: &str| {
        if !value.is_empty() {
            let key = format!("authentication.kubernetes.io/{key}");
            user.extra.insert(key, vec![value.to_owned()]);
        }
    };
    for (name, uid, object) in [
        ("pod-name", "pod-uid", pod),
        ("node-name", "node-uid", node),
    ] {
        if let Some(object) = object {
            tell(name, &object.name);
            tell(uid, &object.uid);
        }
    }
    if !verified.id.is_empty() {
        tell("credential-id", &format!("JTI={}", verified.id));
    }
    Ok(Ok(user))
}

/// The object, from the cache, or from the store if it is too new for that.
async fn find(
    registry: &Registry,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<Value>, ApiError> {
    let kind = resources::find("", "v1", plural).ok_or_else(ApiError::no_route)?;
    for freshness in [Freshness::Any, Freshness::Latest] {
        match registry.get(kind, namespace, name, freshness).await {
            Ok(object) => {
                return serde_json::from_slice(&object.json).map_err(ApiError::internal);
            }
            Err(error) if error.reason == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether the object is the one that is meant, and not long being deleted.
fn is_it(found: &Value, plural: &str, meant: &Object, now: i64) -> Result<(), Why> {
    let uid = meta::text(found, "uid");
    if !meant.uid.is_empty() && uid != meant.uid {
        let name = &meant.name;
        return Err(format!(
            "{plural} {name:?} is another one now: its uid is {uid}, not {}",
            meant.uid
        ));
    }
    let deleted = meta::text(found, "deletionTimestamp");
    let long = deleted
        .parse::<jiff::Timestamp>()
        .is_ok_and(|at| at.as_second() + LEEWAY < now);
    if long {
        return Err(format!("{plural} {:?} is being deleted", meant.name));
    }
    Ok(())
}

fn holds(secret: &Value, token: &str) -> bool {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(token);
    secret["data"]["token"].as_str() == Some(&encoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_token_is_bound_to_must_be_the_same_and_alive() {
        let meant = Object {
            name: "p".into(),
            uid: "u".into(),
        };
        let pod = |uid: &str, deleted: Value| json!({"metadata": {"name": "p", "uid": uid, "deletionTimestamp": deleted}});
        assert!(is_it(&pod("u", Value::Null), "pods", &meant, 100).is_ok());
        assert!(is_it(&pod("v", Value::Null), "pods", &meant, 100).is_err());
        let at_40 = json!("1970-01-01T00:00:40Z");
        assert!(is_it(&pod("u", at_40.clone()), "pods", &meant, 100).is_ok());
        assert!(is_it(&pod("u", at_40), "pods", &meant, 101).is_err());
    }
}
