//! What is used, in the shapes in which metrics-server and Prometheus read it from a kubelet. Pure.

use std::collections::HashMap;
use std::fmt::Write;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::housekeeping::eviction::Observation;
use crate::housekeeping::room::Room;
use crate::pod::usage::{NodeUsage, Traffic, Usage};
use crate::pod::{ContainerSummary, PodSummary};

/// `/stats/summary`. The rates are by a container's id, a pod's uid, or nothing for the node.
pub(super) fn summary(
    all: &NodeUsage,
    room: &Room,
    rates: &HashMap<String, u64>,
    node: &str,
) -> Value {
    let cpu = |id: &str, usage: &Usage| {
        json!({
            "time": time(usage.at), "usageNanoCores": rates.get(id), "usageCoreNanoSeconds": nanos(usage),
        })
    };
    let memory = |usage: &Usage| {
        let limit = usage.memory.limit;
        let available = limit.map(|limit| limit.saturating_sub(usage.memory.working_set));
        json!({
            "time": time(usage.at), "usageBytes": usage.memory.usage, "availableBytes": available,
            "workingSetBytes": usage.memory.working_set, "rssBytes": usage.memory.anonymous,
        })
    };
    let pods: Vec<Value> = all
        .pods
        .iter()
        .map(|pod| {
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .map(|(container, usage)| {
                    json!({
                        "name": container.name, "startTime": container.started_at.map(time),
                        "cpu": cpu(&container.id, usage), "memory": memory(usage),
                    })
                })
                .collect();
            json!({
                "podRef": {"name": pod.pod.name, "namespace": pod.pod.namespace, "uid": pod.pod.uid},
                "startTime": pod.pod.started_at.map(time),
                "containers": containers, "cpu": cpu(&pod.pod.uid, &pod.all), "memory": memory(&pod.all),
                "network": pod.traffic.as_ref().map(|traffic| network(traffic, pod.all.at)),
                "process_stats": {"process_count": pod.processes},
            })
        })
        .collect();
    let mut of_node = json!({"nodeName": node, "startTime": time(all.booted_at)});
    if let Some(usage) = &all.node {
        of_node["cpu"] = cpu("", usage);
        let files = |found: Option<[Observation; 2]>| Some(file_system(&found?, usage.at));
        of_node["fs"] = files(room.node).into();
        of_node["runtime"] =
            json!({"imageFs": files(room.images), "containerFs": files(room.images)});
        of_node["rlimit"] = room.processes.map(|it| json!({
            "time": time(usage.at), "maxpid": it.capacity, "curproc": it.capacity - it.available,
        })).into();
        of_node["memory"] = memory(usage);
        let available = all.memory.saturating_sub(usage.memory.working_set);
        of_node["memory"]["availableBytes"] = available.into();
    }
    json!({"node": of_node, "pods": pods})
}

fn file_system([bytes, inodes]: &[Observation; 2], at: Timestamp) -> Value {
    let used = |of: &Observation| of.capacity.saturating_sub(of.available);
    // One without a limit on them has as many as can be.
    let inodes = Some(inodes).filter(|inodes| inodes.capacity < u64::MAX);
    json!({
        "time": time(at), "availableBytes": bytes.available, "capacityBytes": bytes.capacity,
        "usedBytes": used(bytes), "inodesFree": inodes.map(|it| it.available),
        "inodes": inodes.map(|it| it.capacity), "inodesUsed": inodes.map(used),
    })
}

fn network(traffic: &Traffic, at: Timestamp) -> Value {
    let (received, sent) = (traffic.received, traffic.sent);
    let link = json!({
        "name": "eth0", "rxBytes": received.bytes, "rxErrors": received.errors,
        "txBytes": sent.bytes, "txErrors": sent.errors,
    });
    let mut network = link.clone();
    network["time"] = time(at).into();
    network["interfaces"] = json!([link]);
    network
}

fn time(at: Timestamp) -> String {
    format!("{at:.0}")
}

fn nanos(usage: &Usage) -> u64 {
    u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX)
}

/// A family of series in Prometheus's text: name, type, help, and a line for each series with its labels and value.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl<'a> Family<'a> {
    pub(super) fn new(text: &'a mut String, name: &'a str, kind: &str, help: &str) -> Self {
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { text, name }
    }

    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64, at: Timestamp) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let name = self.name;
        let _ = writeln!(self.text, "{name}{labels} {value} {}", at.as_millisecond());
    }
}

/// `/metrics/resource`.
pub(super) fn resource_metrics(usage: &NodeUsage) -> String {
    let mut text = String::new();
    let seconds = |usage: &Usage| usage.cpu.as_secs_f64();
    let bytes = |usage: &Usage| usage.memory.working_set as f64;
    let (counter, gauge) = ("counter", "gauge");
    type Value<'a> = &'a dyn Fn(&Usage) -> f64;
    let columns: [(Value<'_>, &str, [&'static str; 3], [&str; 3]); 2] = [
        (
            &seconds,
            counter,
            [
                "container_cpu_usage_seconds_total",
                "pod_cpu_usage_seconds_total",
                "node_cpu_usage_seconds_total",
            ],
            [
                "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
                "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
                "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            ],
        ),
        (
            &bytes,
            gauge,
            [
                "container_memory_working_set_bytes",
                "pod_memory_working_set_bytes",
                "node_memory_working_set_bytes",
            ],
            [
                "[STABLE] Current working set of the container in bytes",
                "[STABLE] Current working set of the pod in bytes",
                "[STABLE] Current working set of the node in bytes",
            ],
        ),
    ];
    for (value, kind, [container, pod, node], [of_container, of_pod, of_node]) in columns {
        of_containers(&mut text, usage, (container, kind, of_container), value);
        let mut family = Family::new(&mut text, pod, kind, of_pod);
        for pod in &usage.pods {
            let labels = [
                ("namespace", pod.pod.namespace.as_str()),
                ("pod", &pod.pod.name),
            ];
            family.add(&labels, value(&pod.all), pod.all.at);
        }
        let mut family = Family::new(&mut text, node, kind, of_node);
        if let Some(usage) = &usage.node {
            family.add(&[], value(usage), usage.at);
        }
    }
    let started = "[STABLE] Start time of the container since unix epoch in seconds";
    let mut family = Family::new(&mut text, "container_start_time_seconds", gauge, started);
    for (pod, (container, usage)) in each(usage) {
        if let Some(at) = container.started_at {
            family.add(&labels(pod, container), at.as_second() as f64, usage.at);
        }
    }
    text.push_str(
        "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n\
         # TYPE resource_scrape_error gauge\nresource_scrape_error 0\n",
    );
    text
}

fn each(usage: &NodeUsage) -> impl Iterator<Item = (&PodSummary, &(ContainerSummary, Usage))> {
    let pods = usage.pods.iter();
    pods.flat_map(|pod| pod.containers.iter().map(move |of| (&pod.pod, of)))
}

fn labels<'a>(
    pod: &'a PodSummary,
    container: &'a ContainerSummary,
) -> [(&'static str, &'a str); 3] {
    [
        ("container", &container.name),
        ("namespace", &pod.namespace),
        ("pod", &pod.name),
    ]
}

fn of_containers(
    text: &mut String,
    usage: &NodeUsage,
    (name, kind, help): (&'static str, &str, &str),
    value: &dyn Fn(&Usage) -> f64,
) {
    let mut family = Family::new(text, name, kind, help);
    for (pod, (container, usage)) in each(usage) {
        family.add(&labels(pod, container), value(usage), usage.at);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pod::usage::{Direction, PodUsage};
    use crate::runtime::memory::MemoryCounters;

    pub(in crate::server) fn usage() -> NodeUsage {
        let at = Timestamp::from_second(1_000).unwrap();
        let one = |seconds| Usage {
            at,
            cpu: Duration::from_secs(seconds),
            quota: None,
            memory: MemoryCounters {
                usage: 300,
                working_set: 200,
                anonymous: 100,
                files: 150,
                limit: Some(1000),
            },
        };
        let container = ContainerSummary {
            name: "main".into(),
            id: "c1".into(),
            image: "web:1".into(),
            started_at: Timestamp::from_second(500).ok(),
            ..ContainerSummary::default()
        };
        NodeUsage {
            node: Some(one(9)),
            cpus: 2,
            memory: 4096,
            booted_at: Timestamp::from_second(1).unwrap(),
            pods: vec![PodUsage {
                pod: PodSummary {
                    uid: "u".into(),
                    namespace: "d".into(),
                    name: "p".into(),
                    ..PodSummary::default()
                },
                all: one(2),
                processes: Some(3),
                cgroup: "/kubepods/burstable/podu".into(),
                traffic: Some(Traffic {
                    received: Direction {
                        bytes: 70,
                        ..Direction::default()
                    },
                    ..Traffic::default()
                }),
                containers: vec![(container, one(1))],
            }],
        }
    }

    #[test]
    fn metrics_server_finds_what_it_reads() {
        let text = resource_metrics(&usage());
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"main\",namespace=\"d\",pod=\"p\"} 1 1000000",
            "container_memory_working_set_bytes{container=\"main\",namespace=\"d\",pod=\"p\"} 200 1000000",
            "container_start_time_seconds{container=\"main\",namespace=\"d\",pod=\"p\"} 500 1000000",
            "pod_cpu_usage_seconds_total{namespace=\"d\",pod=\"p\"} 2 1000000",
            "node_cpu_usage_seconds_total 9 1000000",
            "node_memory_working_set_bytes 200 1000000",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_summary_is_the_kubelets() {
        let of = |available, capacity| Observation {
            available,
            capacity,
        };
        let room = Room {
            node: Some([of(30, 100), of(u64::MAX, u64::MAX)]),
            images: Some([of(10, 50), of(5, 8)]),
            processes: Some(of(60, 100)),
        };
        let rates = HashMap::from([("c1".to_owned(), 5), (String::new(), 7)]);
        let summary = summary(&usage(), &room, &rates, "n1");
        let node = &summary["node"];
        assert_eq!(
            (&node["cpu"]["usageNanoCores"], &node["fs"]["usedBytes"]),
            (&json!(7), &json!(70))
        );
        assert_eq!(node["fs"]["inodes"], Value::Null);
        assert_eq!(node["runtime"]["imageFs"]["inodesUsed"], 3);
        assert_eq!(node["rlimit"]["curproc"], 40);
        let of_pod = &summary["pods"][0];
        assert_eq!(of_pod["containers"][0]["cpu"]["usageNanoCores"], 5);
        assert_eq!(of_pod["cpu"]["usageNanoCores"], Value::Null);
        assert_eq!(summary["node"]["nodeName"], "n1");
        assert_eq!(
            summary["node"]["cpu"]["usageCoreNanoSeconds"],
            9_000_000_000_u64
        );
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"]["name"], "p");
        assert_eq!(pod["memory"]["availableBytes"], 800);
        assert_eq!(pod["network"]["interfaces"][0]["rxBytes"], 70);
        assert_eq!(summary["node"]["memory"]["availableBytes"], 3896);
        assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 200);
        assert_eq!(pod["containers"][0]["startTime"], "1970-01-01T00:08:20Z");
    }
}
