//! What a connection, a datagram and a byte cost through Kernelet and through rules shaped as kube-proxy writes them,
//! beside the same without any.
//!
//! ```text
//! on one node     one network namespace a case, each with its server and the three backend addresses on `lo`
//!   direct               no rules; the backend's own address is dialled
//!   empty                programs that do nothing where a connection meets the agent's
//!   kernelet             the agent's programs on the client's cgroup
//!   iptables, nftables   kube-proxy's chains and maps
//! between nodes   two namespaces a case and a cable between them
//! ```
//!
//! Clients of all cases live at once and take turns, so that the machine's mood is everybody's. The service that is
//! dialled is the middle one of the list: a walk along rules is then as long as it is on average.

#[path = "../common/mod.rs"]
mod common;

mod kernelet_tables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use common::client::{self, BACKEND_PORT, BLOCK, Client, Exchange, Server};
use common::rules::{self, Services};
use common::{Report, bpf, line, run_time};
use kernelet_tables::Tables;
use kernelet_tests::host;
use kernelet_tests::sweep::{Residue, sweep};

const PREFIX: &str = "kbc";
const SERVICES: [u32; 3] = [10, 1_000, 10_000];
/// What a node of a small cluster has.
const FEW: u32 = 10;
/// Of these only the writing of all services is measured. At the last, iptables-restore does not end within minutes.
const FIRST_WRITES: [(&str, u32); 4] = [
    ("kernelet", 10_000),
    ("iptables", 10_000),
    ("nftables", 10_000),
    ("kernelet", 50_000),
];
const ROUNDS: usize = 20;
const EXCHANGES_A_ROUND: usize = 500;
const BLOCKS_A_ROUND: usize = 8;
const ENDPOINTS: u32 = 3;
const PORT: u16 = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// How the client's traffic comes to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Empty,
    Kernelet(Tables),
    Iptables,
    Nftables,
}

/// What is measured, and beside what.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Also part of the names of what it makes.
    name: &'static str,
    /// The case without services that it is compared with; itself for those.
    base: &'static str,
    way: Way,
    family: Family,
    exchange: Exchange,
}

impl Case {
    const fn new(name: &'static str, base: &'static str, way: Way) -> Case {
        Case {
            name,
            base,
            way,
            family: Family::V4,
            exchange: Exchange::Connect,
        }
    }

    const fn over(mut self, family: Family, exchange: Exchange) -> Case {
        self.family = family;
        self.exchange = exchange;
        self
    }

    fn target(&self, dialled: u32) -> SocketAddr {
        match self.way {
            Way::Direct | Way::Empty => endpoint(self.family, dialled, 0),
            _ => service(self.family, dialled),
        }
    }
}

const PLAIN: Way = Way::Kernelet(Tables::Plain);
const CASES: [Case; 11] = [
    Case::new("direct", "direct", Way::Direct),
    Case::new("empty", "direct", Way::Empty),
    Case::new("kernelet", "direct", PLAIN),
    Case::new("affinity", "direct", Way::Kernelet(Tables::Affinity)),
    Case::new("feedback", "direct", Way::Kernelet(Tables::Feedback)),
    Case::new("iptables", "direct", Way::Iptables),
    Case::new("nftables", "direct", Way::Nftables),
    Case::new("direct6", "direct6", Way::Direct).over(Family::V6, Exchange::Connect),
    Case::new("kernelet6", "direct6", PLAIN).over(Family::V6, Exchange::Connect),
    Case::new("direct-udp", "direct-udp", Way::Direct).over(Family::V4, Exchange::Request),
    Case::new("kernelet-udp", "direct-udp", PLAIN).over(Family::V4, Exchange::Request),
];

/// Address of a service.
fn service(family: Family, number: u32) -> SocketAddr {
    (numbered(family, [10, 96, 1, 0], 0x96, number), PORT).into()
}

/// Address of one endpoint of a service. Those of the dialled service are there; nothing is sent to the others.
fn endpoint(family: Family, number: u32, index: u32) -> SocketAddr {
    let number = number * ENDPOINTS + index;
    (
        numbered(family, [10, 128, 0, 1], 0x128, number),
        BACKEND_PORT,
    )
        .into()
}

fn numbered(family: Family, first: [u8; 4], net: u16, number: u32) -> IpAddr {
    let (high, low) = ((number >> 16) as u16, number as u16);
    match family {
        Family::V4 => Ipv4Addr::from(u32::from(Ipv4Addr::from(first)) + number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, net, 0, 0, 0, 1, high, low).into(),
    }
}

fn main() {
    if client::played_a_part() {
        return;
    }
    let directories = [kernelet_tables::bpf_directory()];
    let residue = Residue {
        prefix: PREFIX,
        directories: &directories,
    };
    let clean = || sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    clean();
    let mut report = Report::new("connect");
    for services in SERVICES {
        on_one_node(services, &mut report);
        clean();
    }
    between_nodes(&mut report);
    clean();
    for (name, services) in FIRST_WRITES {
        first_write(name, services, &mut report);
        clean();
    }
    report.finish();
}

/// The services of which the rules are.
fn of(count: u32) -> Services {
    Services {
        count,
        endpoints: ENDPOINTS,
        service: |number| service(Family::V4, number),
        endpoint: |number, index| endpoint(Family::V4, number, index),
        node_port: |_| None,
    }
}

/// Puts the case's services where they belong.
fn fill(case: &Case, netns: &str, services: u32, report: &mut Report) {
    match case.way {
        Way::Direct => {}
        Way::Empty => empty_programs(&cgroup(case.name)),
        Way::Kernelet(tables) => {
            let took = kernelet_tables::fill(case, tables, services);
            if case.name == "kernelet" {
                let milliseconds = took.as_secs_f64() * 1e3;
                let metric = "first full sync of the maps";
                report.add(case.name, u64::from(services), metric, milliseconds, "ms");
            }
        }
        Way::Iptables => rules::iptables(netns, of(services)),
        Way::Nftables => rules::nftables(netns, of(services)),
    }
}

/// What a TCP connection costs at least where programs follow it.
fn empty_programs(cgroup: &Path) {
    host::create_dir(cgroup).unwrap_or_else(|error| panic!("{error}"));
    for kind in bpf::OF_A_CONNECTION {
        bpf::attach(&bpf::empty(kind), kind, cgroup);
    }
}

/// How long the first write of very many services takes, and how much memory the kernel has less afterwards.
fn first_write(name: &str, services: u32, report: &mut Report) {
    let case = CASES.iter().find(|case| case.name == name);
    let case = case.expect("it is one of them");
    let netns = node(case, 0);
    let available = settled_memory();
    let began = Instant::now();
    fill(case, &netns, services, report);
    let took = began.elapsed().as_secs_f64();
    let used = available.saturating_sub(settled_memory()) as f64 / 1e3;
    let services = u64::from(services);
    report.add(name, services, "first write of all services", took, "s");
    report.add(
        name,
        services,
        "memory that the kernel has less",
        used,
        "MB",
    );
}

/// The memory that is available when the kernel has taken back what was freed before, which it does by and by. In kB.
fn settled_memory() -> u64 {
    const LEAST: u64 = 1_000;
    let mut before = available_memory();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(500));
        let now = available_memory();
        if now.saturating_sub(before) < LEAST {
            return now;
        }
        before = now;
    }
    before
}

/// In kB.
fn available_memory() -> u64 {
    let text = host::read("/proc/meminfo").unwrap_or_else(|error| panic!("{error}"));
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .expect("the kernel says it")
}

fn on_one_node(services: u32, report: &mut Report) {
    let dialled = services / 2;
    let mut clients = Vec::new();
    for case in &CASES {
        let netns = node(case, dialled);
        fill(case, &netns, services, report);
        let target = case.target(dialled);
        let client = Client::start(&cgroup(case.name), &netns, case.exchange, target, true);
        clients.push((case, client, Vec::<Duration>::new()));
    }
    // Services' tables change beside the clients, as feedback changes them.
    let feedback = kernelet_tables::Feedback::start("feedback", services);
    for (_, client, _) in &mut clients {
        client.exchange(EXCHANGES_A_ROUND);
    }
    for _ in 0..ROUNDS {
        for (_, client, samples) in &mut clients {
            samples.extend(client.exchange(EXCHANGES_A_ROUND));
        }
    }
    feedback.stop();
    let services = u64::from(services);
    for (case, _, samples) in &mut clients {
        report.add_latency(case.name, services, samples, &["p50", "p99"], "µs");
    }
    for case in CASES.iter().filter(|case| case.base != case.name) {
        for metric in ["p50", "p99"] {
            report.add_ratio(case.name, case.base, services, metric);
        }
    }
    // Last, because it costs what it measures.
    for (case, client, _) in &mut clients {
        if matches!(case.way, Way::Kernelet(_)) {
            let exchanges = || drop(client.exchange(EXCHANGES_A_ROUND));
            let spent = run_time::of(&kernelet_tables::directory(case.name), exchanges);
            let each = spent.as_nanos() as f64 / EXCHANGES_A_ROUND as f64;
            let metric = "BPF time an exchange";
            report.add(case.name, services, metric, each, "ns");
        }
    }
}

/// Connections a second and throughput to a backend on another node.
fn between_nodes(report: &mut Report) {
    let few = u64::from(FEW);
    for (exchange, count) in [
        (Exchange::Connect, EXCHANGES_A_ROUND),
        (Exchange::Stream, BLOCKS_A_ROUND),
    ] {
        let (metric, unit, each) = match exchange {
            Exchange::Stream => ("throughput", "MiB/s", (BLOCK >> 20) as f64),
            _ => ("short connections", "1/s", 1.0),
        };
        let mut clients = Vec::new();
        for case in CASES.iter().filter(|case| case.base == "direct") {
            let case = case.over(Family::V4, exchange);
            let (near, far) = nodes(&case);
            fill(&case, &near, FEW, report);
            let server = Server::start(&cgroup("servers"), &far, exchange);
            let target = case.target(FEW / 2);
            let client = Client::start(&cgroup(case.name), &near, exchange, target, false);
            clients.push((case, client, server, Vec::new()));
        }
        for (_, client, _, _) in &mut clients {
            client.exchange(count);
        }
        for _ in 0..ROUNDS {
            for (_, client, _, rates) in &mut clients {
                let began = Instant::now();
                client.exchange(count);
                rates.push(count as f64 * each / began.elapsed().as_secs_f64());
            }
        }
        for (case, _, _, rates) in &mut clients {
            rates.sort_unstable_by(f64::total_cmp);
            let name = format!("{} between nodes", case.name);
            report.add(name, few, metric, rates[rates.len() / 2], unit);
        }
        for case in CASES.iter().filter(|case| case.base == "direct").skip(1) {
            let (name, base) = (case.name, "direct between nodes");
            report.add_ratio(&format!("{name} between nodes"), base, few, metric);
        }
        drop(clients);
        let directories = [kernelet_tables::bpf_directory()];
        let residue = Residue {
            prefix: PREFIX,
            directories: &directories,
        };
        sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn cgroup(case: &str) -> std::path::PathBuf {
    client::cgroup(PREFIX, case)
}

/// A namespace with the dialled service's endpoints on `lo`.
fn node(case: &Case, dialled: u32) -> String {
    let netns = format!("{PREFIX}-{}", case.name);
    line(format!("ip netns add {netns}"));
    line(format!("ip -n {netns} link set lo up"));
    for index in 0..ENDPOINTS {
        let address = endpoint(case.family, dialled, index).ip();
        line(format!("ip -n {netns} address add {address} dev lo"));
    }
    // Service addresses need a route, as they have on a node: the default one.
    let family = if case.family == Family::V6 { "-6 " } else { "" };
    line(format!("ip -n {netns} {family}route add default dev lo"));
    netns
}

/// Two namespaces with a cable between them; the second has the endpoints.
fn nodes(case: &Case) -> (String, String) {
    let (near, far) = (
        format!("{PREFIX}-{}-a", case.name),
        format!("{PREFIX}-{}-b", case.name),
    );
    for netns in [&near, &far] {
        line(format!("ip netns add {netns}"));
        line(format!("ip -n {netns} link set lo up"));
    }
    line(format!(
        "ip -n {near} link add eth0 type veth peer name eth0 netns {far}"
    ));
    for (netns, address, other) in [
        (&near, "192.0.2.1", "192.0.2.2"),
        (&far, "192.0.2.2", "192.0.2.1"),
    ] {
        line(format!("ip -n {netns} address add {address}/24 dev eth0"));
        line(format!("ip -n {netns} link set eth0 up"));
        line(format!("ip -n {netns} route add default via {other}"));
    }
    for index in 0..ENDPOINTS {
        let address = endpoint(case.family, FEW / 2, index).ip();
        line(format!("ip -n {far} address add {address} dev lo"));
    }
    (near, far)
}
