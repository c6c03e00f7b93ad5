//! What the network between pods costs, on one node and between two.
//!
//! ```text
//!            node 1 ──────cable────── node 2        each a network namespace, with pods' namespaces of its own
//!           ┌───┴───┐                   │
//!  client: pod a   pod b               pod c        a ─▶ b on one node, a ─▶ c between nodes
//!
//!   veth       links and routes as Kernelet makes them, by hand, without any program
//!   bridge     a bridge on each node and masquerade rules, as the reference plugin `bridge` makes them
//!   kernelet   the agent's own code, with its programs at the pods' links, at the uplinks and at the pods' sockets
//!   service    the same, where the client dials a service whose one backend is the pod
//! ```
//!
//! Clients of all cases live at once and take turns, so that the machine's mood is everybody's. `--short` makes fewer
//! rounds, to see that it works.

#[path = "../common/mod.rs"]
mod common;

mod links;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::client::{self, BACKEND_PORT, BLOCK, Client, Exchange, Server};
use common::{Report, is_short};
use kernelet_tests::sweep::{Residue, sweep};
use links::{Node, Pod};

const PREFIX: &str = "kpn";
const EXCHANGES_A_ROUND: usize = 500;
const BLOCKS_A_ROUND: usize = 4;
/// The case of a client that dials a service.
const SERVICE: &str = "service";

/// How pods are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Veth,
    Bridge,
    Kernelet,
}

impl Way {
    const ALL: [Way; 3] = [Way::Veth, Way::Bridge, Way::Kernelet];

    fn name(self) -> &'static str {
        match self {
            Way::Veth => "veth",
            Way::Bridge => "bridge",
            Way::Kernelet => "kernelet",
        }
    }
}

/// Where the two pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    OneNode,
    TwoNodes,
}

impl Path {
    fn name(self, way: &str) -> String {
        let place = match self {
            Path::OneNode => "on one node",
            Path::TwoNodes => "between nodes",
        };
        format!("{way} {place}")
    }
}

/// Two nodes with their pods, connected in one way.
struct Lab {
    way: Way,
    a: Pod,
    b: Pod,
    c: Pod,
}

impl Lab {
    fn new(way: Way) -> Lab {
        let nodes = [1, 2].map(|number| Node {
            name: node_name(way, number),
            number,
        });
        links::cable(&nodes);
        let pods = links::connect(way, &nodes, &["a", "b"], &["c"]);
        let [a, b, c] = pods.try_into().unwrap_or_else(|_| panic!("three pods"));
        Lab { way, a, b, c }
    }

    /// Where clients are: of Kernelet's, their sockets meet its programs, whatever they dial.
    fn clients(&self) -> PathBuf {
        match self.way {
            Way::Kernelet => links::cgroup_of(&node_name(self.way, 1)),
            _ => cgroup(self.way.name()),
        }
    }

    fn target(&self, path: Path) -> &Pod {
        match path {
            Path::OneNode => &self.b,
            Path::TwoNodes => &self.c,
        }
    }
}

fn main() {
    if client::played_a_part() {
        return;
    }
    let directories = [links::bpf_directory()];
    let residue = Residue {
        prefix: PREFIX,
        directories: &directories,
    };
    let clean = || sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    clean();
    let rounds = if is_short() { 2 } else { 20 };
    let mut report = Report::new("pod-network");
    let labs = Way::ALL.map(Lab::new);
    for path in [Path::OneNode, Path::TwoNodes] {
        for exchange in [Exchange::Call, Exchange::Connect, Exchange::Stream] {
            measure(&labs, path, exchange, rounds, &mut report);
        }
    }
    drop(labs);
    clean();
    report.finish();
}

fn measure(labs: &[Lab], path: Path, exchange: Exchange, rounds: usize, report: &mut Report) {
    // A server for each lab, whom both of its clients call.
    let _servers: Vec<Server> = labs
        .iter()
        .map(|lab| Server::start(&cgroup("servers"), &lab.target(path).netns, exchange))
        .collect();
    let mut parts: Vec<_> = labs
        .iter()
        .flat_map(|lab| {
            let target = lab.target(path);
            let direct = SocketAddr::from((target.address, BACKEND_PORT));
            let service = links::service_of(target.address);
            let named = |name: String, address| {
                let client = Client::start(&lab.clients(), &lab.a.netns, exchange, address, false);
                (name, client, Vec::new(), Vec::new())
            };
            let direct = named(path.name(lab.way.name()), direct);
            let by_service = (lab.way == Way::Kernelet).then(|| named(path.name(SERVICE), service));
            std::iter::once(direct).chain(by_service)
        })
        .collect();
    let count = match exchange {
        Exchange::Stream => BLOCKS_A_ROUND,
        _ => EXCHANGES_A_ROUND,
    };
    for (_, client, ..) in &mut parts {
        client.exchange(count);
    }
    for _ in 0..rounds {
        for (_, client, samples, rates) in &mut parts {
            let began = Instant::now();
            samples.extend(client.exchange(count));
            rates.push(count as f64 / began.elapsed().as_secs_f64());
        }
    }
    for (name, _, samples, rates) in &mut parts {
        rates.sort_unstable_by(f64::total_cmp);
        let rate = rates[rates.len() / 2];
        report_of(name, exchange, samples, rate, report);
    }
    let metrics: &[&'static str] = match exchange {
        Exchange::Stream => &["throughput"],
        Exchange::Connect => &["short connections", "connection p50"],
        _ => &["requests", "request p50", "request p99"],
    };
    for metric in metrics {
        let [veth, bridge, kernelet] = Way::ALL.map(|way| path.name(way.name()));
        let service = path.name(SERVICE);
        for (case, base) in [
            (&bridge, &veth),
            (&kernelet, &veth),
            (&service, &veth),
            (&service, &kernelet),
        ] {
            report.add_ratio(case, base, 0, metric);
        }
    }
}

fn report_of(
    name: &str,
    exchange: Exchange,
    samples: &mut [Duration],
    rate: f64,
    report: &mut Report,
) {
    match exchange {
        Exchange::Stream => {
            let rate = rate * (BLOCK >> 20) as f64;
            report.add(name, 0, "throughput", rate, "MiB/s");
        }
        Exchange::Connect => {
            report.add(name, 0, "short connections", rate, "1/s");
            let p50 = common::percentile(samples, 50).as_secs_f64() * 1e6;
            report.add(name, 0, "connection p50", p50, "µs");
        }
        _ => {
            report.add(name, 0, "requests", rate, "1/s");
            for (metric, percent) in [("request p50", 50), ("request p99", 99)] {
                let value = common::percentile(samples, percent).as_secs_f64() * 1e6;
                report.add(name, 0, metric, value, "µs");
            }
        }
    }
}

fn node_name(way: Way, number: u8) -> String {
    format!("{PREFIX}-{}-{number}", way.name())
}

fn cgroup(case: &str) -> PathBuf {
    client::cgroup(PREFIX, case)
}
