//! Every namespace has a ServiceAccount `default`, for the pods that name none.

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};

use super::Context;
use super::cache::Key;
use super::driver::{Result, queue};

const WORKERS: usize = 4;
const DEFAULT: &str = "default";

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let queue = keys.clone();
    context.caches.namespaces.on_change(move |old, new| {
        if let (None, Some(namespace)) = (old, new) {
            queue.add(Key::of(&**namespace));
        }
    });
    context.caches.service_accounts.on_change(move |old, new| {
        if let (Some(account), None) = (old, new) {
            keys.add(Key::new("", Key::of(&**account).namespace));
        }
    });
    context
        .clone()
        .drive("service-accounts", wakeups, WORKERS, reconcile)
}

async fn reconcile(context: &Context, namespace: &Key) -> Result<Option<Duration>> {
    let caches = &context.caches;
    let lives = caches
        .namespaces
        .get(namespace)
        .is_some_and(|it| it.metadata.deletion_timestamp.is_none());
    if !lives
        || caches
            .service_accounts
            .get(&Key::new(&namespace.name, DEFAULT))
            .is_some()
    {
        return Ok(None);
    }
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(DEFAULT.into());
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &namespace.name);
    match api.create(&PostParams::default(), &account).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(None),
    }
}
