//! What is used of each ResourceQuota, counted anew: when there is a new one or its `hard` changes, when something of its
//! namespace goes or changes so that it uses less, and from time to time. What is added is charged by admission.
//!
//! The quota is read before what it counts, and written only if nobody charged it meanwhile.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use serde::Deserialize;
use serde_json::Value;

use super::Context;
use super::cache::{Cache, Key};
use super::driver::{Error, Queue, Result, queue};
use crate::resources::quantity::{self, Quantity, Sums};
use crate::resources::resourcequota::{scopes, usage};
use crate::resources::{Kind, kinds};

const WORKERS: usize = 4;
/// What admission charged for a write that failed then is given back after this at most, as upstream.
const RESYNC: Duration = Duration::from_secs(300);

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let caches = &context.caches;
    let queue = keys.clone();
    caches.resource_quotas.on_change(move |_, new| {
        if let Some(quota) = new.filter(|quota| is_new(quota)) {
            queue.add(Key::of(&**quota));
        }
    });
    let (quotas, queue) = (caches.resource_quotas.clone(), keys.clone());
    caches
        .gone
        .on(move |namespace| wake(&quotas, &queue, namespace));
    let (quotas, queue) = (caches.resource_quotas.clone(), keys.clone());
    caches.pods.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && !has_ended(old)
            && has_ended(new)
        {
            wake(&quotas, &queue, &Key::of(&**new).namespace);
        }
    });
    let (quotas, queue) = (caches.resource_quotas.clone(), keys);
    caches.services.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && old.spec != new.spec
        {
            wake(&quotas, &queue, &Key::of(&**new).namespace);
        }
    });
    context
        .clone()
        .drive("resource-quota", wakeups, WORKERS, reconcile)
}

fn wake(quotas: &Cache<ResourceQuota>, queue: &Queue<Key>, namespace: &str) {
    for quota in quotas.list_in(namespace) {
        queue.add(Key::of(&*quota));
    }
}

/// Whether nobody has counted yet for what the quota says.
fn is_new(quota: &ResourceQuota) -> bool {
    let spec = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let status = quota.status.as_ref();
    let status = status.and_then(|status| status.hard.as_ref());
    quantity::sums(spec) != quantity::sums(status) || status.is_none()
}

fn has_ended(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let api: Api<ResourceQuota> = Api::namespaced(context.client.clone(), &key.namespace);
    let Some(mut quota) = api.get_opt(&key.name).await? else {
        return Ok(None);
    };
    let now = Timestamp::now().as_second();
    let mut used = Sums::new();
    for kind in counted(&quota) {
        for object in list(context, kind, &key.namespace).await? {
            quantity::add(&mut used, &used_by(&quota, kind, &object, now));
        }
    }
    let status = status(&quota, &used);
    if quota.status.as_ref() != Some(&status) {
        quota.status = Some(status);
        api.replace_status(&key.name, &PostParams::default(), &quota)
            .await?;
    }
    Ok(Some(RESYNC))
}

/// The kinds that a quota is about.
fn counted(quota: &ResourceQuota) -> Vec<&'static Kind> {
    let spec = quota.spec.clone().unwrap_or_default();
    let hard = spec.hard.clone().unwrap_or_default();
    let scoped = scopes::has_any(&spec);
    let own = kinds().iter().filter(|kind| {
        let of_pods = kind.group.is_empty() && kind.plural == "pods";
        usage::is_limited(kind) && kind.conversion.is_none() && (of_pods || !scoped)
    });
    own.filter(|kind| hard.keys().any(|name| usage::concerns(kind, name)))
        .collect()
}

/// What one object uses of a quota.
fn used_by(quota: &ResourceQuota, kind: &Kind, object: &Value, now: i64) -> Sums {
    let spec = quota.spec.clone().unwrap_or_default();
    if scopes::has_any(&spec) {
        let pod = Pod::deserialize(object);
        if !pod.is_ok_and(|pod| scopes::hold(&spec, &pod)) {
            return Sums::new();
        }
    }
    usage::of(kind, object, now)
}

/// What the quota is to say: of each thing that it limits how much is used, and of nothing else.
fn status(quota: &ResourceQuota, used: &Sums) -> ResourceQuotaStatus {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone());
    let none = Quantity::count(0);
    let used = hard.iter().flatten().map(|(name, _)| {
        let used = used.get(name).copied().unwrap_or(none);
        (name.clone(), used)
    });
    ResourceQuotaStatus {
        used: Some(quantity::written(&used.collect())),
        hard: Some(hard.unwrap_or_default()),
    }
}

/// The objects of a kind in a namespace. Where only their number counts, their metadata is enough.
async fn list(context: &Context, kind: &Kind, namespace: &str) -> Result<Vec<Value>> {
    let resource = ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    };
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    let everything = ListParams::default();
    let whole = usage::may_change(kind) || kind.group.is_empty() && kind.plural == "pods";
    let values: serde_json::Result<Vec<Value>> = if whole {
        let all = api.list(&everything).await?.items;
        all.iter().map(serde_json::to_value).collect()
    } else {
        let all = api.list_metadata(&everything).await?.items;
        all.iter().map(serde_json::to_value).collect()
    };
    values.map_err(|error| Error::Object(format!("{} of {namespace}: {error}", kind.plural)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn quota(spec: Value, status: Value) -> ResourceQuota {
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": spec, "status": status}))
            .unwrap()
    }

    #[test]
    fn a_quota_is_looked_at_when_it_says_something_new() {
        let hard = json!({"pods": "1"});
        assert!(is_new(&quota(json!({"hard": hard}), json!({}))));
        assert!(!is_new(&quota(
            json!({"hard": hard}),
            json!({"hard": hard})
        )));
        assert!(is_new(&quota(
            json!({"hard": {"pods": "2"}}),
            json!({"hard": hard})
        )));
        assert!(is_new(&quota(json!({}), json!({}))));
    }

    #[test]
    fn only_what_is_limited_is_counted() {
        let plurals = |spec: Value| -> Vec<&str> {
            let kinds = counted(&quota(spec, json!({})));
            kinds.iter().map(|kind| kind.plural).collect()
        };
        assert_eq!(
            plurals(
                json!({"hard": {"requests.cpu": "1", "secrets": "1", "count/deployments.apps": "1"}})
            ),
            ["pods", "secrets", "deployments"]
        );
        assert_eq!(
            plurals(json!({"hard": {"pods": "1", "secrets": "1"}, "scopes": ["BestEffort"]})),
            ["pods"]
        );
    }

    #[test]
    fn the_status_names_what_the_spec_does() {
        let quota = quota(
            json!({"hard": {"pods": "2", "requests.cpu": "1"}}),
            json!({}),
        );
        let pods = kinds().iter().find(|kind| kind.plural == "pods").unwrap();
        let pod =
            json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        let used = used_by(&quota, pods, &pod, 0);
        assert_eq!(
            serde_json::to_value(status(&quota, &used)).unwrap(),
            json!({"hard": {"pods": "2", "requests.cpu": "1"}, "used": {"pods": "1", "requests.cpu": "0"}})
        );
    }
}
