//! Cluster addresses and node ports of Services: every one given once, and given back when the Service goes.
//!
//! What is in use is rebuilt from the Services themselves at start and followed through the cache. What a running request
//! takes is reserved at once and given back if the request fails. What other API servers took meanwhile, the store's
//! [`reservations`] tell when the Service is written.

mod families;
mod pool;
mod ports;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use rand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};

pub use pool::Held;
pub(super) use pool::Holding;
use pool::{Pool, Pools, lock};
use ports::{give_health_check_port, give_ports, is_health_checked};
pub use ranges::{Ranges, RangesError};

use super::{Review, reservations};
use crate::api::error::ApiError;
use crate::resources::{Family, FieldError, FieldErrorReason};
use crate::store::cache::{Cache, Change, Freshness, ReadError};
use crate::store::{Store, StoreError};

/// How long to wait before the Services are read again.
const RETRY: Duration = Duration::from_secs(1);

/// The pools of a cluster.
pub struct ServiceAddresses {
    ranges: Ranges,
    pools: Arc<Mutex<Pools>>,
}

impl ServiceAddresses {
    pub fn new(ranges: Ranges) -> Arc<Self> {
        let pools = Pools {
            addresses: Pool::new(),
            ports: Pool::new(),
            running: HashMap::new(),
        };
        Arc::new(ServiceAddresses {
            ranges,
            pools: Arc::new(Mutex::new(pools)),
        })
    }

    /// What nodes may not have a certificate for: the ranges, and the addresses of Services that are in none of them,
    /// because the cluster had others before.
    pub fn reserved(&self) -> Vec<IpNet> {
        let pools = lock(&self.pools);
        let in_use = pools.addresses.holders.keys();
        let outside = in_use.filter(|address| !self.ranges.contain(**address));
        let outside = outside.map(|address| IpNet::from(*address));
        self.ranges.iter().copied().chain(outside).collect()
    }

    /// Takes note of what the stored Services hold, then follows their changes in a task of its own.
    pub async fn follow(self: &Arc<Self>, cache: &Arc<Cache>) -> Result<(), ReadError> {
        let revision = self.adopt(cache).await?;
        let (this, cache) = (Arc::clone(self), Arc::clone(cache));
        tokio::spawn(async move {
            let mut after = Some(revision);
            loop {
                match cache.watch(PREFIX, after) {
                    Ok(mut changes) => {
                        while let Some(change) = changes.next().await {
                            this.note(&change);
                            after = Some(change.revision());
                        }
                    }
                    // The watch fell behind: look at everything again.
                    Err(_) => match this.adopt(&cache).await {
                        Ok(revision) => after = Some(revision),
                        Err(error) => {
                            tracing::warn!(%error, "cannot read the services");
                            tokio::time::sleep(RETRY).await;
                        }
                    },
                }
            }
        });
        Ok(())
    }

    async fn adopt(&self, cache: &Cache) -> Result<crate::store::Revision, ReadError> {
        // What was settled before the list was made and is not in it has gone. What is taken meanwhile may come after it.
        let before = lock(&self.pools).settled();
        let listing = cache.list(PREFIX, Freshness::Latest).await?;
        let mut pools = lock(&self.pools);
        for (holder, holding) in &before {
            if !pools.running.contains_key(holder) {
                pools.release(holding, holder);
            }
        }
        for object in &listing.objects {
            pools.note(&holding(&object.json), holder_of(&object.key));
        }
        Ok(listing.revision)
    }

    fn note(&self, change: &Change) {
        let mut pools = lock(&self.pools);
        match change {
            Change::Put { object, previous } => {
                let holder = holder_of(&object.key);
                let new = holding(&object.json);
                if let Some(previous) = previous {
                    let mut left = holding(&previous.json);
                    left.addresses.retain(|a| !new.addresses.contains(a));
                    left.ports.retain(|p| !new.ports.contains(p));
                    pools.release(&left, holder);
                }
                pools.note(&new, holder);
            }
            Change::Delete { previous, .. } => {
                pools.release(&holding(&previous.json), holder_of(&previous.key))
            }
            Change::Bookmark(_) => {}
        }
    }

    /// Another API server gave away what `key` of the reservations stands for, before this one had heard of it.
    pub(super) async fn lost(&self, store: &dyn Store, key: &str) -> Result<(), StoreError> {
        let Some(holding) = reservations::of_service(key) else {
            return Ok(());
        };
        let (Some(entry), _) = store.get(key).await? else {
            return Ok(());
        };
        let holder = String::from_utf8_lossy(&entry.value).into_owned();
        lock(&self.pools).note(&holding, &holder);
        // What was given back before it was noted is no news any more that would end the note.
        let (now, _) = store.get(key).await?;
        if now.is_none_or(|now| now.modified != entry.modified) {
            lock(&self.pools).release(&holding, &holder);
        }
        Ok(())
    }

    /// Gives a Service what its type asks for, or refuses what it asks for by name.
    pub(super) fn admit(
        &self,
        review: &Review<'_>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Held, ApiError> {
        if !service["spec"].is_object() || !review.subresource.is_empty() {
            return Ok(Held::nothing());
        }
        let name = service["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let holder = format!("{}/{name}", review.namespace);
        if let Some(old) = old {
            carry_ports_over(service, old);
        }
        let mut spec = spec_of(service).map_err(ApiError::internal)?;
        let old_spec = old.map(spec_of).transpose().map_err(ApiError::internal)?;
        let invalid = |errors: &[FieldError]| ApiError::invalid("", "Service", &name, errors);
        families::settle(&mut spec, old_spec.as_ref(), &self.ranges)
            .map_err(|errors| invalid(&errors))?;
        // A dry run takes and gives back at once: it sees the refusals and leaves nothing.
        let before = old.map(|o| holding_of(&o["spec"])).unwrap_or_default();
        let mut held = Held {
            pools: Some(self.pools.clone()),
            holder,
            taken: Holding::default(),
        };
        let mut pools = lock(&self.pools);
        *pools.running.entry(held.holder.clone()).or_default() += 1;
        let outcome = self
            .give_addresses(&mut pools, &mut spec, &before, &mut held)
            .and_then(|()| {
                families::write_back(&spec, &mut service["spec"]);
                give_ports(&mut pools, service, &before, &mut held)?;
                give_health_check_port(&mut pools, service, &before, &mut held)
            });
        drop(pools);
        match outcome {
            Ok(()) => Ok(held),
            Err(error) => Err(invalid(&[*error])),
        }
    }

    /// Gives every family of the Service its address.
    fn give_addresses(
        &self,
        pools: &mut Pools,
        spec: &mut ServiceSpec,
        before: &Holding,
        held: &mut Held,
    ) -> Result<(), Box<FieldError>> {
        if families::is_external(spec) {
            return Ok(());
        }
        if families::is_headless(spec) {
            spec.cluster_ips = Some(vec!["None".to_owned()]);
            return Ok(());
        }
        let mut ips = spec.cluster_ips.take().unwrap_or_default();
        for (index, family) in families::families(spec).into_iter().enumerate() {
            match ips.get(index) {
                Some(text) => self.claim(pools, text, &ips, before, held)?,
                None => {
                    let address = self.take(pools, family, held)?;
                    ips.push(address.to_string());
                }
            }
        }
        spec.cluster_ip = ips.first().cloned();
        spec.cluster_ips = Some(ips);
        Ok(())
    }

    fn take(
        &self,
        pools: &mut Pools,
        family: Family,
        held: &mut Held,
    ) -> Result<IpAddr, Box<FieldError>> {
        let full = || {
            let why = "failed to allocate IP: range is full";
            wrong("spec.clusterIPs", json!([]), why)
        };
        let range = self.ranges.of(family).ok_or_else(full)?;
        let usable = ranges::usable(range);
        let start = rand::rng().random_range(0..usable);
        let candidate = |at| ranges::nth(range, at);
        let taken = pools.addresses.take(&held.holder, start, usable, candidate);
        let address = taken.ok_or_else(full)?;
        held.taken.addresses.push(address);
        Ok(address)
    }

    /// Takes an address that the Service names.
    fn claim(
        &self,
        pools: &mut Pools,
        text: &str,
        all: &[String],
        before: &Holding,
        held: &mut Held,
    ) -> Result<(), Box<FieldError>> {
        let bad = |why: &str| {
            let why = format!("failed to allocate IP {text}: {why}");
            wrong("spec.clusterIPs", json!(all), &why)
        };
        let address: IpAddr = text
            .parse()
            .map_err(|_| bad("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))?;
        if before.addresses.contains(&address) {
            return Ok(());
        }
        let range = self.ranges.of(Family::of(address));
        let range = range.ok_or_else(|| bad("its family is not configured on this cluster"))?;
        if !ranges::may_give(range, address) {
            return Err(bad(&format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        if !pools.addresses.claim_free(address, &held.holder) {
            return Err(bad("provided IP is already allocated"));
        }
        held.taken.addresses.push(address);
        Ok(())
    }
}

/// An update that does not name the node ports keeps them, as far as the type still has them.
fn carry_ports_over(service: &mut Value, old: &Value) {
    let (old_type, new_type) = (old["spec"]["type"].clone(), service["spec"]["type"].clone());
    let unset = |value: &Value| value.is_null() || value == "" || value == 0;
    let health_checked = is_health_checked(old) && is_health_checked(service);
    let spec = &mut service["spec"];
    if health_checked && unset(&spec["healthCheckNodePort"]) {
        spec["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
    let had = matches!(old_type.as_str(), Some("NodePort" | "LoadBalancer"));
    let has = matches!(new_type.as_str(), Some("NodePort" | "LoadBalancer"));
    let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let same = old_ports
            .iter()
            .find(|o| o["port"] == port["port"] && protocol(o) == protocol(port));
        let kept = same.map(|o| o["nodePort"].clone()).filter(|n| !unset(n));
        match (had, has, kept) {
            (true, true, Some(number)) if unset(&port["nodePort"]) => port["nodePort"] = number,
            // The type no longer has node ports: those it had go, unless they were changed at the same time.
            (true, false, Some(number)) if port["nodePort"] == number => {
                if let Some(map) = port.as_object_mut() {
                    map.shift_remove("nodePort");
                }
            }
            _ => {}
        }
    }
}

fn spec_of(service: &Value) -> Result<ServiceSpec, serde_json::Error> {
    ServiceSpec::deserialize(&service["spec"])
}

fn protocol(port: &Value) -> &'static str {
    match port["protocol"].as_str() {
        Some("UDP") => "UDP",
        Some("SCTP") => "SCTP",
        _ => "TCP",
    }
}

fn wrong(path: &str, value: Value, detail: &str) -> Box<FieldError> {
    Box::new(FieldError {
        path: path.into(),
        reason: FieldErrorReason::Invalid,
        value: Some(value),
        detail: detail.into(),
    })
}

const PREFIX: &str = "/registry/services/";

fn holder_of(key: &str) -> &str {
    key.strip_prefix(PREFIX).unwrap_or(key)
}

fn holding(json: &[u8]) -> Holding {
    serde_json::from_slice::<Value>(json)
        .map(|service| holding_of(&service["spec"]))
        .unwrap_or_default()
}

pub(super) fn holding_of(spec: &Value) -> Holding {
    let addresses = spec["clusterIPs"].as_array().into_iter().flatten();
    let addresses = addresses.chain([&spec["clusterIP"]]);
    let addresses: BTreeSet<IpAddr> = addresses
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .collect();
    let ports = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|port| {
            let number = u16::try_from(port["nodePort"].as_u64()?)
                .ok()
                .filter(|n| *n > 0)?;
            Some((number, protocol(port)))
        });
    let health_check = spec["healthCheckNodePort"].as_u64();
    let health_check = health_check.and_then(|number| u16::try_from(number).ok());
    let health_check = health_check.filter(|number| *number > 0);
    let ports = ports.chain(health_check.map(|number| (number, "TCP")));
    Holding {
        addresses: addresses.into_iter().collect(),
        ports: ports.collect(),
    }
}
