//! `/metrics/cadvisor`: what cgroups use, in the families and with the labels that dashboards know from upstream. Pure.
//!
//! There is a row for each container, for each pod (which has no container, image or name) and for the machine (`id="/"`).

use super::stats::Family;
use crate::pod::usage::{Direction, NodeUsage, Usage};

/// A cgroup, as the labels name it.
struct Row<'a> {
    /// `container`, `id`, `image`, `name`, `namespace`, `pod`.
    labels: Vec<(&'static str, &'a str)>,
    usage: &'a Usage,
}

/// The name, type and help of a family.
type Named = (&'static str, &'static str, &'static str);
/// What a row says in a family, if it says anything.
type Value = fn(&Usage) -> Option<f64>;

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

const FAMILIES: [(Named, Value); 12] = [
    (
        (
            "container_cpu_cfs_periods_total",
            COUNTER,
            "Number of elapsed enforcement period intervals.",
        ),
        |usage| Some(usage.quota.filter(|it| it.limit.is_some())?.periods as f64),
    ),
    (
        (
            "container_cpu_cfs_throttled_periods_total",
            COUNTER,
            "Number of throttled period intervals.",
        ),
        |usage| Some(usage.quota.filter(|it| it.limit.is_some())?.throttled as f64),
    ),
    (
        (
            "container_cpu_cfs_throttled_seconds_total",
            COUNTER,
            "Total time duration the container has been throttled.",
        ),
        |usage| {
            let quota = usage.quota.filter(|it| it.limit.is_some())?;
            Some(quota.throttled_time.as_secs_f64())
        },
    ),
    (
        (
            "container_memory_cache",
            GAUGE,
            "Number of bytes of page cache memory.",
        ),
        |usage| Some(usage.memory.files as f64),
    ),
    (
        ("container_memory_rss", GAUGE, "Size of RSS in bytes."),
        |usage| Some(usage.memory.anonymous as f64),
    ),
    (
        (
            "container_memory_usage_bytes",
            GAUGE,
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
        ),
        |usage| Some(usage.memory.usage as f64),
    ),
    (
        (
            "container_memory_working_set_bytes",
            GAUGE,
            "Current working set in bytes.",
        ),
        |usage| Some(usage.memory.working_set as f64),
    ),
    (
        (
            "container_spec_cpu_period",
            GAUGE,
            "CPU period of the container.",
        ),
        |usage| Some(usage.quota?.period.as_micros() as f64),
    ),
    (
        (
            "container_spec_cpu_quota",
            GAUGE,
            "CPU quota of the container.",
        ),
        |usage| {
            let quota = usage.quota?;
            Some((quota.limit? * quota.period.as_micros() as f64).round())
        },
    ),
    (
        (
            "container_spec_memory_limit_bytes",
            GAUGE,
            "Memory limit for the container.",
        ),
        // 0 is none.
        |usage| usage.quota.map(|_| usage.memory.limit.unwrap_or(0) as f64),
    ),
    (
        (
            "container_last_seen",
            GAUGE,
            "Last time a container was seen by the exporter",
        ),
        |usage| Some(usage.at.as_second() as f64),
    ),
    (
        (
            "container_scrape_error",
            GAUGE,
            "1 if there was an error while getting container metrics, 0 otherwise",
        ),
        // Of the machine alone.
        |usage| usage.quota.is_none().then_some(0.0),
    ),
];

/// What passed a pod's link.
type Passed = fn(&Direction) -> u64;

const PASSED: [(&str, Passed); 4] = [
    ("bytes", |it| it.bytes),
    ("packets", |it| it.packets),
    ("errors", |it| it.errors),
    ("packets_dropped", |it| it.dropped),
];

/// All families.
pub(super) fn text(all: &NodeUsage) -> String {
    let mut text = String::new();
    let groups: Vec<String> = all
        .pods
        .iter()
        .map(|pod| pod.cgroup.display().to_string())
        .collect();
    let pods = || all.pods.iter().zip(&groups);
    let ids: Vec<Vec<String>> = pods()
        .map(|(pod, group)| {
            let containers = pod.containers.iter();
            containers
                .map(|(it, _)| format!("{group}/{}", it.id))
                .collect()
        })
        .collect();
    let mut rows: Vec<Row<'_>> = Vec::new();
    if let Some(usage) = &all.node {
        rows.push(row(["", "/", "", "", "", ""], usage));
    }
    for ((pod, group), ids) in pods().zip(&ids) {
        let (namespace, name) = (&*pod.pod.namespace, &*pod.pod.name);
        rows.push(row(["", group, "", "", namespace, name], &pod.all));
        for ((it, usage), id) in pod.containers.iter().zip(ids) {
            rows.push(row(
                [&it.name, id, &it.image, &it.id, namespace, name],
                usage,
            ));
        }
    }

    let name = "container_cpu_usage_seconds_total";
    let help = "Cumulative cpu time consumed in seconds.";
    let mut family = Family::new(&mut text, name, COUNTER, help);
    for Row { labels, usage } in &rows {
        let mut labels = labels.clone();
        labels.insert(1, ("cpu", "total"));
        family.add(&labels, usage.cpu.as_secs_f64(), usage.at);
    }
    for ((name, kind, help), value) in FAMILIES {
        let mut family = Family::new(&mut text, name, kind, help);
        for Row { labels, usage } in &rows {
            if let Some(value) = value(usage) {
                family.add(labels, value, usage.at);
            }
        }
    }
    let name = "container_processes";
    let help = "Number of processes running inside the container.";
    let mut family = Family::new(&mut text, name, GAUGE, help);
    for (pod, group) in pods() {
        if let Some(count) = pod.processes {
            let labels = row(
                ["", group, "", "", &pod.pod.namespace, &pod.pod.name],
                &pod.all,
            )
            .labels;
            family.add(&labels, count as f64, pod.all.at);
        }
    }
    let name = "container_start_time_seconds";
    let help = "Start time of the container since unix epoch in seconds.";
    let mut family = Family::new(&mut text, name, GAUGE, help);
    for ((pod, _), ids) in pods().zip(&ids) {
        for ((it, usage), id) in pod.containers.iter().zip(ids) {
            if let Some(at) = it.started_at {
                let of = [
                    &*it.name,
                    id,
                    &it.image,
                    &it.id,
                    &pod.pod.namespace,
                    &pod.pod.name,
                ];
                family.add(&row(of, usage).labels, at.as_second() as f64, usage.at);
            }
        }
    }
    network(&mut text, all, &groups);
    let mut machine = |name, help, value: f64| {
        let mut family = Family::new(&mut text, name, GAUGE, help);
        if let Some(usage) = &all.node {
            family.add(&[], value, usage.at);
        }
    };
    machine(
        "machine_cpu_cores",
        "Number of logical CPU cores.",
        all.cpus as f64,
    );
    let help = "Amount of memory installed on the machine.";
    machine("machine_memory_bytes", help, all.memory as f64);
    text
}

fn row<'a>(
    [container, id, image, name, namespace, pod]: [&'a str; 6],
    usage: &'a Usage,
) -> Row<'a> {
    let labels = vec![
        ("container", container),
        ("id", id),
        ("image", image),
        ("name", name),
        ("namespace", namespace),
        ("pod", pod),
    ];
    Row { labels, usage }
}

fn network(text: &mut String, all: &NodeUsage, groups: &[String]) {
    for (way, words) in [("receive", "received"), ("transmit", "transmitted")] {
        for (what, passed) in PASSED {
            let name = format!("container_network_{way}_{what}_total");
            let help = format!("Cumulative count of {} {words}", what.replace('_', " "));
            let mut family = Family::new(text, &name, COUNTER, &help);
            for (pod, group) in all.pods.iter().zip(groups) {
                let Some(traffic) = &pod.traffic else {
                    continue;
                };
                let direction = match way {
                    "receive" => &traffic.received,
                    _ => &traffic.sent,
                };
                let labels = [
                    ("id", &**group),
                    ("image", ""),
                    ("interface", "eth0"),
                    ("name", ""),
                    ("namespace", &*pod.pod.namespace),
                    ("pod", &*pod.pod.name),
                ];
                family.add(&labels, passed(direction) as f64, pod.all.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::stats::tests::usage;

    #[test]
    fn dashboards_find_what_they_read() {
        let text = text(&usage());
        let pod = r#"namespace="d",pod="p"}"#;
        let main = format!(
            r#"{{container="main",id="/kubepods/burstable/podu/c1",image="web:1",name="c1",{pod}"#
        );
        let cpu = main.replace(r#"main","#, r#"main",cpu="total","#);
        let whole =
            format!(r#"{{container="",id="/kubepods/burstable/podu",image="",name="",{pod}"#);
        let link =
            format!(r#"{{id="/kubepods/burstable/podu",image="",interface="eth0",name="",{pod}"#);
        let root = r#"{container="",id="/",image="",name="",namespace="",pod=""}"#;
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter".to_owned(),
            format!("container_cpu_usage_seconds_total{cpu} 1 1000000"),
            format!("container_memory_rss{main} 100 1000000"),
            format!("container_memory_cache{main} 150 1000000"),
            format!("container_memory_working_set_bytes{whole} 200 1000000"),
            format!("container_memory_usage_bytes{root} 300 1000000"),
            format!("container_start_time_seconds{main} 500 1000000"),
            format!("container_processes{whole} 3 1000000"),
            "# TYPE container_network_receive_bytes_total counter".to_owned(),
            format!("container_network_receive_bytes_total{link} 70 1000000"),
            format!("container_network_transmit_packets_dropped_total{link} 0 1000000"),
            "machine_cpu_cores 2 1000000".to_owned(),
            "machine_memory_bytes 4096 1000000".to_owned(),
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn only_what_has_a_limit_is_throttled() {
        let mut all = usage();
        assert!(!text(&all).contains("throttled_seconds_total{"));
        let quota = crate::runtime::cpu::CpuCounters {
            limit: Some(0.5),
            periods: 40,
            throttled: 30,
            throttled_time: std::time::Duration::from_millis(1500),
            period: std::time::Duration::from_millis(100),
            ..Default::default()
        };
        all.pods[0].containers[0].1.quota = Some(quota);
        let text = text(&all);
        for (name, value) in [
            ("container_cpu_cfs_periods_total", "40"),
            ("container_cpu_cfs_throttled_periods_total", "30"),
            ("container_cpu_cfs_throttled_seconds_total", "1.5"),
            ("container_spec_cpu_period", "100000"),
            ("container_spec_cpu_quota", "50000"),
            ("container_spec_memory_limit_bytes", "1000"),
        ] {
            let mut lines = text
                .lines()
                .filter(|line| line.starts_with(&format!("{name}{{")));
            let line = lines.next().unwrap();
            assert!(line.ends_with(&format!("}} {value} 1000000")), "{line}");
        }
    }
}
