//! The nodes' Leases as signs of life: read from the API, and what ours says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tracing::debug;

use super::election::{Election, Sign};
use crate::chain::chain;
use crate::cluster::Name;

/// Annotation of a node's Lease: the networks in which it stands ready to announce load balancers' addresses.
pub const ANNOTATION: &str = "kernelet.io/announces";
/// Where the nodes' Leases are. A node may write there, with any API server, what bears its own name.
const NAMESPACE: &str = "kube-node-lease";
/// After a failure. Each node that has a part in this asks so often, and as long as an answer takes.
const RETRY: Duration = Duration::from_millis(500);
/// A watch is renewed this often, so a connection that died in silence is noticed.
const WATCH_TIMEOUT_S: u32 = 60;

/// The same pause after each failure.
struct Pause;

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(RETRY)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}

/// A watch of the Leases.
pub(super) struct Beats {
    client: Client,
    events: BoxStream<'static, watcher::Result<Event<Lease>>>,
    opened: Instant,
    listed: BTreeSet<Name>,
}

impl Beats {
    pub(super) fn open(client: &Client) -> Self {
        let config = watcher::Config::default().timeout(WATCH_TIMEOUT_S);
        let leases = Api::namespaced(client.clone(), NAMESPACE);
        Self {
            client: client.clone(),
            events: watcher(leases, config).backoff(Pause).boxed(),
            opened: Instant::now(),
            listed: BTreeSet::new(),
        }
    }

    /// Begins anew where nothing was heard for `patience`: the connection may be dead, and neither end knows.
    pub(super) fn reopen_after(&mut self, patience: Duration, heard: Option<Instant>) {
        let last = heard.map_or(self.opened, |heard| heard.max(self.opened));
        if last.elapsed() > patience {
            *self = Self::open(&self.client);
        }
    }

    /// Takes the next event over into `election`. May be dropped: an event that is not taken comes again or is late.
    pub(super) async fn next(&mut self, election: &mut Election) {
        match self.events.next().await {
            Some(Ok(event)) => self.take(event, election),
            Some(Err(error)) => {
                debug!(
                    error = chain(&error),
                    "cannot follow the nodes' leases; trying again"
                );
            }
            // It never ends; should it, the caller opens another.
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, event: Event<Lease>, election: &mut Election) {
        let now = Instant::now();
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(lease) => {
                if let Some((node, sign)) = read(&lease) {
                    self.listed.insert(node.clone());
                    election.heard(&node, sign, now);
                }
            }
            Event::InitDone => election.listed(&self.listed),
            Event::Apply(lease) => {
                if let Some((node, sign)) = read(&lease) {
                    election.heard(&node, sign, now);
                }
            }
            Event::Delete(lease) => {
                if let Some(name) = lease.metadata.name {
                    election.gone(&name.into());
                }
            }
        }
    }
}

/// What a Lease says. Networks that make no sense are left out.
fn read(lease: &Lease) -> Option<(Name, Sign)> {
    let name = lease.metadata.name.as_deref()?;
    let annotations = lease.metadata.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(ANNOTATION));
    let networks = text.into_iter().flat_map(|text| text.split(','));
    let renewed = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.renew_time.as_ref());
    let sign = Sign {
        renewed: renewed.map(|time| time.0),
        networks: networks
            .filter_map(|text| text.trim().parse().ok())
            .collect(),
    };
    Some((name.into(), sign))
}

/// Writes the networks into the Lease's annotations, or takes them out.
pub(crate) fn write(annotations: &mut Option<BTreeMap<String, String>>, networks: &[IpNet]) {
    if networks.is_empty() {
        if let Some(annotations) = annotations {
            annotations.remove(ANNOTATION);
        }
        return;
    }
    let texts: Vec<String> = networks.iter().map(ToString::to_string).collect();
    let annotations = annotations.get_or_insert_default();
    annotations.insert(ANNOTATION.to_owned(), texts.join(","));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_a_lease_is_read_from_it() {
        let mut lease = Lease::default();
        lease.metadata.name = Some("worker-1".into());
        let networks = ["192.0.2.0/24", "2001:db8::/64"].map(|text| text.parse().unwrap());
        write(&mut lease.metadata.annotations, &networks);
        assert_eq!(
            lease.metadata.annotations.as_ref().unwrap()["kernelet.io/announces"],
            "192.0.2.0/24,2001:db8::/64"
        );
        let (name, sign) = read(&lease).unwrap();
        assert_eq!((&*name, &*sign.networks), ("worker-1", &networks[..]));
        write(&mut lease.metadata.annotations, &[]);
        assert_eq!(read(&lease).unwrap().1, Sign::default());

        let nonsense = [(ANNOTATION.to_owned(), "x, 192.0.2.0/24,".to_owned())];
        lease.metadata.annotations = Some(nonsense.into());
        assert_eq!(read(&lease).unwrap().1.networks, networks[..1]);
    }
}
