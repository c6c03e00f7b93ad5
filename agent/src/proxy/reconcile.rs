//! The effect side of the proxy: one task that turns pending changes into map writes.
//!
//! An error never travels back to where the change came from. It becomes the service's problem, shown by
//! [`ProxyHandle`], and the service is tried again with back-off.

mod rounds;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

#[cfg(test)]
pub(super) use self::rounds::EACH as COLLECT_AFTER;
use self::rounds::Rounds;
use super::feedback::Look;
use super::handle::{Inner, ProxyHandle, ServiceProblem};
use super::metrics::{Measured, Metrics};
use super::policy::{desired, has_pod};
use super::reports::Reports;
use super::state::Flip;
use crate::chain::chain;
use crate::cluster::{Change, Cluster, Leftovers, Locality, Name, Node, ObjectKey, Pending, Why};
use crate::dataplane::{MapOp, ServiceMaps};
use crate::events::Events;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Services between two chances for other tasks to run.
const SERVICES_AT_ONCE: usize = 64;

/// What the proxy is told about its node.
pub struct Settings {
    pub node: Name,
    /// Where connections go first where a service does not say.
    pub locality: Locality,
    /// Where to tell what is wrong with services, beside the log.
    pub events: Option<Events>,
}

/// Keeps the maps as the cluster wants them, and as `look` says of the backends, until the process ends. It is their only
/// writer.
pub async fn run(
    cluster: Cluster,
    settings: Settings,
    proxy: ProxyHandle,
    metrics: Metrics,
    maps: impl ServiceMaps,
    look: impl Look + Send,
) {
    let mut changes = cluster.subscribe();
    let mut worker = Worker::new(cluster, settings, proxy, metrics, maps, look);
    loop {
        let deadline = worker.deadline();
        tokio::select! {
            // Cancel-safe: what is not returned stays pending.
            pending = changes.next() => worker.changed(pending).await,
            () = tokio::time::sleep_until(deadline) => worker.timer().await,
        }
    }
}

/// A service whose map writes failed.
struct Retry {
    at: Instant,
    /// When the change that is not in the maps yet was seen.
    seen: std::time::Instant,
}

pub(super) struct Worker<M, L> {
    cluster: Cluster,
    node: Name,
    zone: Option<Name>,
    locality: Locality,
    reports: Reports,
    proxy: ProxyHandle,
    metrics: Metrics,
    measured: Measured,
    pub(super) maps: M,
    look: L,
    /// What the feedback counts its time from, and when it looks next.
    started: Instant,
    look_at: Instant,
    retries: BTreeMap<ObjectKey, Retry>,
    rounds: Rounds,
    /// Removals that failed, to be repeated while the state says so.
    undone: Vec<MapOp>,
}

impl<M: ServiceMaps, L: Look> Worker<M, L> {
    pub(super) fn new(
        cluster: Cluster,
        settings: Settings,
        proxy: ProxyHandle,
        metrics: Metrics,
        maps: M,
        look: L,
    ) -> Self {
        let (retries, undone) = (BTreeMap::new(), Vec::new());
        let now = Instant::now();
        Self {
            cluster,
            node: settings.node,
            zone: None,
            locality: settings.locality,
            reports: Reports::new(settings.events),
            proxy,
            metrics,
            measured: Measured::since(Timestamp::now()),
            maps,
            look,
            started: now,
            look_at: now,
            retries,
            rounds: Rounds::default(),
            undone,
        }
    }

    fn deadline(&self) -> Instant {
        let retries = self.retries.values().map(|retry| retry.at);
        let all = retries.chain(self.rounds.next());
        all.fold(self.look_at, Instant::min)
    }

    pub(super) async fn changed(&mut self, pending: Pending) {
        let now = std::time::Instant::now();
        let newest = pending.values().max().copied().unwrap_or(now);
        let mut dirty: BTreeMap<ObjectKey, std::time::Instant> = BTreeMap::new();
        let mut everything = false;
        let mut nodes = Vec::new();
        for (change, seen) in pending {
            match change {
                Change::Service(key) => {
                    dirty.insert(key, seen);
                }
                Change::Node(name) => {
                    if name == self.node {
                        let view = self.cluster.view();
                        let zone = view.nodes.get(&name).and_then(|node| node.zone.clone());
                        everything |= zone != self.zone;
                        self.zone = zone;
                    }
                    nodes.push(name);
                }
                Change::Synced => {
                    self.proxy.write().state.set_synced();
                    everything = true;
                }
                Change::HostPortsKnown => {
                    self.proxy.write().state.set_host_ports_known();
                    everything = true;
                }
            }
        }
        if !dirty.is_empty() {
            let inner = self.proxy.read();
            for key in &inner.state.kept_off {
                dirty.entry(key.clone()).or_insert(now);
            }
        }
        if everything {
            let view = self.cluster.view();
            for key in view.services.keys().chain(view.host_ports.keys()) {
                dirty.entry(key.clone()).or_insert(now);
            }
        }
        if !everything && !nodes.is_empty() {
            for key in self.concerned(&nodes) {
                dirty.entry(key).or_insert(now);
            }
        }
        // What concerns nothing here asks for no pass, and none would answer it.
        if everything || !dirty.is_empty() {
            self.queued(newest);
        }
        self.sync_all(dirty, BTreeSet::new()).await;
        if everything && self.cluster.view().synced {
            let health = self.proxy.health();
            info!(addresses = health.addresses, backends = health.backends, took = ?now.elapsed(), "services are in the maps");
        }
    }

    /// The services whose addresses may be these nodes' or their pods', or were before.
    fn concerned(&self, nodes: &[Name]) -> BTreeSet<ObjectKey> {
        let view = self.cluster.view();
        let there = nodes.iter().filter_map(|name| view.nodes.get(name));
        let there: Vec<&Node> = there.map(|node| &**node).collect();
        let is_foreign = |ip| {
            there
                .iter()
                .any(|it| has_pod(it, ip) || it.internal_ips.contains(&ip))
        };
        let now = view.services.iter().filter(|(_, service)| {
            let exposed = service.exposed.iter();
            let outside =
                exposed.flat_map(|it| it.external_ips.iter().chain(&it.load_balancer_ips));
            let mut ips = service.cluster_ips.iter().chain(outside);
            ips.any(|ip| is_foreign(*ip))
        });
        let mut all: BTreeSet<ObjectKey> = now.map(|(key, _)| key.clone()).collect();
        all.extend(self.proxy.read().state.kept_off_by_nodes().cloned());
        all
    }

    async fn timer(&mut self) {
        let now = Instant::now();
        if self.rounds.begin(now) {
            self.collect();
        }
        let mut moved = BTreeSet::new();
        if self.look_at <= now {
            moved = self.look_around(now);
        }
        if !moved.is_empty() {
            self.queued(std::time::Instant::now());
        }
        let due = self
            .retries
            .iter()
            .filter(|(_, retry)| retry.at <= now)
            .map(|(key, retry)| (key.clone(), retry.seen))
            .collect();
        self.sync_all(due, moved).await;
    }

    /// A pass was asked for then.
    fn queued(&self, at: std::time::Instant) {
        let at = Timestamp::now().as_duration().as_secs_f64() - at.elapsed().as_secs_f64();
        self.metrics.queued_at.set(at);
    }

    /// One pass: over services that changed, with the time at which that was seen, and those whose feedback `moved`.
    async fn sync_all(
        &mut self,
        dirty: BTreeMap<ObjectKey, std::time::Instant>,
        moved: BTreeSet<ObjectKey>,
    ) {
        let begun = std::time::Instant::now();
        let moved = moved.into_iter().filter(|key| !dirty.contains_key(key));
        let moved: Vec<_> = moved.map(|key| (key, None)).collect();
        let dirty = dirty.into_iter().map(|(key, seen)| (key, Some(seen)));
        let mut done = 0;
        for (key, seen) in dirty.chain(moved) {
            let wrote = self.sync(&key, seen.unwrap_or(begun));
            if let Some(seen) = seen.filter(|_| wrote) {
                self.metrics
                    .programming
                    .observe(seen.elapsed().as_secs_f64());
            }
            done += 1;
            if done % SERVICES_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        done += self.drop_orphans();
        // A look that found nothing to do is no pass to others.
        if done > 0 {
            self.metrics.sync.observe(begun.elapsed().as_secs_f64());
            self.metrics.synced_at.set(seconds(Timestamp::now()));
        }
        self.proxy.write().passed = std::time::Instant::now();
        self.proxy.tell_complete();
        self.collect_soon();
    }

    /// Looks at the backends that have traffic. Gives the services that are to be written anew.
    fn look_around(&mut self, now: Instant) -> BTreeSet<ObjectKey> {
        let mut inner = self.proxy.write();
        let Inner { state, watch, .. } = &mut *inner;
        let moved = watch.tick(state, &mut self.look, now - self.started);
        self.look_at = now + watch.pause();
        moved
    }

    /// Brings one service up to date with a change that was seen then. Returns whether anything was written.
    fn sync(&mut self, key: &ObjectKey, seen: std::time::Instant) -> bool {
        let (mut frontends, ignored, uid, is_whole) = {
            let view = self.cluster.view();
            let (frontends, ignored) = desired(&view, &self.node, self.locality, key);
            let uid = view.services.get(key).and_then(|service| service.uid);
            let pod = view.host_ports.get(key);
            let uid = uid.or_else(|| pod.and_then(|pod| pod.uid.parse().ok()));
            (frontends, ignored, uid, view.synced)
        };
        let mut inner = self.proxy.write();
        for frontend in &mut frontends {
            inner.watch.apply(key, frontend);
        }
        let (mut wrote, mut failed) = (false, None);
        for frontend in inner.state.assign(key, frontends, ignored) {
            // One at a time: the next plan builds on what this one really wrote.
            if let Some(flip) = inner.state.plan(key, &frontend) {
                match perform(&mut inner, &mut self.maps, flip) {
                    Ok(()) => wrote = true,
                    Err(error) => failed = Some(error),
                }
            }
        }
        // Before that, one that is only not there yet may look wrong.
        if is_whole {
            let mut wrong = Leftovers::default();
            let ignored = inner.state.ignored_of(key).iter().cloned();
            ignored.for_each(|ignored| wrong.join(ignored));
            for (taken, holder) in inner.state.conflicts_of(key) {
                let port = u16::from_be_bytes(taken.port);
                let holder = holder.map(ToString::to_string).unwrap_or_default();
                wrong.add(
                    Why::AddressTaken,
                    format_args!("{} port {port} by {holder}", taken.address),
                );
            }
            self.reports.tell(key, uid, wrong.into_vec());
        }
        match failed {
            None => {
                inner.problems.remove(key);
                self.retries.remove(key);
                drop(inner);
                self.measure(key);
            }
            Some(error) => {
                self.metrics.map_errors.inc();
                let problem = inner.problems.entry(key.clone()).or_insert(ServiceProblem {
                    error: String::new(),
                    attempts: 0,
                });
                if problem.error != error {
                    warn!(service = %key, error, "the service's map writes failed; trying again");
                }
                *problem = ServiceProblem {
                    error,
                    attempts: problem.attempts.saturating_add(1),
                };
                let wait = RETRY_FIRST
                    .saturating_mul(1 << (problem.attempts - 1).min(16))
                    .min(RETRY_MOST);
                let seen = self.retries.get(key).map_or(seen, |retry| retry.seen);
                let at = Instant::now() + wait;
                self.retries.insert(key.clone(), Retry { at, seen });
            }
        }
        wrote
    }

    /// A service is in the maps as the cluster wants it.
    fn measure(&mut self, key: &ObjectKey) {
        let view = self.cluster.view();
        let changed = view.slices_for(key).filter_map(|slice| slice.changed);
        let now = Timestamp::now();
        if let Some(took) = self.measured.programmed(key, changed, now) {
            let network_programming = &self.metrics.network_programming;
            network_programming.observe(took.as_secs_f64());
        }
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

fn perform(inner: &mut Inner, maps: &mut impl ServiceMaps, flip: Flip) -> Result<(), String> {
    let outcome = maps.apply_all(&flip.ops).map_err(|error| chain(&error));
    inner.state.settle(flip, outcome.is_ok());
    outcome
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
