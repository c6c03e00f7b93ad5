//! Which series the counters make, and their labels. Pure.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::{BackendId, BackendStats};

use super::names::{Names, protocol, socket_address};
use crate::cluster::ObjectKey;
use crate::proxy::LbState;

pub(super) type Labels = Vec<(&'static str, String)>;

/// A backend that something happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackendSeries {
    pub(super) labels: Labels,
    pub(super) stats: BackendStats,
    pub(super) services: Vec<ObjectKey>,
}

impl BackendSeries {
    pub(super) fn active(&self) -> u64 {
        self.stats.opens.saturating_sub(self.stats.closes)
    }
}

/// A service that something happened to, with the sum over all backends that it ever had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceSeries {
    pub(super) labels: Labels,
    pub(super) stats: BackendStats,
    pub(super) active: u64,
}

/// The services of `totals`, which are sums; what is active is with the backends that are there.
pub(super) fn services<'a>(
    totals: impl Iterator<Item = (&'a ObjectKey, BackendStats)>,
    backends: &[BackendSeries],
) -> Vec<ServiceSeries> {
    let mut active: BTreeMap<&ObjectKey, u64> = BTreeMap::new();
    for backend in backends {
        for service in &backend.services {
            *active.entry(service).or_default() += backend.active();
        }
    }
    totals
        .map(|(service, stats)| ServiceSeries {
            labels: vec![
                ("namespace", service.namespace.to_string()),
                ("service", service.name.to_string()),
            ],
            stats,
            active: active.get(service).copied().unwrap_or(0),
        })
        .collect()
}

/// Each backend with each service that it stands for.
pub(super) fn users(state: &LbState) -> BTreeSet<(BackendId, &ObjectKey)> {
    state
        .frontends()
        .filter_map(|(_, live)| Some((live.owner.as_ref()?, &live.slots)))
        .flat_map(|(owner, slots)| slots.iter().map(move |id| (*id, owner)))
        .collect()
}

/// The backends with counters that stand for some service, under the names of all of those.
pub(super) fn backends(
    totals: &BTreeMap<BackendId, BackendStats>,
    users: &BTreeSet<(BackendId, &ObjectKey)>,
    names: Names<'_>,
    node: &str,
) -> Vec<BackendSeries> {
    let mut services: BTreeMap<BackendId, Vec<&ObjectKey>> = BTreeMap::new();
    for (id, service) in users {
        if totals.contains_key(id) {
            services.entry(*id).or_default().push(service);
        }
    }
    let series = services.into_iter().filter_map(|(id, services)| {
        let target = names.state.backend(id)?;
        let peer = names.peer(services.first().copied(), target.address);
        let joined = |name: fn(&ObjectKey) -> &str| {
            let mut all: Vec<&str> = services.iter().map(|service| name(service)).collect();
            all.dedup();
            all.join(",")
        };
        Some(BackendSeries {
            labels: vec![
                ("namespace", joined(|it| &it.namespace)),
                ("service", joined(|it| &it.name)),
                ("backend", socket_address(target.address, target.port)),
                ("protocol", protocol(target.protocol)),
                ("local", (peer.node == node).to_string()),
                ("node", peer.node),
                (
                    "pod",
                    peer.pod.rsplit('/').next().unwrap_or_default().to_owned(),
                ),
            ],
            stats: totals[&id],
            services: services.into_iter().cloned().collect(),
        })
    });
    series.collect()
}
