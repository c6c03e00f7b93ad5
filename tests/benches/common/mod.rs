//! What the benchmarks share: rows, their table, clients and servers in namespaces, rules as others write them, and clients
//! of a cluster's API.

#![allow(dead_code, reason = "each benchmark uses its part")]

pub mod bpf;
pub mod client;
pub mod rules;
pub mod run_time;
pub mod services;

use std::path::PathBuf;
use std::time::Duration;

use kernelet_tests::command;
use serde::Serialize;

/// Runs a command, which works.
pub fn line(line: impl AsRef<str>) {
    command::run(line.as_ref()).unwrap_or_else(|error| panic!("{error}"));
}

/// The index of a link in a namespace.
pub fn index_of(netns: &str, link: &str) -> u32 {
    let shown = command::run(&format!("ip -n {netns} -j link show {link}"));
    let shown = shown.unwrap_or_else(|error| panic!("{error}"));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("ip writes JSON");
    let index = shown[0]["ifindex"].as_u64().expect("links have one");
    u32::try_from(index).expect("it is no larger")
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub bench: &'static str,
    pub case: String,
    /// How many services existed; 0 where they play no part.
    pub services: u64,
    pub metric: &'static str,
    pub value: f64,
    pub unit: &'static str,
}

/// The figures of one benchmark, in the order in which they are shown.
pub struct Report {
    bench: &'static str,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(bench: &'static str) -> Report {
        Report {
            bench,
            rows: Vec::new(),
        }
    }

    pub fn add(
        &mut self,
        case: impl Into<String>,
        services: u64,
        metric: &'static str,
        value: f64,
        unit: &'static str,
    ) {
        self.rows.push(Row {
            bench: self.bench,
            case: case.into(),
            services,
            metric,
            value,
            unit,
        });
    }

    /// Adds percentiles of durations, such as `p50`.
    pub fn add_latency(
        &mut self,
        case: &str,
        services: u64,
        samples: &mut [Duration],
        metrics: &[&'static str],
        unit: &'static str,
    ) {
        let scale = match unit {
            "ms" => 1e3,
            "µs" => 1e6,
            _ => 1.0,
        };
        for metric in metrics {
            let percent = metric.strip_prefix('p').and_then(|it| it.parse().ok());
            let percent = percent.expect("a percentile is called p and its number");
            let value = percentile(samples, percent).as_secs_f64() * scale;
            self.add(case, services, metric, value, unit);
        }
    }

    /// The value of a row that was added.
    pub fn value(&self, case: &str, services: u64, metric: &str) -> Option<f64> {
        let found = self
            .rows
            .iter()
            .find(|row| row.case == case && row.services == services && row.metric == metric);
        found.map(|row| row.value)
    }

    /// Adds the ratio of two cases' values, if both are there.
    pub fn add_ratio(&mut self, case: &str, base: &str, services: u64, metric: &'static str) {
        if let (Some(value), Some(reference)) = (
            self.value(case, services, metric),
            self.value(base, services, metric),
        ) {
            self.add(
                format!("{case} / {base}"),
                services,
                metric,
                value / reference,
                "ratio",
            );
        }
    }

    /// Prints the table; writes the rows where `--json FILE` asks for them.
    pub fn finish(self) {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["CASE", "SERVICES", "METRIC", "VALUE", "UNIT"]);
        for row in &self.rows {
            let value = if row.unit == "ratio" {
                format!("{:.3}", row.value)
            } else {
                format!("{:.2}", row.value)
            };
            table.add_row([
                row.case.clone(),
                row.services.to_string(),
                row.metric.into(),
                value,
                row.unit.into(),
            ]);
        }
        println!("{table}");
        if let Some(path) = json_file() {
            let text = serde_json::to_vec_pretty(&self.rows).expect("rows are plain data");
            std::fs::write(&path, text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// Whether only a short look is wanted.
pub fn is_short() -> bool {
    std::env::args().any(|argument| argument == "--short")
}

fn json_file() -> Option<PathBuf> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--json");
    arguments.nth(1).map(PathBuf::from)
}

/// The nearest-rank percentile; sorts the samples.
pub fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    let rank = (samples.len() * percent).div_ceil(100).max(1);
    samples.get(rank - 1).copied().unwrap_or_default()
}

/// A client of a cluster's API, as its administrator.
pub async fn client(cluster: &kernelet_tests::Cluster) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(cluster.kubeconfig())
        .expect("the cluster wrote its kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
    kube::Client::try_from(config.expect("the kubeconfig is usable"))
        .expect("the kubeconfig is usable")
}
