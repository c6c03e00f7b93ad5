use std::collections::BTreeSet;
use std::path::Path;

use super::super::testing::{FakeReader, FakeRecorder, NODE, World, dialled};
use super::*;

fn registry(world: World, reader: Arc<FakeReader>, retired: Retired) -> Registry {
    let mut registry = Registry::default();
    let _ = crate::proxy::Metrics::new(&mut registry);
    let pods = PodTable::default();
    pods.put(PodSummary {
        uid: "u".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        addresses: vec![[10, 244, 0, 1].into()],
        ..PodSummary::default()
    });
    // One of the node's own network.
    pods.put(PodSummary {
        uid: "v".into(),
        name: "agent".into(),
        addresses: vec![[192, 0, 2, 1].into()],
        ..PodSummary::default()
    });
    let sources = Sources {
        node: NODE.into(),
        cluster: world.cluster,
        proxy: ProxyHandle::new(world.state),
        maps: reader,
        retired,
        flows: Flows::new(Box::new(FakeRecorder::default())).unwrap(),
        pods,
    };
    register(&mut registry, sources);
    registry
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

/// The value of the series that begins so.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn stats(opens: u64, closes: u64) -> BackendStats {
    let mut stats = BackendStats {
        opens,
        closes,
        handshakes: opens,
        handshake_ns: opens * 50_000,
        ..BackendStats::default()
    };
    stats.handshake_buckets[agent_ebpf::histogram::bucket(50_000)] = opens as u32;
    stats
}

#[test]
fn only_what_something_happened_to_has_series() {
    let world = World::new();
    let reader = Arc::new(world.reader());
    let idle = world.maps.state.services[&dialled(2, 80)].service_id;
    let (near, far) = (world.backend(1), world.backend(2));
    let registry = registry(world, reader.clone(), Retired::default());
    let before = text(&registry);
    assert!(!before.contains("service=\"web\""), "{before}");

    reader.count(near, stats(7, 5));
    let refused = ServiceStats {
        no_backend: 3,
        hole: 0,
    };
    reader.refuse(idle, refused);
    let text = text(&registry);
    let labels = "{namespace=\"shop\",service=\"web\",backend=\"10.244.0.1:8080\",protocol=\"TCP\",local=\"true\",\
                  node=\"a\",pod=\"web-1\"}";
    let of = |name: &str| value(&text, &format!("{name}{labels}"));
    assert_eq!(of("kernelet_backend_opens_total"), Some(7.0), "{text}");
    assert_eq!(of("kernelet_backend_active"), Some(2.0));
    assert_eq!(
        of("kernelet_backend_handshake_seconds_total"),
        Some(0.000_35)
    );
    assert!(!text.contains("web-2"), "nothing happened to {far:?}");
    let web = "{namespace=\"shop\",service=\"web\"}";
    assert_eq!(
        value(&text, &format!("kernelet_service_active{web}")),
        Some(2.0)
    );
    let count = format!("kernelet_service_handshake_seconds_count{web}");
    assert_eq!(value(&text, &count), Some(7.0));
    let refused =
        "kernelet_service_refused_total{namespace=\"shop\",service=\"idle\",reason=\"no-backend\"}";
    assert_eq!(value(&text, refused), Some(3.0));
    let spoofed = "kernelet_packets_dropped_total{reason=\"spoofed\"}";
    assert_eq!(value(&text, spoofed), Some(3.0));
    assert_eq!(
        value(&text, "kernelet_map_entries{map=\"SERVICES\"}"),
        Some(1.0)
    );
}

#[test]
fn a_services_sum_outlives_its_backends() {
    let world = World::new();
    let reader = Arc::new(world.reader());
    let near = world.backend(1);
    let retired = Retired::default();
    let registry = registry(world, reader.clone(), retired.clone());
    let opens = || value(&text(&registry), "kernelet_service_opens_total");
    reader.count(near, stats(7, 7));
    assert_eq!(opens(), Some(7.0));
    // It goes between two scrapes, and two more came meanwhile.
    reader.totals.lock().unwrap().backends.clear();
    retired.add(near, stats(9, 9));
    assert_eq!(opens(), Some(9.0));
    assert_eq!(opens(), Some(9.0));
}

#[test]
fn a_pod_with_a_link_of_its_own_has_what_passed_it() {
    let world = World::new();
    let reader = Arc::new(world.reader());
    let text = text(&registry(world, reader, Retired::default()));
    let of = |name: &str| {
        let labels = "{namespace=\"shop\",pod=\"web-1\"}";
        value(&text, &format!("kernelet_pod_{name}_total{labels}"))
    };
    let found = [
        "sent_packets",
        "sent_bytes",
        "received_packets",
        "received_bytes",
    ]
    .map(of);
    assert_eq!(found, [Some(3.0), Some(300.0), Some(2.0), Some(2000.0)]);
    assert!(!text.contains("pod=\"agent\""), "{text}");
}

/// A metric as people have to know it.
type Described = BTreeSet<(String, String)>;

/// Name and type of what is printed, under the name by which Prometheus stores it.
fn printed() -> Described {
    let world = World::new();
    let reader = Arc::new(world.reader());
    let text = text(&registry(world, reader, Retired::default()));
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{suffix}"), kind.to_owned())
        })
        .collect()
}

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name and type of what `docs/metrics.md` describes: the first two cells of its tables' rows.
fn documented() -> Described {
    let text = repository("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let mut cells = line
            .split('|')
            .skip(1)
            .map(|cell| cell.trim().trim_matches('`'));
        let mut cell = || cells.next().unwrap_or_default().to_owned();
        (cell(), cell())
    })
    .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    assert_eq!(documented(), printed());
}

#[test]
fn the_dashboard_asks_for_metrics_that_are_there() {
    let dashboard = repository("deploy/grafana/kernelet.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let documented: BTreeSet<String> = documented().into_iter().map(|(name, _)| name).collect();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let metrics = words.filter(|word| {
                ["kernelet_", "kubeproxy_", "process_"]
                    .iter()
                    .any(|it| word.starts_with(it))
            });
            asked.extend(metrics.map(str::to_owned));
        }
    }
    for name in &asked {
        let stem = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(
            documented.contains(name) || documented.contains(stem),
            "{name}"
        );
    }
    assert!(asked.len() > 10, "{asked:?}");
}
