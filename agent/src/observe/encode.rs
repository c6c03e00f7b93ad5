//! The data plane's metrics in the format of Prometheus, from plain values.

use std::collections::BTreeMap;
use std::fmt;

use agent_ebpf::abi::pods::PodTraffic;
use agent_ebpf::abi::{BackendStats, DropReason, ServiceStats};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::handshake::octaves;
use super::series::{BackendSeries, ServiceSeries};
use crate::cluster::ObjectKey;
use crate::dataplane::MapSummary;
use crate::pod::PodSummary;

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

pub(super) fn encode_backends(
    encoder: &mut DescriptorEncoder<'_>,
    series: &[BackendSeries],
) -> fmt::Result {
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

pub(super) fn encode_services(
    encoder: &mut DescriptorEncoder<'_>,
    series: &[ServiceSeries],
) -> fmt::Result {
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

pub(super) fn encode_refusals(
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

/// One metric of each map.
type OfMap = (&'static str, &'static str, fn(&MapSummary) -> u32);

pub(super) fn encode_fill(encoder: &mut DescriptorEncoder<'_>, maps: &[MapSummary]) -> fmt::Result {
    let metrics: [OfMap; 2] = [
        ("kernelet_map_entries", "Rows that a BPF map has", |map| {
            map.entries
        }),
        (
            "kernelet_map_max_entries",
            "Rows that a BPF map may have",
            |map| map.max_entries,
        ),
    ];
    for (name, help, value) in metrics {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for map in maps {
            metric
                .encode_family(&[("map", map.name)])?
                .encode_gauge(&value(map))?;
        }
    }
    Ok(())
}

/// Packets dropped, a series for each reason.
pub(super) fn encode_drops(
    encoder: &mut DescriptorEncoder<'_>,
    drops: &BTreeMap<DropReason, u64>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(
        "kernelet_packets_dropped",
        "Packets that a program dropped",
        None,
        MetricType::Counter,
    )?;
    for (reason, count) in drops {
        metric
            .encode_family(&[("reason", reason.name())])?
            .encode_counter::<NoLabelSet, u64, u64>(count, None)?;
    }
    Ok(())
}

/// One counter of a pod's link.
type OfLink = (&'static str, &'static str, fn(&PodTraffic) -> u64);

/// What passed the pods' links.
pub(super) fn encode_pods(
    encoder: &mut DescriptorEncoder<'_>,
    pods: &[(PodSummary, PodTraffic)],
) -> fmt::Result {
    let metrics: [OfLink; 4] = [
        (
            "kernelet_pod_sent_packets",
            "Packets that the pod sent",
            |it| it.sent.packets,
        ),
        (
            "kernelet_pod_sent_bytes",
            "Bytes of frames that the pod sent",
            |it| it.sent.bytes,
        ),
        (
            "kernelet_pod_received_packets",
            "Packets that went to the pod",
            |it| it.received.packets,
        ),
        (
            "kernelet_pod_received_bytes",
            "Bytes of frames that went to the pod",
            |it| it.received.bytes,
        ),
    ];
    for (name, help, value) in metrics {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (pod, traffic) in pods {
            let labels = [("namespace", &*pod.namespace), ("pod", &*pod.name)];
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&value(traffic), None)?;
        }
    }
    Ok(())
}

pub(super) fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Counter)?
        .encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

pub(super) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}
