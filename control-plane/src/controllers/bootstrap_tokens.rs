//! Secrets with bootstrap tokens go when the tokens have expired.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Preconditions};

use super::Context;
use super::cache::Key;
use super::driver::{Result, queue};
use crate::auth::bootstrap_token;

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    context.caches.bootstrap_tokens.on_change(move |_, new| {
        if let Some(secret) = new {
            keys.add(Key::of(&**secret));
        }
    });
    context
        .clone()
        .drive("bootstrap-tokens", wakeups, 1, reconcile)
}

/// How long until a Secret's token expires; zero when it has. None: it never does.
fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let end = bootstrap_token::expiration(secret)?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let Some(secret) = context.caches.bootstrap_tokens.get(key) else {
        return Ok(None);
    };
    let left = left(&secret, Timestamp::now());
    if left.is_none_or(|left| !left.is_zero()) {
        return Ok(left);
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    // Somebody may have made it last longer meanwhile.
    let only = Preconditions {
        uid: secret.metadata.uid.clone(),
        resource_version: secret.metadata.resource_version.clone(),
    };
    api.delete(&key.name, &DeleteParams::default().preconditions(only))
        .await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;
    use crate::controllers::testing::at;

    #[test]
    fn a_token_is_waited_for_until_it_expires() {
        let mut secret = Secret::default();
        assert_eq!(left(&secret, at(0)), None);
        let time = ByteString(b"1970-01-01T00:01:40Z".to_vec());
        secret
            .data
            .get_or_insert_default()
            .insert("expiration".to_owned(), time);
        assert_eq!(left(&secret, at(40)), Some(Duration::from_secs(60)));
        assert_eq!(left(&secret, at(100)), Some(Duration::ZERO));
        assert_eq!(left(&secret, at(200)), Some(Duration::ZERO));
    }
}
