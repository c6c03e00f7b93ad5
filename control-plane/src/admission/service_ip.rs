//! Cluster addresses and node ports of Services: every one given once, and given back when the Service goes.
//!
//! What is in use is rebuilt from the Services themselves at start and followed through the cache, so nothing else has to
//! be stored. What a running request takes is reserved at once and given back if the request fails.

mod pool;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use ipnet::Ipv4Net;
use rand::Rng;
use serde_json::{Value, json};

pub use pool::Held;
use pool::{Holding, Pool, Pools, lock};

use super::Review;
use crate::api::error::ApiError;
use crate::resources::{FieldError, FieldErrorReason};
use crate::store::cache::{Cache, Change, Freshness, ReadError};

/// Where node ports come from, as upstream.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// How long to wait before the Services are read again.
const RETRY: Duration = Duration::from_secs(1);

/// The pools of a cluster.
pub struct ServiceAddresses {
    range: Ipv4Net,
    pools: Arc<Mutex<Pools>>,
}

impl ServiceAddresses {
    pub fn new(range: Ipv4Net) -> Arc<Self> {
        let pools = Pools {
            addresses: Pool::new(),
            ports: Pool::new(),
            running: HashMap::new(),
        };
        Arc::new(ServiceAddresses {
            range,
            pools: Arc::new(Mutex::new(pools)),
        })
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
            carry_over(service, old);
        }
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
            .give_address(&mut pools, service, &before, &mut held)
            .and_then(|()| give_ports(&mut pools, service, &before, &mut held));
        drop(pools);
        match outcome {
            Ok(()) => Ok(held),
            Err(error) => Err(ApiError::invalid("", "Service", &name, &[*error])),
        }
    }

    fn give_address(
        &self,
        pools: &mut Pools,
        service: &mut Value,
        before: &Holding,
        held: &mut Held,
    ) -> Result<(), Box<FieldError>> {
        let spec = &mut service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(());
        }
        let asked = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
        let address = match asked.as_str() {
            "None" => {
                spec["clusterIPs"] = json!(["None"]);
                return Ok(());
            }
            "" => {
                let size = 1_u32
                    .checked_shl(u32::from(32 - self.range.prefix_len()))
                    .unwrap_or(u32::MAX);
                let (first, usable) = (
                    u32::from(self.range.network()) + 1,
                    size.saturating_sub(2).max(1),
                );
                let start = rand::rng().random_range(0..usable);
                let taken = pools
                    .addresses
                    .take(&held.holder, start, usable, |at| Ipv4Addr::from(first + at));
                let address = taken.ok_or_else(|| {
                    wrong(
                        "spec.clusterIPs",
                        json!([]),
                        "failed to allocate IP: range is full",
                    )
                })?;
                held.taken.addresses.push(address);
                address
            }
            text => {
                let bad = |why: &str| {
                    wrong(
                        "spec.clusterIPs",
                        json!([text]),
                        &format!("failed to allocate IP {text}: {why}"),
                    )
                };
                let address: Ipv4Addr = text.parse().map_err(|_| {
                    wrong(
                        "spec.clusterIPs[0]",
                        json!(text),
                        "must be a valid IP address, (e.g. 10.9.8.7)",
                    )
                })?;
                if !before.addresses.contains(&address) {
                    if !self.range.contains(&address)
                        || address == self.range.network()
                        || address == self.range.broadcast()
                    {
                        return Err(bad(&format!(
                            "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                            self.range
                        )));
                    }
                    if !pools.addresses.claim_free(address, &held.holder) {
                        return Err(bad("provided IP is already allocated"));
                    }
                    held.taken.addresses.push(address);
                }
                address
            }
        };
        spec["clusterIP"] = json!(address.to_string());
        spec["clusterIPs"] = json!([address.to_string()]);
        for (field, default) in [
            ("ipFamilies", json!(["IPv4"])),
            ("ipFamilyPolicy", json!("SingleStack")),
        ] {
            if spec[field].is_null() {
                spec[field] = default;
            }
        }
        Ok(())
    }
}

fn give_ports(
    pools: &mut Pools,
    service: &mut Value,
    before: &Holding,
    held: &mut Held,
) -> Result<(), Box<FieldError>> {
    let spec = &mut service["spec"];
    let wants_ports = match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    };
    // Two protocols of one port get one number, if it is free for both.
    let mut given: Vec<(Value, u16)> = Vec::new();
    for (at, port) in spec["ports"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let protocol = protocol(port);
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked == 0 && !wants_ports {
            continue;
        }
        let path = format!("spec.ports[{at}].nodePort");
        let number = if asked == 0 {
            let twin = given
                .iter()
                .find(|(p, _)| *p == port["port"])
                .map(|(_, number)| *number);
            match twin.filter(|number| pools.ports.claim_free((*number, protocol), &held.holder)) {
                Some(number) => number,
                None => take_port(pools, protocol, &held.holder).ok_or_else(|| {
                    wrong(
                        &path,
                        json!(0),
                        "failed to allocate a nodePort: range is full",
                    )
                })?,
            }
        } else {
            let number = u16::try_from(asked)
                .ok()
                .filter(|n| before.ports.contains(&(*n, protocol)) || NODE_PORTS.contains(n));
            let number = number.ok_or_else(|| {
                wrong(&path, json!(asked), "provided port is not in the valid range. The range of valid ports is 30000-32767")
            })?;
            if !before.ports.contains(&(number, protocol))
                && !pools.ports.claim_free((number, protocol), &held.holder)
            {
                return Err(wrong(
                    &path,
                    json!(asked),
                    "provided port is already allocated",
                ));
            }
            number
        };
        if !before.ports.contains(&(number, protocol)) {
            held.taken.ports.push((number, protocol));
        }
        given.push((port["port"].clone(), number));
        port["nodePort"] = json!(number);
    }
    Ok(())
}

fn take_port(pools: &mut Pools, protocol: &'static str, holder: &str) -> Option<u16> {
    let (low, high) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    let size = u32::from(high - low) + 1;
    let start = rand::rng().random_range(0..size);
    let candidate = |at: u32| (u16::try_from(u32::from(low) + at).unwrap_or(high), protocol);
    pools
        .ports
        .take(holder, start, size, candidate)
        .map(|(number, _)| number)
}

/// An update that does not name the address or the node ports keeps them, as far as the type still has them.
fn carry_over(service: &mut Value, old: &Value) {
    let (old_type, new_type) = (old["spec"]["type"].clone(), service["spec"]["type"].clone());
    let spec = &mut service["spec"];
    let unset = |value: &Value| value.is_null() || value == "" || value == 0;
    if new_type != "ExternalName" && old_type != "ExternalName" && unset(&spec["clusterIP"]) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old["spec"].get(field) {
                spec[field] = value.clone();
            }
        }
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

fn holding_of(spec: &Value) -> Holding {
    let addresses = spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
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
    Holding {
        addresses: addresses.into_iter().collect(),
        ports: ports.collect(),
    }
}
