//! Endpoints of Services: EndpointSlices, and the older Endpoints objects beside them; for Services without a selector,
//! EndpointSlices after the Endpoints that people write. A pod's change of readiness goes
//! through here on its way to the kernel, so nothing waits that need not.

mod backends;
mod legacy;
mod mirror;
mod slices;
#[cfg(test)]
mod tests;
mod trigger;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};

pub(super) use self::backends::service_index;
use self::backends::{Backend, Family, backends, families, has_selector, selector_word, selects};
pub(super) use self::slices::slice_index;
use self::trigger::Triggers;
use super::cache::{Cache, Key};
use super::driver::{Queue, Result, queue};
use super::pods::{has_ended, is_ready, node_of, on_node};
use super::{Caches, Context};

const WORKERS: usize = 32;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Several, so that the slices never wait for an object that few read.
#[derive(Clone)]
struct Queues {
    slices: Queue<Key>,
    legacy: Queue<Key>,
    mirror: Queue<Key>,
}

impl Queues {
    /// For a Service whose pods, or what is known of them, changed.
    fn backends_changed(&self, service: Key) {
        self.slices.add(service.clone());
        self.legacy.add(service);
    }
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (slices, slice_wakeups) = queue();
    let (legacy, legacy_wakeups) = queue();
    let (mirror, mirror_wakeups) = queue();
    let queues = Queues {
        slices,
        legacy,
        mirror,
    };
    subscribe(&context.caches, &queues);
    let (slices, legacy, mirror) = (context.clone(), context.clone(), context.clone());
    let triggers = Mutex::new(Triggers::default());
    let slices = slices.drive(
        "endpointslice",
        slice_wakeups,
        WORKERS,
        async move |context: &Context, key: &Key| reconcile_slices(context, &triggers, key).await,
    );
    let legacy = legacy.drive("endpoints", legacy_wakeups, WORKERS, reconcile_legacy);
    let mirror = mirror.drive(
        "endpointslicemirroring",
        mirror_wakeups,
        WORKERS,
        reconcile_mirror,
    );
    async move {
        tokio::join!(slices, legacy, mirror);
    }
}

fn subscribe(caches: &Arc<Caches>, queues: &Queues) {
    let to = queues.clone();
    caches.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            let key = Key::of(&**service);
            to.backends_changed(key.clone());
            to.mirror.add(key);
        }
    });
    let (to, all) = (queues.clone(), caches.clone());
    caches.pods.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && !matters(old, new)
        {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            for service in services_of(&all, pod) {
                to.backends_changed(service);
            }
        }
    });
    let (to, all) = (queues.clone(), caches.clone());
    caches.nodes.on_change(move |old, new| {
        if old.and_then(|node| zone(node)) == new.and_then(|node| zone(node)) {
            return;
        }
        let name = new
            .or(old)
            .and_then(|node| node.metadata.name.as_deref())
            .unwrap_or_default();
        for pod in all.pods.by_index(&on_node(name)) {
            for service in services_of(&all, &pod) {
                to.backends_changed(service);
            }
        }
    });
    let to = queues.clone();
    caches.slices.on_change(move |old, new| {
        // Somebody may have changed what is ours. What was deleted is written again.
        let Some(slice) = new.or(old) else { return };
        for (manager, queue) in [(slices::MANAGER, &to.slices), (mirror::MANAGER, &to.mirror)] {
            if let Some(service) = slice_service(slice, manager) {
                queue.add(service);
            }
        }
    });
    let to = queues.clone();
    caches.endpoints.on_change(move |old, new| {
        let Some(endpoints) = new.or(old) else { return };
        let key = Key::of(&**endpoints);
        if new.is_none() {
            to.legacy.add(key.clone());
        }
        to.mirror.add(key);
    });
}

/// The Service of a slice that `manager` keeps.
fn slice_service(slice: &EndpointSlice, manager: &str) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(slices::MANAGED_BY).map(String::as_str) != Some(manager) {
        return None;
    }
    Some(Key::new(
        slice.metadata.namespace.clone().unwrap_or_default(),
        labels.get(slices::SERVICE_NAME)?,
    ))
}

/// Whether a change of the pod can change an endpoint.
fn matters(old: &Pod, new: &Pod) -> bool {
    let seen = |pod: &Pod| {
        let addresses = [Family::V4, Family::V6].map(|family| backends::address(pod, family));
        let going = pod.metadata.deletion_timestamp.is_some();
        (
            addresses,
            is_ready(pod),
            has_ended(pod),
            going,
            node_of(pod).map(str::to_owned),
        )
    };
    old.metadata.labels != new.metadata.labels || seen(old) != seen(new)
}

fn services_of(caches: &Caches, pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.iter().flatten();
    let found = labels.flat_map(|(key, value)| {
        caches
            .services
            .by_index(&selector_word(namespace, key, value))
    });
    found
        .filter(|service| selects(service, pod))
        .map(|service| Key::of(&*service))
        .collect()
}

fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).cloned()
}

/// The Service, if it is there, wants endpoints and does not go away.
fn wanted_service(context: &Context, key: &Key) -> Option<Arc<Service>> {
    let service = context.caches.services.get(key)?;
    (has_selector(&service) && service.metadata.deletion_timestamp.is_none()).then_some(service)
}

async fn reconcile_slices(
    context: &Context,
    triggers: &Mutex<Triggers>,
    key: &Key,
) -> Result<Option<Duration>> {
    let triggers = || triggers.lock().unwrap_or_else(PoisonError::into_inner);
    // The slices of a Service that is gone go with it, by their owner reference.
    let Some(service) = wanted_service(context, key) else {
        triggers().forget(key);
        return Ok(None);
    };
    let caches = &context.caches;
    let pods = caches.pods.list_in(&key.namespace);
    let wanted: Vec<(Family, Vec<Backend>)> = families(&service)
        .into_iter()
        .map(|family| (family, backends(&service, &pods, family)))
        .collect();
    let zone_of = |name: &str| zone(&*caches.nodes.get(&Key::new("", name))?);
    let existing = caches.slices.by_index(&slices::word(slices::MANAGER, key));
    let mut plan = slices::plan(&service, &wanted, zone_of, &existing);
    let selected = pods.iter().filter(|pod| selects(&service, pod));
    let changed = triggers().changed(key, &service, selected.map(|pod| &**pod));
    trigger::annotate(&mut plan, changed);
    perform(&slices_of(context, key), &caches.slices, &plan).await
}

async fn reconcile_mirror(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let caches = &context.caches;
    let existing = caches.slices.by_index(&slices::word(mirror::MANAGER, key));
    let (service, endpoints) = (caches.services.get(key), caches.endpoints.get(key));
    let plan = mirror::plan(service.as_deref(), endpoints.as_deref(), &existing);
    perform(&slices_of(context, key), &caches.slices, &plan).await
}

fn slices_of(context: &Context, key: &Key) -> Api<EndpointSlice> {
    Api::namespaced(context.client.clone(), &key.namespace)
}

async fn perform(
    api: &Api<EndpointSlice>,
    cache: &Cache<EndpointSlice>,
    plan: &slices::Plan,
) -> Result<Option<Duration>> {
    let mut written = Vec::new();
    let outcome = write(api, plan, &mut written).await;
    // The next pass, which a failure brings at once, must see what this one wrote, or it would create it again.
    for slice in &written {
        cache.wait_for(slice).await;
    }
    outcome.map(|()| None)
}

/// Stops at the first failure; what was written until then is in `written`.
async fn write(
    api: &Api<EndpointSlice>,
    plan: &slices::Plan,
    written: &mut Vec<EndpointSlice>,
) -> Result<()> {
    // New ones first: an endpoint that moves is never in no slice.
    for slice in &plan.create {
        written.push(api.create(&PostParams::default(), slice).await?);
    }
    for slice in &plan.update {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        written.push(api.replace(name, &PostParams::default(), slice).await?);
    }
    for name in &plan.delete {
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            outcome => drop(outcome?),
        }
    }
    Ok(())
}

async fn reconcile_legacy(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let caches = &context.caches;
    let api: Api<Endpoints> = Api::namespaced(context.client.clone(), &key.namespace);
    let existing = caches.endpoints.get(key);
    let Some(service) = wanted_service(context, key) else {
        if existing.is_some() && caches.services.get(key).is_none() {
            api.delete(&key.name, &DeleteParams::default()).await?;
        }
        return Ok(None);
    };
    let family = families(&service).first().copied().unwrap_or(Family::V4);
    let backends = backends(&service, &caches.pods.list_in(&key.namespace), family);
    let desired = legacy::desired(&service, &backends, existing.as_deref());
    let written = match existing {
        None => api.create(&PostParams::default(), &desired).await?,
        Some(existing) if *existing != desired => {
            api.replace(&key.name, &PostParams::default(), &desired)
                .await?
        }
        Some(_) => return Ok(None),
    };
    caches.endpoints.wait_for(&written).await;
    Ok(None)
}
