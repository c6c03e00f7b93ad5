//! The counters of the data plane for Prometheus, read from the maps when somebody asks. `docs/metrics.md` says what each
//! means; a test compares the two.
//!
//! Only services and backends that something happened to have series.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_ebpf::abi::pods::PodTraffic;
use agent_ebpf::abi::{Address, BackendId, BackendStats, DropReason, ServiceStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tracing::warn;

use super::encode::{
    counter, encode_backends, encode_drops, encode_fill, encode_pods, encode_refusals,
    encode_services, gauge,
};
use super::flows::Flows;
use super::ledger::Ledger;
use super::names::Names;
use super::process::Process;
use super::reader::MapReader;
use super::series::{BackendSeries, ServiceSeries, backends, services, users};
use crate::chain::chain;
use crate::cluster::{Cluster, Name, ObjectKey};
use crate::dataplane::{MapError, MapSummary, Retired};
use crate::pod::{PodSummary, PodTable};
use crate::proxy::ProxyHandle;

/// How old the maps' fill may be. Counting reads every row.
const FILL_AGE: Duration = Duration::from_secs(10);

/// What the metrics are made from.
pub struct Sources {
    pub node: Name,
    pub cluster: Cluster,
    pub proxy: ProxyHandle,
    pub maps: Arc<dyn MapReader>,
    pub retired: Retired,
    pub flows: Flows,
    pub pods: PodTable,
}

/// Has `registry` show what the maps count.
pub fn register(registry: &mut Registry, sources: Sources) {
    registry.register_collector(Box::new(DataplaneCollector {
        sources,
        state: Mutex::default(),
    }));
}

struct DataplaneCollector {
    sources: Sources,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    backends: Ledger<BackendId, BackendStats>,
    refusals: Ledger<u32, ServiceStats>,
    fill: Option<(Instant, Vec<MapSummary>)>,
}

/// Everything that one scrape shows, in plain values.
#[derive(Default)]
struct Scrape {
    backends: Vec<BackendSeries>,
    services: Vec<ServiceSeries>,
    refusals: Vec<(ObjectKey, ServiceStats)>,
    fill: Vec<MapSummary>,
    drops: BTreeMap<DropReason, u64>,
    pods: Vec<(PodSummary, PodTraffic)>,
}

impl DataplaneCollector {
    fn scrape(&self) -> Result<Scrape, MapError> {
        let Sources {
            node,
            cluster,
            proxy,
            maps,
            retired,
            pods,
            ..
        } = &self.sources;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the rows: what is removed in between is in one of the two at least.
        let gone = retired.take();
        let totals = maps.totals()?;
        let fill = match &state.fill {
            Some((at, fill)) if at.elapsed() < FILL_AGE => fill.clone(),
            _ => {
                let fill = maps.summaries()?;
                state.fill = Some((Instant::now(), fill.clone()));
                fill
            }
        };

        let view = cluster.view();
        let inner = proxy.read();
        let names = Names {
            view: &view,
            state: &inner.state,
        };
        let exists = |service: &ObjectKey| {
            view.services.contains_key(service)
                || inner.state.frontends_of(service).next().is_some()
        };
        let users = users(&inner.state);
        let pairs = || users.iter().map(|(id, service)| (*id, *service));
        state
            .backends
            .read(&totals.backends, &gone, pairs(), exists);
        let owners = inner
            .state
            .frontends()
            .filter_map(|(_, live)| Some((live.entry.service_id, live.owner.as_ref()?)));
        let none = Default::default();
        state.refusals.read(&totals.services, &none, owners, exists);
        let backends = backends(&totals.backends, &users, names, node);
        drop(inner);
        drop(view);
        Ok(Scrape {
            services: services(state.backends.totals(), &backends),
            refusals: state
                .refusals
                .totals()
                .map(|(service, stats)| (service.clone(), stats))
                .collect(),
            fill,
            drops: maps.drops()?,
            pods: traffic(pods, &maps.traffic()?),
            backends,
        })
    }
}

/// The pods that have links of their own; of two with one name, an old one that is going and a new one, the first.
fn traffic(
    pods: &PodTable,
    by_address: &BTreeMap<Address, PodTraffic>,
) -> Vec<(PodSummary, PodTraffic)> {
    let with_links = pods.list().into_iter().filter_map(|pod| {
        let traffic = pod.at(by_address)?;
        Some((pod, traffic))
    });
    let mut shown: Vec<(PodSummary, PodTraffic)> = with_links.collect();
    shown.dedup_by(|(next, _), (pod, _)| {
        (&next.namespace, &next.name) == (&pod.namespace, &pod.name)
    });
    shown
}

impl Collector for DataplaneCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let scrape = self.scrape().unwrap_or_else(|error| {
            warn!(
                error = chain(&error),
                "the maps could not be read for the metrics"
            );
            Scrape::default()
        });
        let flows = &self.sources.flows;
        encode_backends(&mut encoder, &scrape.backends)?;
        encode_services(&mut encoder, &scrape.services)?;
        encode_refusals(&mut encoder, &scrape.refusals)?;
        encode_fill(&mut encoder, &scrape.fill)?;
        encode_drops(&mut encoder, &scrape.drops)?;
        encode_pods(&mut encoder, &scrape.pods)?;
        counter(
            &mut encoder,
            "kernelet_flow_events_lost",
            "Flow events that found the ring buffer full",
            flows.lost_in_ring().unwrap_or(0),
        )?;
        counter(
            &mut encoder,
            "kernelet_flow_watcher_events_lost",
            "Flows that a watcher was too slow for",
            flows.lost_by_watchers(),
        )?;
        gauge(
            &mut encoder,
            "kernelet_flow_watchers",
            "Watchers of flows now",
            flows.watchers_now() as u64,
        )?;
        let process = Process::read().unwrap_or_default();
        gauge(
            &mut encoder,
            "process_resident_memory_bytes",
            "Resident memory of the agent",
            process.resident_bytes,
        )?;
        gauge(
            &mut encoder,
            "process_open_fds",
            "Open file descriptors of the agent",
            process.open_files,
        )?;
        encoder
            .encode_descriptor(
                "process_cpu_seconds",
                "User and system time of the agent",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, f64, u64>(&process.cpu_seconds, None)
    }
}

impl fmt::Debug for DataplaneCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataplaneCollector").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
