//! Secrets of type `kubernetes.io/service-account-token` hold a token of the account that their annotation names, as long as
//! that account is there.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::cache::Key;
use super::driver::{Error, Result, queue};
use super::{Accounts, Context};
use crate::auth::tokens::{Legacy, Object};

const WORKERS: usize = 4;
pub(super) const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let queue = keys.clone();
    context.caches.token_secrets.on_change(move |_, new| {
        if let Some(secret) = new {
            queue.add(Key::of(&**secret));
        }
    });
    let secrets = context.caches.token_secrets.clone();
    context.caches.service_accounts.on_change(move |old, new| {
        let Some(account) = old.or(new) else { return };
        let key = Key::of(&**account);
        for secret in secrets.list_in(&key.namespace) {
            if annotation(&secret, NAME) == Some(&key.name) {
                keys.add(Key::of(&*secret));
            }
        }
    });
    context
        .clone()
        .drive("token-secrets", wakeups, WORKERS, reconcile)
}

/// What is to be done about a Secret.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Its account is gone, or another one has the name.
    Delete,
    /// A merge patch, without a token if it holds one already.
    Fill(Value),
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a String> {
    secret.metadata.annotations.as_ref()?.get(name)
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, accounts: &Accounts) -> Result<Step> {
    if secret.metadata.deletion_timestamp.is_some() {
        return Ok(Step::Nothing);
    }
    let Some(account) = account else {
        return Ok(Step::Delete);
    };
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let account = Object {
        name: text(&account.metadata.name),
        uid: text(&account.metadata.uid),
    };
    match annotation(secret, UID) {
        Some(uid) if !uid.is_empty() && *uid != account.uid => return Ok(Step::Delete),
        _ => {}
    }
    let (namespace, name) = (
        text(&secret.metadata.namespace),
        text(&secret.metadata.name),
    );
    let held = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let mut data = serde_json::Map::new();
    for (key, wanted) in [("ca.crt", &accounts.authority), ("namespace", &namespace)] {
        if held(key) != Some(&ByteString(wanted.clone().into_bytes())) {
            data.insert(key.to_owned(), json!(STANDARD.encode(wanted)));
        }
    }
    if held("token").is_none_or(|token| token.0.is_empty()) {
        let claims = Legacy::new(&namespace, &name, &account);
        let token = accounts.tokens.issue_legacy(&claims);
        let token = token.map_err(|error| Error::Object(error.to_string()))?;
        data.insert("token".to_owned(), json!(STANDARD.encode(token)));
    }
    let marked = annotation(secret, UID) == Some(&account.uid);
    Ok(if data.is_empty() && marked {
        Step::Nothing
    } else {
        Step::Fill(json!({
            "metadata": {
                "annotations": {UID: account.uid},
                "resourceVersion": secret.metadata.resource_version,
            },
            "data": data,
        }))
    })
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let caches = &context.caches;
    let Some(secret) = caches.token_secrets.get(key) else {
        return Ok(None);
    };
    let name = annotation(&secret, NAME).cloned().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    let account = caches
        .service_accounts
        .get(&Key::new(&key.namespace, &name));
    let account = match account {
        Some(account) => Some(account),
        // Made a moment ago, perhaps: nothing is deleted on an old view.
        None => {
            let accounts: Api<ServiceAccount> =
                Api::namespaced(context.client.clone(), &key.namespace);
            accounts.get_opt(&name).await?.map(std::sync::Arc::new)
        }
    };
    match plan(&secret, account.as_deref(), &context.config.accounts)? {
        Step::Nothing => {}
        Step::Fill(patch) => {
            let patch = Patch::Merge(patch);
            api.patch(&key.name, &PatchParams::default(), &patch)
                .await?;
        }
        Step::Delete => {
            let only = Preconditions {
                uid: secret.metadata.uid.clone(),
                resource_version: secret.metadata.resource_version.clone(),
            };
            api.delete(&key.name, &DeleteParams::default().preconditions(only))
                .await?;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tokens::{Authority, Keys};
    use std::sync::Arc;

    fn accounts(dir: &tempfile::TempDir) -> Accounts {
        Accounts {
            authority: "PEM".to_owned(),
            tokens: Arc::new(Authority::new(
                Keys::open(dir.path()).unwrap(),
                "https://i".to_owned(),
            )),
        }
    }

    fn secret(annotations: Value, data: Value) -> Secret {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n", "annotations": annotations}, "type": TYPE, "data": data,
        }))
        .unwrap()
    }

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let dir = tempfile::tempdir().unwrap();
        let accounts = accounts(&dir);
        let account: ServiceAccount = serde_json::from_value(
            json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}}),
        )
        .unwrap();
        let step = |secret: &Secret, account: Option<&ServiceAccount>| {
            plan(secret, account, &accounts).unwrap()
        };
        let new = secret(json!({NAME: "a"}), json!({}));
        assert_eq!(step(&new, None), Step::Delete);
        let Step::Fill(patch) = step(&new, Some(&account)) else {
            panic!("it was not filled");
        };
        assert_eq!(patch["metadata"]["annotations"], json!({UID: "u"}));
        assert_eq!(patch["data"]["namespace"], STANDARD.encode("n"));
        let token = STANDARD
            .decode(patch["data"]["token"].as_str().unwrap())
            .unwrap();
        let token = String::from_utf8(token).unwrap();
        let own = accounts.tokens.audiences();
        assert_eq!(
            accounts
                .tokens
                .verify(&token, &own, 0)
                .unwrap()
                .bound
                .account
                .uid,
            "u"
        );
        let filled = secret(json!({NAME: "a", UID: "u"}), patch["data"].clone());
        assert_eq!(step(&filled, Some(&account)), Step::Nothing);
        let of_another = secret(json!({NAME: "a", UID: "v"}), json!({}));
        assert_eq!(step(&of_another, Some(&account)), Step::Delete);
    }
}
