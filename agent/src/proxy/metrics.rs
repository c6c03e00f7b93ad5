//! What the proxy measures of its own work. Names that begin with `kubeproxy_` are kube-proxy's, and mean the same.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::ObjectKey;

/// What the proxy measures.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// From the change in the world, by the endpoints' own word, to the maps.
    pub(super) network_programming: Histogram,
    /// From seeing a change to the maps.
    pub(super) programming: Histogram,
    pub(super) sync: Histogram,
    pub(super) synced_at: Gauge<f64, AtomicU64>,
    pub(super) queued_at: Gauge<f64, AtomicU64>,
    pub(super) map_errors: Counter,
}

impl Metrics {
    /// Metrics that `registry` will show.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            network_programming: Histogram::new(upstream_buckets()),
            // From 50 µs to 1.6 s.
            programming: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            // From 50 µs to 3.3 s.
            sync: Histogram::new(exponential_buckets(0.000_05, 2.0, 17)),
            synced_at: Gauge::default(),
            queued_at: Gauge::default(),
            map_errors: Counter::default(),
        };
        registry.register_with_unit(
            "kubeproxy_network_programming_duration",
            "From a pod's or service's change, by the time on its EndpointSlice, to the last map write",
            Unit::Seconds,
            metrics.network_programming.clone(),
        );
        registry.register_with_unit(
            "kubeproxy_sync_proxy_rules_duration",
            "One pass over the services that changed, their map writes included",
            Unit::Seconds,
            metrics.sync.clone(),
        );
        registry.register_with_unit(
            "kubeproxy_sync_proxy_rules_last_timestamp",
            "When the last pass with something to do ended, in seconds since the epoch",
            Unit::Seconds,
            metrics.synced_at.clone(),
        );
        registry.register_with_unit(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp",
            "When the newest change that a pass was for was seen, in seconds since the epoch",
            Unit::Seconds,
            metrics.queued_at.clone(),
        );
        registry.register_with_unit(
            "kernelet_proxy_network_programming",
            "From seeing a change of a service to its last map write",
            Unit::Seconds,
            metrics.programming.clone(),
        );
        registry.register(
            "kernelet_proxy_map_write_errors",
            "Map writes that failed and are tried again",
            metrics.map_errors.clone(),
        );
        metrics
    }
}

/// kube-proxy's buckets, so that nodes of both kinds add up: 0.25 s, 0.5 s, each second of the first minute, each 5 s of
/// the second, each 30 s to five minutes.
fn upstream_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..60).chain((60..120).step_by(5));
    let seconds = seconds.chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

/// Which changes have been measured already. A change counts once, and none from before the agent ran: upstream's rule.
#[derive(Debug)]
pub(super) struct Measured {
    since: Timestamp,
    /// The latest change of each service that has had one since.
    latest: BTreeMap<ObjectKey, Timestamp>,
}

impl Measured {
    pub(super) fn since(since: Timestamp) -> Self {
        Self {
            since,
            latest: BTreeMap::new(),
        }
    }

    /// A service is in the maps; `changed` are the times on its slices. How long the latest change took, if it is news.
    pub(super) fn programmed(
        &mut self,
        service: &ObjectKey,
        changed: impl Iterator<Item = Timestamp>,
        now: Timestamp,
    ) -> Option<Duration> {
        let Some(latest) = changed.max().filter(|at| *at > self.since) else {
            self.latest.remove(service);
            return None;
        };
        let before = self.latest.insert(service.clone(), latest);
        if before.is_some_and(|before| latest <= before) {
            return None;
        }
        // Clocks of machines differ: what seems to come from the future took no time.
        Some(Duration::try_from(now.duration_since(latest)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_change_counts_once_and_none_from_before_the_start() {
        let web = ObjectKey::new("shop", "web");
        let mut measured = Measured::since(at(100));
        let mut programmed = |changed: &[i64], now: i64| {
            let changed = changed.iter().map(|second| at(*second));
            measured.programmed(&web, changed, at(now))
        };
        assert_eq!(programmed(&[90], 101), None, "before the agent ran");
        assert_eq!(
            programmed(&[90, 103], 104),
            Some(Duration::from_secs(1)),
            "of two slices, the one that changed"
        );
        assert_eq!(programmed(&[90, 103], 109), None, "once");
        assert_eq!(programmed(&[110], 109), Some(Duration::ZERO));
        assert_eq!(programmed(&[], 111), None);
    }

    #[test]
    fn the_buckets_are_upstreams() {
        let buckets: Vec<f64> = upstream_buckets().collect();
        assert_eq!(buckets.len(), 2 + 59 + 12 + 7);
        assert_eq!(buckets[..3], [0.25, 0.5, 1.0]);
        assert_eq!(buckets.last(), Some(&300.0));
    }
}
