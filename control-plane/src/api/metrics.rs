//! The server's own metrics, in Prometheus' text format and under upstream's names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::request::ResourceRequest;
use super::reviews::Review;
use crate::resources::Kind;

/// What metrics call a request. All empty but the verb for a path that is no object's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

/// Labels name only what there is: nobody makes more of them by asking for what there is not.
const SUBRESOURCES: [&str; 14] = [
    "status",
    "scale",
    "binding",
    "log",
    "approval",
    "finalize",
    "eviction",
    "exec",
    "attach",
    "portforward",
    "ephemeralcontainers",
    "resize",
    "token",
    "proxy",
];

impl Labels {
    /// A request for something else than objects.
    pub fn of_path() -> Self {
        Labels {
            verb: "GET",
            ..Labels::default()
        }
    }

    pub fn of(kind: Option<&Kind>, review: Option<&Review>, target: &ResourceRequest) -> Self {
        let (group, version, resource) = match (kind, review) {
            (Some(kind), _) => (kind.group, kind.version, kind.plural),
            (None, Some(review)) => (review.form.group, review.form.version, review.plural),
            (None, None) => ("", "", ""),
        };
        let subresource = SUBRESOURCES
            .into_iter()
            .find(|known| *known == target.subresource);
        Labels {
            verb: verb(target),
            group,
            version,
            resource,
            subresource: subresource.unwrap_or_default(),
            scope: match (target.name.is_empty(), target.namespace.is_empty()) {
                (false, _) => "resource",
                _ if target.verb == "create" => "resource",
                (true, false) => "namespace",
                (true, true) => "cluster",
            },
        }
    }
}

fn verb(target: &ResourceRequest) -> &'static str {
    match (target.verb, &*target.subresource) {
        (_, "exec" | "attach" | "portforward" | "proxy") => "CONNECT",
        ("get", _) => "GET",
        ("list", _) => "LIST",
        ("watch", _) => "WATCH",
        ("create", _) => "POST",
        ("update", _) => "PUT",
        ("patch", _) => "PATCH",
        ("delete", _) => "DELETE",
        ("deletecollection", _) => "DELETECOLLECTION",
        _ => "other",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    #[prometheus(flatten)]
    request: Labels,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Objects {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Running {
    request_kind: &'static str,
}

/// What is counted, and what is looked at when somebody asks.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Labels, Histogram>,
    objects: Family<Objects, Gauge>,
    running: Family<Running, Gauge>,
    memory: Gauge,
}

/// How things are at a moment.
pub struct Present {
    /// How many objects there are of each resource.
    pub objects: Vec<(String, usize)>,
    /// Requests that are worked on: those that only read, and those that change something.
    pub reading: usize,
    pub writing: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register(
            "apiserver_request",
            "Requests by what they asked for and status code",
            requests.clone(),
        );
        let durations = Family::<Labels, Histogram>::new_with_constructor(|| {
            Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0])
        });
        registry.register(
            "apiserver_request_duration_seconds",
            "Seconds until the answer's first byte; a watch's is not in it",
            durations.clone(),
        );
        let objects = Family::default();
        registry.register(
            "apiserver_storage_objects",
            "Objects that are stored, by resource",
            objects.clone(),
        );
        let running = Family::default();
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests that are worked on; of watches only the beginning",
            running.clone(),
        );
        let memory = Gauge::default();
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory of this process",
            memory.clone(),
        );
        Metrics {
            registry,
            requests,
            durations,
            objects,
            running,
            memory,
        }
    }
}

impl Metrics {
    /// Takes note of an answered request.
    pub fn answered(&self, request: Labels, code: u16, took: Duration) {
        self.requests
            .get_or_create(&Answered { request, code })
            .inc();
        if request.verb != "WATCH" {
            self.durations
                .get_or_create(&request)
                .observe(took.as_secs_f64());
        }
    }

    pub fn text(&self, present: Present) -> String {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (resource, count) in present.objects {
            let gauge = self.objects.get_or_create_owned(&Objects { resource });
            gauge.set(number(count));
        }
        for (request_kind, count) in [("readOnly", present.reading), ("mutating", present.writing)]
        {
            let gauge = self.running.get_or_create_owned(&Running { request_kind });
            gauge.set(number(count));
        }
        self.memory.set(number(resident().unwrap_or_default()));
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// Bytes of memory that this process has.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}
