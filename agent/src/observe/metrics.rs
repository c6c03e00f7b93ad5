//! The counters of the data plane for Prometheus, read from the maps when somebody asks. `docs/metrics.md` says what each
//! means; a test compares the two.
//!
//! Only services and backends that something happened to have series.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_ebpf::abi::{BackendId, BackendStats, ServiceStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tracing::warn;

use super::flows::Flows;
use super::handshake::octaves;
use super::ledger::Ledger;
use super::names::Names;
use super::process::Process;
use super::reader::MapReader;
use super::series::{BackendSeries, ServiceSeries, backends, services, users};
use crate::chain::chain;
use crate::cluster::{Cluster, Name, ObjectKey};
use crate::dataplane::{MapError, MapSummary, Retired};
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
    fill: Vec<(&'static str, u32, u32)>,
}

impl DataplaneCollector {
    fn scrape(&self) -> Result<Scrape, MapError> {
        let Sources {
            node,
            cluster,
            proxy,
            maps,
            retired,
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
            fill: fill
                .iter()
                .map(|map| (map.name, map.entries, map.max_entries))
                .collect(),
            backends,
        })
    }
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

/// One metric of each backend: its name, help, and value.
type OfBackend = (&'static str, &'static str, fn(&BackendStats) -> f64);

const BACKEND_COUNTERS: [OfBackend; 6] = [
    (
        "kernelet_backend_opens",
        "Sockets sent to the backend",
        |it| it.opens as f64,
    ),
    (
        "kernelet_backend_failures",
        "TCP connections to the backend that ended before they were established",
        |it| it.failures as f64,
    ),
    (
        "kernelet_backend_sent_bytes",
        "Bytes that the backend acknowledged on TCP connections that are over",
        |it| it.bytes_sent as f64,
    ),
    (
        "kernelet_backend_received_bytes",
        "Bytes received from the backend on TCP connections that are over",
        |it| it.bytes_received as f64,
    ),
    (
        "kernelet_backend_handshakes",
        "TCP connections to the backend that were established",
        |it| it.handshakes as f64,
    ),
    (
        "kernelet_backend_handshake_seconds",
        "Time from connect to established, summed over the backend's connections",
        |it| it.handshake_ns as f64 / 1e9,
    ),
];

fn encode_backends(encoder: &mut DescriptorEncoder<'_>, series: &[BackendSeries]) -> fmt::Result {
    for (name, help, value) in BACKEND_COUNTERS {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for one in series {
            metric
                .encode_family(&one.labels)?
                .encode_counter::<NoLabelSet, f64, u64>(&value(&one.stats), None)?;
        }
    }
    let mut active = encoder.encode_descriptor(
        "kernelet_backend_active",
        "Sockets at the backend now",
        None,
        MetricType::Gauge,
    )?;
    for one in series {
        active
            .encode_family(&one.labels)?
            .encode_gauge(&one.active())?;
    }
    Ok(())
}

fn encode_services(encoder: &mut DescriptorEncoder<'_>, series: &[ServiceSeries]) -> fmt::Result {
    let counters: [OfBackend; 4] = [
        (
            "kernelet_service_opens",
            "Sockets sent to any backend of the service",
            |it| it.opens as f64,
        ),
        (
            "kernelet_service_failures",
            "TCP connections to the service's backends that ended before they were established",
            |it| it.failures as f64,
        ),
        (
            "kernelet_service_sent_bytes",
            "Bytes that the service's backends acknowledged on TCP connections that are over",
            |it| it.bytes_sent as f64,
        ),
        (
            "kernelet_service_received_bytes",
            "Bytes received from the service's backends on TCP connections that are over",
            |it| it.bytes_received as f64,
        ),
    ];
    for (name, help, value) in counters {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for one in series {
            metric
                .encode_family(&one.labels)?
                .encode_counter::<NoLabelSet, f64, u64>(&value(&one.stats), None)?;
        }
    }
    let mut active = encoder.encode_descriptor(
        "kernelet_service_active",
        "Sockets at the service's backends now",
        None,
        MetricType::Gauge,
    )?;
    for one in series {
        active
            .encode_family(&one.labels)?
            .encode_gauge(&one.active)?;
    }
    let mut handshakes = encoder.encode_descriptor(
        "kernelet_service_handshake_seconds",
        "Time from connect to established, of TCP connections to the service's backends",
        None,
        MetricType::Histogram,
    )?;
    for one in series {
        let buckets = octaves(&one.stats);
        handshakes
            .encode_family(&one.labels)?
            .encode_histogram::<NoLabelSet>(
                one.stats.handshake_ns as f64 / 1e9,
                buckets.iter().map(|(_, count)| count).sum(),
                &buckets,
                None,
            )?;
    }
    Ok(())
}

fn encode_refusals(
    encoder: &mut DescriptorEncoder<'_>,
    refusals: &[(ObjectKey, ServiceStats)],
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(
        "kernelet_service_refused",
        "Connections and datagrams to the service that were refused",
        None,
        MetricType::Counter,
    )?;
    for (service, stats) in refusals {
        for (reason, count) in [("no-backend", stats.no_backend), ("hole", stats.hole)] {
            let labels = [
                ("namespace", &*service.namespace),
                ("service", &*service.name),
                ("reason", reason),
            ];
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
        }
    }
    Ok(())
}

fn encode_fill(
    encoder: &mut DescriptorEncoder<'_>,
    fill: &[(&'static str, u32, u32)],
) -> fmt::Result {
    let metrics: [(_, _, fn(&(&'static str, u32, u32)) -> u32); 2] = [
        ("kernelet_map_entries", "Rows that a BPF map has", |it| it.1),
        (
            "kernelet_map_max_entries",
            "Rows that a BPF map may have",
            |it| it.2,
        ),
    ];
    for (name, help, value) in metrics {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for map in fill {
            metric
                .encode_family(&[("map", map.0)])?
                .encode_gauge(&value(map))?;
        }
    }
    Ok(())
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Counter)?
        .encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
