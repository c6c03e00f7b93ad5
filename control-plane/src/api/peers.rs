//! The API servers that share a store: each keeps a key there, named after the address that it is reached at, from which the
//! others see that it lives, as upstream's lease reconciler of `kubernetes`' endpoints does. It is no object of the API: who
//! may write it decides where every client of the cluster is led to.
//!
//! A server is judged by whether its key is written, not by times in it: the machines' clocks may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::error::ApiError;
use super::stored::store_error;
use crate::resources::Family;
use crate::resources::validate::is_plain;
use crate::store::{Entry, Expect, Revision, Store, StoreError};

const PREFIX: &str = "/registry/kernelet/servers/";
/// A server that has not written its key for so long is taken to be gone: three renewals.
const LIFE: Duration = Duration::from_secs(30);
/// How often it is tried to write one's own key when another server removes it at the same time.
const ATTEMPTS: usize = 8;

/// What one server knows of the others.
pub struct Peers {
    /// Where this one is reached.
    advertised: SocketAddr,
    seen: Seen,
}

impl Peers {
    pub fn new(advertised: SocketAddr) -> Self {
        let seen = Seen::default();
        Self { advertised, seen }
    }

    /// The servers to which the service `kubernetes` leads, this one among them.
    pub async fn look(
        &mut self,
        store: &dyn Store,
        now: Instant,
    ) -> Result<BTreeSet<SocketAddr>, ApiError> {
        let mut servers = self.others(store, now).await?;
        if servers.is_empty() || is_plain(self.advertised.ip()) {
            servers.insert(self.advertised);
        }
        Ok(servers)
    }

    /// The same without this one. Removes the keys of those that have gone.
    pub async fn others(
        &mut self,
        store: &dyn Store,
        now: Instant,
    ) -> Result<BTreeSet<SocketAddr>, ApiError> {
        let range = store.range(PREFIX, None, 0, None).await;
        let mut entries = range.map_err(store_error)?.entries;
        let own = self.key();
        entries.retain(|entry| entry.key != own);
        let versions = entries
            .iter()
            .map(|entry| (entry.key.clone(), entry.modified));
        let gone = self.seen.look(versions.collect(), now);
        let mut living = Vec::new();
        for Entry { key, modified, .. } in entries {
            let name = key.strip_prefix(PREFIX).unwrap_or_default();
            if gone.contains(&key) {
                tracing::warn!(server = name, "another API server gives no sign of life");
                remove(store, &key, modified).await?;
            } else if let Ok(address) = name.parse::<SocketAddr>() {
                living.push(address);
            }
        }
        Ok(reachable(living, self.advertised))
    }

    /// Says that this server lives.
    pub async fn renew(&self, store: &dyn Store) -> Result<(), ApiError> {
        let key = self.key();
        let mut outcome = Ok(());
        for _ in 0..ATTEMPTS {
            let (entry, _) = store.get(&key).await.map_err(store_error)?;
            let expect = entry.map_or(Expect::Absent, |entry| Expect::Modified(entry.modified));
            outcome = store.put(&key, "".into(), expect).await.map(drop);
            if !matches!(outcome, Err(StoreError::Conflict { .. })) {
                break;
            }
        }
        outcome.map_err(store_error)
    }

    /// Says that this server goes.
    pub async fn leave(&self, store: &dyn Store) -> Result<(), ApiError> {
        let key = self.key();
        match store.get(&key).await.map_err(store_error)? {
            (Some(entry), _) => remove(store, &key, entry.modified).await,
            (None, _) => Ok(()),
        }
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}", self.advertised)
    }
}

async fn remove(store: &dyn Store, key: &str, modified: Revision) -> Result<(), ApiError> {
    match store.delete(key, modified).await {
        // Another server was faster, or it lives after all.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(store_error(error)),
    }
}

/// Those that other machines reach and that one EndpointSlice can name together with `own`: of its family, on its port.
fn reachable(addresses: Vec<SocketAddr>, own: SocketAddr) -> BTreeSet<SocketAddr> {
    let plain = addresses.into_iter().filter(|it| is_plain(it.ip()));
    let fits = |address: &SocketAddr| {
        Family::of(address.ip()) == Family::of(own.ip()) && address.port() == own.port()
    };
    let (fitting, others): (BTreeSet<_>, BTreeSet<_>) = plain.partition(fits);
    for other in others {
        tracing::warn!(%other, %own, "another API server is of another family or on another port: all need the same");
    }
    fitting
}

/// When each key was first seen as it is.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, (Revision, Instant)>);

impl Seen {
    /// Takes note of the keys and when they were written; gives those that have not been for too long.
    fn look(&mut self, keys: BTreeMap<String, Revision>, now: Instant) -> BTreeSet<String> {
        self.0.retain(|key, _| keys.contains_key(key));
        let mut gone = BTreeSet::new();
        for (key, version) in keys {
            let seen = self.0.entry(key.clone()).or_insert_with(|| (version, now));
            if seen.0 != version {
                *seen = (version, now);
            }
            if now.duration_since(seen.1) >= LIFE {
                gone.insert(key);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_gone_when_its_key_stands_still() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut at = |seconds, keys: &[(&str, u64)]| {
            let keys = keys
                .iter()
                .map(|(key, at)| (key.to_string(), Revision(*at)));
            let gone = seen.look(keys.collect(), start + Duration::from_secs(seconds));
            gone.into_iter().collect::<Vec<_>>().join(",")
        };
        assert_eq!(at(0, &[("a", 1), ("b", 1)]), "");
        assert_eq!(at(29, &[("a", 2), ("b", 1)]), "");
        assert_eq!(at(31, &[("a", 2), ("b", 1)]), "b");
        assert_eq!(at(40, &[("a", 2)]), "");
        // It came back, as another or the same.
        assert_eq!(at(41, &[("a", 2), ("b", 1)]), "");
        assert_eq!(at(59, &[("a", 2), ("b", 1)]), "a");
    }

    #[test]
    fn servers_of_one_slice_are_of_one_family_and_port() {
        let choose = |texts: &[&str], own: &str| {
            let addresses = texts.iter().map(|text| text.parse().expect("an address"));
            let own = own.parse().expect("an address");
            let chosen: Vec<_> = reachable(addresses.collect(), own)
                .iter()
                .map(ToString::to_string)
                .collect();
            chosen.join(" ")
        };
        let all = [
            "127.0.0.1:6443",
            "192.0.2.1:7443",
            "192.0.2.2:6443",
            "192.0.2.3:6443",
            "[2001:db8::1]:6443",
        ];
        assert_eq!(
            choose(&all, "192.0.2.9:6443"),
            "192.0.2.2:6443 192.0.2.3:6443"
        );
        assert_eq!(choose(&all, "[2001:db8::9]:6443"), "[2001:db8::1]:6443");
        assert_eq!(choose(&all, "127.0.0.1:7443"), "192.0.2.1:7443");
    }
}
