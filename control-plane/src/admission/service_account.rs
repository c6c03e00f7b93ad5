//! Every pod has a service account, and unless that or the pod says otherwise its token, the authority's certificate and the
//! namespace's name at the place where client libraries look for them.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::{meta, stored};
use crate::resources::pod::MIRROR;
use crate::resources::{self, Kind};
use crate::store::Store;

/// Where client libraries look.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the volume's name begins with.
const VOLUME: &str = "kube-api-access-";
/// Upstream's: longer than an hour, by which the API server knows who asks.
const TOKEN_SECONDS: i64 = 3607;
const DEFAULT: &str = "default";
/// The account `default` of a new namespace is made a moment after it.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Names the account of a new pod where it names none, refuses one that is not there, and gives the pod what the account has.
pub(super) async fn admit(
    review: &Review<'_>,
    object: &mut Value,
    store: &dyn Store,
) -> Result<(), ApiError> {
    if review.operation != Operation::Create
        || !review.is("", "pods")
        || !review.subresource.is_empty()
        || !object["spec"].is_object()
    {
        return Ok(());
    }
    if object["metadata"]["annotations"][MIRROR].is_string() {
        return Ok(());
    }
    let account = name(&mut object["spec"]);
    let found = find(review.namespace, &account, store)
        .await
        .map_err(|error| {
            let why = format!(
                "error looking up service account {}/{account}: {}",
                review.namespace, error.message
            );
            ApiError::forbidden("", "pods", meta::text(object, "name"), &why)
        })?;
    give(&mut object["spec"], &found, &meta::random_suffix());
    Ok(())
}

/// The account's name, which the spec has twice.
fn name(spec: &mut Value) -> String {
    let named = |field: &str| spec[field].as_str().filter(|name| !name.is_empty());
    let name = named("serviceAccountName").or(named("serviceAccount"));
    let name = name.unwrap_or(DEFAULT).to_owned();
    spec["serviceAccountName"] = json!(name);
    spec["serviceAccount"] = json!(name);
    name
}

async fn find(namespace: &str, name: &str, store: &dyn Store) -> Result<Value, ApiError> {
    let kind: &'static Kind =
        resources::find("", "v1", "serviceaccounts").ok_or_else(ApiError::no_route)?;
    let key = stored::key(kind, namespace, name);
    let attempts = if name == DEFAULT { ATTEMPTS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let (entry, _) = store.get(&key).await.map_err(stored::store_error)?;
        if let Some(entry) = entry {
            return stored::object_of(kind, &entry);
        }
    }
    Err(ApiError::not_found(kind, name))
}

/// Gives the pod the account's pull secrets, if it has none, and its token, if neither objects. Pure.
fn give(spec: &mut Value, account: &Value, suffix: &str) {
    let switch = |object: &Value| object["automountServiceAccountToken"].as_bool();
    if switch(spec).or(switch(account)).unwrap_or(true) {
        mount(spec, suffix);
    }
    let empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
    if empty(&spec["imagePullSecrets"]) && !empty(&account["imagePullSecrets"]) {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
}

/// Mounts the token in each container that has nothing else at its place.
fn mount(spec: &mut Value, suffix: &str) {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let mut known = volumes.filter_map(|volume| volume["name"].as_str());
    let present = known
        .find(|name| name.starts_with(VOLUME))
        .map(str::to_owned);
    let name = present
        .clone()
        .unwrap_or_else(|| format!("{VOLUME}{suffix}"));
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        for container in spec[field].as_array_mut().into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if !mounted || present.is_some() {
        return;
    }
    let volume = json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{
            "path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
        }]}},
    ]}});
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => spec["volumes"] = json!([volume]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(mut spec: Value, account: &Value) -> Value {
        give(&mut spec, account, "abcde");
        spec
    }

    fn mounts(spec: &Value, container: usize) -> Vec<&str> {
        let all = spec["containers"][container]["volumeMounts"].as_array();
        let names = all
            .into_iter()
            .flatten()
            .map(|mount| mount["name"].as_str());
        names.map(Option::unwrap).collect()
    }

    #[test]
    fn every_container_finds_the_token_unless_it_mounts_something_there() {
        let spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [
                {"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                {"name": "b", "volumeMounts": [{"name": "v", "mountPath": MOUNT_PATH}]},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
        });
        let spec = given(spec, &json!({}));
        assert_eq!(
            spec["initContainers"][0]["volumeMounts"][0]["name"],
            "kube-api-access-abcde"
        );
        assert_eq!(mounts(&spec, 0), ["v", "kube-api-access-abcde"]);
        assert_eq!(mounts(&spec, 1), ["v"]);
        let sources = &spec["volumes"][1]["projected"]["sources"];
        assert_eq!(sources[0]["serviceAccountToken"]["expirationSeconds"], 3607);
        assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
        // Made from such a pod, a pod keeps its volume.
        let again = given(spec.clone(), &json!({}));
        assert_eq!(again, spec);
    }

    #[test]
    fn the_pod_decides_and_else_the_account() {
        let plain = || json!({"containers": [{"name": "a"}]});
        let with = |mut spec: Value, on: bool| {
            spec["automountServiceAccountToken"] = json!(on);
            spec
        };
        let off = json!({"automountServiceAccountToken": false});
        let has = |spec: &Value| spec["volumes"].is_array();
        assert!(has(&given(plain(), &json!({}))));
        assert!(!has(&given(plain(), &off)));
        assert!(!has(&given(with(plain(), false), &json!({}))));
        assert!(has(&given(with(plain(), true), &off)));
    }

    #[test]
    fn pull_secrets_are_the_accounts_where_the_pod_has_none() {
        let account = json!({"imagePullSecrets": [{"name": "a"}]});
        let spec = given(json!({"containers": []}), &account);
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "a"}]));
        let own = json!({"containers": [], "imagePullSecrets": [{"name": "b"}]});
        assert_eq!(
            given(own, &account)["imagePullSecrets"],
            json!([{"name": "b"}])
        );
    }

    #[test]
    fn a_pods_account_has_one_name_in_two_places() {
        for (mut spec, expected) in [
            (json!({}), "default"),
            (json!({"serviceAccount": "old"}), "old"),
            (
                json!({"serviceAccountName": "new", "serviceAccount": "old"}),
                "new",
            ),
        ] {
            assert_eq!(name(&mut spec), expected);
            assert_eq!(
                spec,
                json!({"serviceAccountName": expected, "serviceAccount": expected})
            );
        }
    }
}
