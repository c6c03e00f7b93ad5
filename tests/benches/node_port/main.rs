//! What a client outside pays to reach a service by a node's port.
//!
//! ```text
//!   client ──cable── node ── pod         three network namespaces a case; the pod has the service's three endpoints
//!
//!   direct               the endpoint itself is dialled, and the node routes
//!   iptables, nftables   the node's port is dialled, and kube-proxy's chains or maps translate
//!   kernelet             the same, and the agent's programs at the node's links do
//! ```
//!
//! Clients of all cases live at once and take turns, so that the machine's mood is everybody's. Of many services only so
//! many have a node port as there are ports; the one that is dialled is in the middle of those. `--short` makes fewer
//! rounds, to see that it works.
//!
//! What a packet costs each program, without a machine's moods, is [`packets`]; `--packets` measures nothing else.

#[path = "../common/mod.rs"]
mod common;

mod kernelet;
mod packets;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::client::{self, BACKEND_PORT, Client, Exchange, Server};
use common::rules::{self, Services};
use common::{Report, is_short, line, run_time};
use kernelet_tests::command::run;
use kernelet_tests::sweep::{Residue, sweep};

const PREFIX: &str = "knp";
const SERVICES: [u32; 2] = [10, 10_000];
const ENDPOINTS: u32 = 3;
/// The usual range of node ports.
const FIRST_PORT: u16 = 30_000;
const PORTS: u16 = 2_768;
const EXCHANGES_A_ROUND: usize = 300;

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// How a client comes to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Kernelet,
    Iptables,
    Nftables,
}

impl Way {
    const ALL: [Way; 4] = [Way::Direct, Way::Kernelet, Way::Iptables, Way::Nftables];

    fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Kernelet => "kernelet",
            Way::Iptables => "iptables",
            Way::Nftables => "nftables",
        }
    }

    fn target(self, dialled: u32) -> SocketAddr {
        match (self, node_port(dialled)) {
            (Way::Direct, _) => endpoint(dialled, 0),
            (_, Some(port)) => (NODE, port).into(),
            (_, None) => unreachable!("the dialled service has a node port"),
        }
    }
}

fn service(number: u32) -> SocketAddr {
    let address = u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number;
    (Ipv4Addr::from(address), 80).into()
}

/// Those of the dialled service are there; nothing is sent to the others.
fn endpoint(number: u32, index: u32) -> SocketAddr {
    let address = u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number * ENDPOINTS + index;
    (Ipv4Addr::from(address), BACKEND_PORT).into()
}

fn node_port(number: u32) -> Option<u16> {
    let number = u16::try_from(number).ok()?;
    (number < PORTS).then(|| FIRST_PORT + number)
}

fn main() {
    if client::played_a_part() {
        return;
    }
    let directories = [kernelet::bpf_directory()];
    let residue = Residue {
        prefix: PREFIX,
        directories: &directories,
    };
    let clean = || sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    clean();
    let rounds = if is_short() { 2 } else { 20 };
    let mut report = Report::new("node-port");
    packets::measure(&mut report);
    clean();
    if std::env::args().any(|argument| argument == "--packets") {
        return report.finish();
    }
    for services in SERVICES {
        let dialled = services.min(u32::from(PORTS)) / 2;
        for way in Way::ALL {
            build(way, services, dialled);
        }
        for exchange in [Exchange::Connect, Exchange::Call] {
            measure(services, dialled, exchange, rounds, &mut report);
        }
        clean();
    }
    report.finish();
}

fn netns(way: Way, role: &str) -> String {
    format!("{PREFIX}-{}-{role}", way.name())
}

fn cgroup(case: &str) -> PathBuf {
    client::cgroup(PREFIX, case)
}

/// Client, node and pod of one case.
fn build(way: Way, services: u32, dialled: u32) {
    let [client, node, pod] = ["client", "node", "pod"].map(|role| netns(way, role));
    for netns in [&client, &node, &pod] {
        line(format!("ip netns add {netns}"));
        line(format!("ip -n {netns} link set lo up"));
    }
    line(format!(
        "ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1"
    ));
    line(format!(
        "ip -n {node} link add eth0 type veth peer name eth0 netns {client}"
    ));
    line(format!(
        "ip -n {node} link add pod0 type veth peer name eth0 netns {pod}"
    ));
    for (netns, link, address) in [
        (&node, "eth0", format!("{NODE}/24")),
        (&client, "eth0", format!("{CLIENT}/24")),
        (&node, "pod0", format!("{GATEWAY}/24")),
        (&pod, "eth0", "10.244.0.2/24".to_owned()),
    ] {
        line(format!("ip -n {netns} address add {address} dev {link}"));
        line(format!("ip -n {netns} link set {link} up"));
    }
    line(format!("ip -n {client} route add default via {NODE}"));
    line(format!("ip -n {pod} route add default via {GATEWAY}"));
    for index in 0..ENDPOINTS {
        let address = endpoint(dialled, index).ip();
        line(format!("ip -n {pod} address add {address}/32 dev lo"));
        line(format!(
            "ip -n {node} route add {address}/32 via 10.244.0.2"
        ));
    }
    let services = Services {
        count: services,
        endpoints: ENDPOINTS,
        service,
        endpoint,
        node_port,
    };
    match way {
        Way::Direct => {}
        Way::Kernelet => kernelet::serve(&node, services.count),
        Way::Iptables => rules::iptables(&node, services),
        Way::Nftables => rules::nftables(&node, services),
    }
}

fn measure(services: u32, dialled: u32, exchange: Exchange, rounds: usize, report: &mut Report) {
    let mut parts: Vec<_> = Way::ALL
        .into_iter()
        .map(|way| {
            let server = Server::start(&cgroup("servers"), &netns(way, "pod"), exchange);
            let (cgroup, client) = (cgroup(way.name()), netns(way, "client"));
            let client = Client::start(&cgroup, &client, exchange, way.target(dialled), false);
            (way, client, server, Vec::<Duration>::new(), Vec::new())
        })
        .collect();
    for (_, client, ..) in &mut parts {
        client.exchange(EXCHANGES_A_ROUND);
    }
    for _ in 0..rounds {
        for (_, client, _, samples, rates) in &mut parts {
            let began = Instant::now();
            samples.extend(client.exchange(EXCHANGES_A_ROUND));
            rates.push(EXCHANGES_A_ROUND as f64 / began.elapsed().as_secs_f64());
        }
    }
    let metrics = match exchange {
        Exchange::Connect => ["connections", "connect p50", "connect p99"],
        _ => ["requests", "request p50", "request p99"],
    };
    let count = u64::from(services);
    for (way, _, _, samples, rates) in &mut parts {
        rates.sort_unstable_by(f64::total_cmp);
        report.add(way.name(), count, metrics[0], rates[rates.len() / 2], "1/s");
        for (metric, percent) in [(metrics[1], 50), (metrics[2], 99)] {
            let value = common::percentile(samples, percent).as_secs_f64() * 1e6;
            report.add(way.name(), count, metric, value, "µs");
        }
    }
    for way in Way::ALL.into_iter().skip(1) {
        for metric in metrics {
            report.add_ratio(way.name(), Way::Direct.name(), count, metric);
        }
    }
    // Last, because it costs what it measures.
    for (_, client, ..) in parts.iter_mut().filter(|it| it.0 == Way::Kernelet) {
        let before = packets();
        let exchanges = || drop(client.exchange(EXCHANGES_A_ROUND));
        let spent = run_time::of(&kernelet::directory(), exchanges);
        let each = spent.as_nanos() as f64 / (packets() - before) as f64;
        let metric = match exchange {
            Exchange::Connect => "BPF time a packet, connections",
            _ => "BPF time a packet, requests",
        };
        report.add(Way::Kernelet.name(), count, metric, each, "ns");
    }
}

/// How many packets have passed the node's link to the client, either way.
fn packets() -> u64 {
    let shown = run(&format!(
        "ip -n {} -s -j link show eth0",
        netns(Way::Kernelet, "node")
    ));
    let shown = shown.unwrap_or_else(|error| panic!("{error}"));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("ip writes JSON");
    let of = |side: &str| shown[0]["stats64"][side]["packets"].as_u64();
    of("rx")
        .zip(of("tx"))
        .map(|(rx, tx)| rx + tx)
        .expect("ip counts packets")
}
