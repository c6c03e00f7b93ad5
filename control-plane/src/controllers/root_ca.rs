//! Every namespace has a ConfigMap `kube-root-ca.crt` with the certificate of the cluster's authority, by which pods know the
//! API server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::Context;
use super::cache::Key;
use super::driver::{Result, queue};

const WORKERS: usize = 4;
pub(super) const NAME: &str = "kube-root-ca.crt";
const FIELD: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let queue = keys.clone();
    context.caches.namespaces.on_change(move |old, new| {
        if let (None, Some(namespace)) = (old, new) {
            queue.add(Key::of(&**namespace));
        }
    });
    context.caches.root_cas.on_change(move |old, new| {
        if let Some(map) = old.or(new) {
            keys.add(Key::new("", Key::of(&**map).namespace));
        }
    });
    context
        .clone()
        .drive("root-ca", wakeups, WORKERS, reconcile)
}

async fn reconcile(context: &Context, namespace: &Key) -> Result<Option<Duration>> {
    let caches = &context.caches;
    let lives = caches
        .namespaces
        .get(namespace)
        .is_some_and(|it| it.metadata.deletion_timestamp.is_none());
    if !lives {
        return Ok(None);
    }
    let wanted = wanted(&context.config.accounts.authority);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace.name);
    match caches.root_cas.get(&Key::new(&namespace.name, NAME)) {
        Some(there) if there.data == wanted.data => {}
        Some(_) => {
            let patch = json!({"data": wanted.data, "metadata": {"annotations": wanted.metadata.annotations}});
            api.patch(NAME, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        None => match api.create(&PostParams::default(), &wanted).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        },
    }
    Ok(None)
}

fn wanted(authority: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(NAME.to_owned());
    map.metadata.annotations = Some(BTreeMap::from([(
        DESCRIPTION.0.to_owned(),
        DESCRIPTION.1.to_owned(),
    )]));
    map.data = Some(BTreeMap::from([(FIELD.to_owned(), authority.to_owned())]));
    map
}
