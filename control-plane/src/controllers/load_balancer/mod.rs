//! Addresses for Services of type LoadBalancer, from pools that an administrator names. No cloud is asked.
//!
//! The pools are a ConfigMap and no flag: it changes while everything runs, outlives restarts, and `kubectl` shows it.
//! A pass looks at all Services at once ([`plan`](mod@plan)), writes what differs to their status, and tells what is
//! wrong. Any change that matters causes one.

mod plan;
#[cfg(test)]
mod plan_tests;
mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference, Service};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use self::plan::{Trouble, matters, plan};
use self::pools::{PoolError, Pools};
use super::Context;
use super::cache::{Key, version};
use super::driver::{Queue, Result, queue};
use super::events::{Recorder, Severity, reference};

/// The ConfigMap that names the pools.
pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const CONFIG_MAP: &str = "kernelet-load-balancer";

struct Controller {
    context: Context,
    events: Recorder,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Services as the API server answered our writes, until the cache has them too.
    written: BTreeMap<Key, Arc<Service>>,
    /// What people were told already, by the Service's uid.
    told: BTreeMap<String, Vec<Trouble>>,
    /// The same of the ConfigMap's pools.
    told_of_pools: Vec<PoolError>,
}

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    subscribe(context, &keys);
    let controller = Controller {
        context: context.clone(),
        events: Recorder::start(context.client.clone(), "load-balancer-controller"),
        memory: Mutex::default(),
    };
    let context = context.clone();
    context.drive("load-balancer", wakeups, 1, async move |_, _| {
        controller.pass().await
    })
}

fn subscribe(context: &Context, keys: &Queue<Key>) {
    // Whatever changed, all is looked at: one key, so that changes meanwhile cost one pass more.
    let pass = || Key::new(NAMESPACE, CONFIG_MAP);
    let queue = keys.clone();
    context.caches.services.on_change(move |old, new| {
        if [old, new].into_iter().flatten().any(|it| matters(it)) {
            queue.add(pass());
        }
    });
    let queue = keys.clone();
    context.caches.nodes.on_change(move |old, new| {
        if old.map(|it| own_addresses(it)) != new.map(|it| own_addresses(it)) {
            queue.add(pass());
        }
    });
    let queue = keys.clone();
    context
        .caches
        .load_balancer_pools
        .on_change(move |_, _| queue.add(pass()));
}

fn own_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let status = node.status.iter();
    let addresses = status.flat_map(|status| status.addresses.iter().flatten());
    addresses.filter_map(|it| it.address.parse().ok()).collect()
}

impl Controller {
    async fn pass(&self) -> Result<Option<Duration>> {
        let pools = self.pools();
        let services = self.services();
        let nodes = self.context.caches.nodes.list();
        let nodes = nodes.iter().flat_map(|node| own_addresses(node)).collect();
        let plan = plan(&pools, &services, &nodes);
        let mut first_error = None;
        for service in &services {
            let key = Key::of(&**service);
            if let Some(addresses) = plan.writes.get(&key)
                && let Err(error) = self.write(service, addresses).await
            {
                // One Service that cannot be written must not keep the others waiting.
                first_error.get_or_insert(error);
            }
        }
        self.tell(&services, plan.troubles);
        first_error.map_or(Ok(None), Err)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Services that matter, each as new as is known.
    fn services(&self) -> Vec<Arc<Service>> {
        let mut memory = self.memory();
        let mut all = self.context.caches.services.list();
        for service in &mut all {
            let key = Key::of(&**service);
            match memory.written.get(&key) {
                Some(written) if version(&**written) > version(&**service) => {
                    *service = written.clone();
                }
                Some(_) => {
                    memory.written.remove(&key);
                }
                None => {}
            }
        }
        // What is left and not in the cache was deleted: it was there when it was written.
        memory
            .written
            .retain(|key, _| self.context.caches.services.get(key).is_some());
        all.retain(|service| matters(service));
        all
    }

    fn pools(&self) -> Pools {
        let key = Key::new(NAMESPACE, CONFIG_MAP);
        let map = self.context.caches.load_balancer_pools.get(&key);
        let data: BTreeMap<String, String> = map
            .iter()
            .flat_map(|map| map.data.iter().flatten())
            .map(|(name, text)| (name.clone(), text.clone()))
            .collect();
        let config = &self.context.config;
        let cluster: Vec<IpNet> = config
            .service_ranges
            .iter()
            .copied()
            .chain(config.pod_ranges.iter())
            .collect();
        let (pools, errors) = Pools::parse(&data, &cluster);
        if let Some(map) = map {
            self.tell_of_pools(&map, errors);
        }
        pools
    }

    async fn write(&self, service: &Service, addresses: &[IpAddr]) -> Result<()> {
        let key = Key::of(service);
        let ingress: Vec<_> = addresses
            .iter()
            .map(|address| json!({"ip": address, "ipMode": "VIP"}))
            .collect();
        // The version makes the server refuse if the Service is another than the one that was looked at.
        let patch = json!({
            "metadata": {"resourceVersion": service.metadata.resource_version},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let api: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        let written = match written {
            // Its deletion causes the next pass.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            written => written?,
        };
        self.memory().written.insert(key, Arc::new(written));
        if !addresses.is_empty() {
            let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let message = format!("assigned {}", all.join(", "));
            let about = reference(service);
            self.events
                .report(about, Severity::Normal, "AddressAssigned", message);
        }
        Ok(())
    }

    /// Tells what is news.
    fn tell(&self, services: &[Arc<Service>], mut troubles: BTreeMap<Key, Vec<Trouble>>) {
        let mut told = BTreeMap::new();
        let mut memory = self.memory();
        for service in services {
            let Some(troubles) = troubles.remove(&Key::of(&**service)) else {
                continue;
            };
            let uid = service.metadata.uid.clone().unwrap_or_default();
            let before = memory.told.remove(&uid).unwrap_or_default();
            for trouble in troubles.iter().filter(|it| !before.contains(it)) {
                self.warn(reference(&**service), trouble.reason(), trouble.to_string());
            }
            told.insert(uid, troubles);
        }
        memory.told = told;
    }

    fn tell_of_pools(&self, map: &ConfigMap, errors: Vec<PoolError>) {
        let mut memory = self.memory();
        for error in errors
            .iter()
            .filter(|it| !memory.told_of_pools.contains(it))
        {
            self.warn(reference(map), "InvalidPool", error.to_string());
        }
        memory.told_of_pools = errors;
    }

    fn warn(&self, about: ObjectReference, reason: &'static str, message: String) {
        tracing::warn!(object = about.name, reason, "{message}");
        self.events
            .report(about, Severity::Warning, reason, message);
    }
}
