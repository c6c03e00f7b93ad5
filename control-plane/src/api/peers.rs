//! The API servers that share a store: each keeps a Lease in `kube-system` from which the others see that it lives and where,
//! as upstream's identity Leases and its lease reconciler of `kubernetes`' endpoints do together.
//!
//! A Lease is judged by whether it changes, not by the times in it: the machines' clocks may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::apply::Manager;
use super::deletion::DeleteOptions;
use super::error::ApiError;
use super::meta;
use super::registry::{Call, Registry, Through};
use crate::admission::Warnings;
use crate::auth::User;
use crate::resources::validate::is_plain;
use crate::resources::{self, Family, Kind};
use crate::store::cache::Freshness;

const NAMESPACE: &str = "kube-system";
/// Upstream's label of such Leases, and its value.
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
/// Where the server is reached.
const ADDRESS: &str = "kernelet.io/address";
/// A server whose Lease has not changed for so long is taken to be gone: three renewals.
const LIFE: Duration = Duration::from_secs(30);

/// What one server knows of the others.
pub struct Peers {
    name: String,
    /// Each run of the program is another holder.
    holder: String,
    advertised: SocketAddr,
    seen: Seen,
}

impl Peers {
    /// `place` tells this server from the others of the cluster, and is the same when it is started again.
    pub fn new(place: &str, advertised: SocketAddr) -> Self {
        let digest = Sha256::digest(place);
        let digest: String = digest.iter().take(13).map(|b| format!("{b:02x}")).collect();
        let name = format!("apiserver-{digest}");
        Self {
            holder: format!("{name}_{}", uuid::Uuid::new_v4()),
            name,
            advertised,
            seen: Seen::default(),
        }
    }

    /// The servers to which the service `kubernetes` leads, this one among them.
    pub async fn look(
        &mut self,
        registry: &Registry,
        now: Instant,
    ) -> Result<BTreeSet<SocketAddr>, ApiError> {
        let mut addresses = self.living(registry, now).await?;
        addresses.push(self.advertised);
        Ok(reachable(addresses))
    }

    /// The same without this one.
    pub async fn others(
        &mut self,
        registry: &Registry,
        now: Instant,
    ) -> Result<BTreeSet<SocketAddr>, ApiError> {
        self.living(registry, now).await.map(reachable)
    }

    /// Where the other servers are that live. Removes the Leases of those that have gone.
    async fn living(
        &mut self,
        registry: &Registry,
        now: Instant,
    ) -> Result<Vec<SocketAddr>, ApiError> {
        let kind = kind()?;
        let prefix = super::stored::prefix(kind, NAMESPACE);
        let listing = registry.cache.list(&prefix, Freshness::Latest).await;
        let listing = listing.map_err(super::stored::read_error)?;
        let leases: Vec<Value> = listing
            .objects
            .iter()
            .filter_map(|object| serde_json::from_slice(&object.json).ok())
            .filter(|lease| meta::text(lease, "name") != self.name && is_servers(lease))
            .collect();
        let versions = leases.iter().map(|lease| {
            let version = meta::text(lease, "resourceVersion");
            (meta::text(lease, "name").to_owned(), version.to_owned())
        });
        let gone = self.seen.look(versions.collect(), now);
        let mut addresses = Vec::new();
        for lease in &leases {
            let name = meta::text(lease, "name");
            if gone.contains(name) {
                tracing::warn!(server = name, "another API server gives no sign of life");
                self.remove(registry, name, Some(meta::text(lease, "resourceVersion")))
                    .await?;
                continue;
            }
            let address = lease["metadata"]["annotations"][ADDRESS].as_str();
            addresses.extend(address.and_then(|text| text.parse::<SocketAddr>().ok()));
        }
        Ok(addresses)
    }

    /// Says that this server lives.
    pub async fn renew(&self, registry: &Registry) -> Result<(), ApiError> {
        let kind = kind()?;
        let (user, manager, warnings) = (
            User::api_server(),
            Manager::server(kind),
            Warnings::default(),
        );
        let call = call(kind, &user, &manager, &warnings);
        let fill = |lease: &mut Value| {
            lease["metadata"]["labels"][LABEL.0] = json!(LABEL.1);
            lease["metadata"]["annotations"][ADDRESS] = json!(self.advertised.to_string());
            lease["spec"]["holderIdentity"] = json!(self.holder);
            lease["spec"]["leaseDurationSeconds"] = json!(LIFE.as_secs());
            lease["spec"]["renewTime"] = json!(MicroTime(Timestamp::now()));
        };
        let update = |old: &Value| {
            let mut new = old.clone();
            fill(&mut new);
            Ok(new)
        };
        match registry
            .update(&call, &self.name, Through::Main, update)
            .await
        {
            Err(error) if error.reason == "NotFound" => {}
            outcome => return outcome.map(drop),
        }
        let mut lease = json!({"metadata": {"name": self.name}, "spec": {}});
        fill(&mut lease);
        let (lease, _) = (kind.decode)(lease).map_err(ApiError::internal)?;
        registry.create(&call, lease).await.map(drop)
    }

    /// Says that this server goes.
    pub async fn leave(&self, registry: &Registry) -> Result<(), ApiError> {
        self.remove(registry, &self.name, None).await
    }

    async fn remove(
        &self,
        registry: &Registry,
        name: &str,
        version: Option<&str>,
    ) -> Result<(), ApiError> {
        let kind = kind()?;
        let (user, manager, warnings) = (
            User::api_server(),
            Manager::server(kind),
            Warnings::default(),
        );
        let call = call(kind, &user, &manager, &warnings);
        let options = DeleteOptions {
            resource_version: version.map(str::to_owned),
            ..DeleteOptions::default()
        };
        match registry.delete(&call, name, &options).await {
            // Another server was faster, or it lives after all.
            Err(error) if error.reason == "NotFound" || error.reason == "Conflict" => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn kind() -> Result<&'static Kind, ApiError> {
    resources::find("coordination.k8s.io", "v1", "leases").ok_or_else(ApiError::no_route)
}

fn call<'a>(
    kind: &'static Kind,
    user: &'a User,
    manager: &'a Manager,
    warnings: &'a Warnings,
) -> Call<'a> {
    Call {
        user,
        kind,
        namespace: NAMESPACE,
        dry_run: false,
        manager,
        warnings,
    }
}

fn is_servers(lease: &Value) -> bool {
    lease["metadata"]["labels"][LABEL.0] == LABEL.1
}

/// Those that other machines reach and that one EndpointSlice can name: of the family and the port of the least of them, so
/// that all servers choose alike.
fn reachable(addresses: Vec<SocketAddr>) -> BTreeSet<SocketAddr> {
    let is_reachable = |address: &&SocketAddr| is_plain(address.ip());
    let plain: BTreeSet<SocketAddr> = addresses.iter().filter(is_reachable).copied().collect();
    let Some(least) = plain.first().copied() else {
        // Not for others; it is for the caller to say so.
        return addresses.into_iter().collect();
    };
    let fits = |address: &SocketAddr| {
        Family::of(address.ip()) == Family::of(least.ip()) && address.port() == least.port()
    };
    plain.into_iter().filter(fits).collect()
}

/// When each Lease was first seen as it is.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, (String, Instant)>);

impl Seen {
    /// Takes note of the Leases, name and version; gives those that have not changed for too long.
    fn look(&mut self, leases: BTreeMap<String, String>, now: Instant) -> BTreeSet<String> {
        self.0.retain(|name, _| leases.contains_key(name));
        let mut gone = BTreeSet::new();
        for (name, version) in leases {
            let seen = self
                .0
                .entry(name.clone())
                .or_insert_with(|| (version.clone(), now));
            if seen.0 != version {
                *seen = (version, now);
            }
            if now.duration_since(seen.1) >= LIFE {
                gone.insert(name);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_gone_when_its_lease_stands_still() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut at = |seconds, leases: &[(&str, &str)]| {
            let leases = leases.iter().map(|(n, v)| (n.to_string(), v.to_string()));
            let gone = seen.look(leases.collect(), start + Duration::from_secs(seconds));
            gone.into_iter().collect::<Vec<_>>().join(",")
        };
        assert_eq!(at(0, &[("a", "1"), ("b", "1")]), "");
        assert_eq!(at(29, &[("a", "2"), ("b", "1")]), "");
        assert_eq!(at(31, &[("a", "2"), ("b", "1")]), "b");
        assert_eq!(at(40, &[("a", "2")]), "");
        // It came back, as another or the same.
        assert_eq!(at(41, &[("a", "2"), ("b", "1")]), "");
        assert_eq!(at(59, &[("a", "2"), ("b", "1")]), "a");
    }

    #[test]
    fn servers_choose_the_same_addresses() {
        let choose = |texts: &[&str]| {
            let addresses = texts.iter().map(|text| text.parse().expect("an address"));
            let chosen: Vec<_> = reachable(addresses.collect())
                .iter()
                .map(ToString::to_string)
                .collect();
            chosen.join(" ")
        };
        assert_eq!(
            choose(&["192.0.2.2:6443", "192.0.2.1:6443"]),
            "192.0.2.1:6443 192.0.2.2:6443"
        );
        assert_eq!(
            choose(&["192.0.2.2:6443", "192.0.2.1:7443", "[2001:db8::1]:6443"]),
            "192.0.2.1:7443"
        );
        assert_eq!(choose(&["127.0.0.1:6443"]), "127.0.0.1:6443");
        assert_eq!(choose(&["127.0.0.1:6443", "192.0.2.9:1"]), "192.0.2.9:1");
    }
}
