//! connect() latency through Kernelet and through rules shaped as kube-proxy writes them, beside a connection without any.
//!
//! ```text
//! one network namespace a case, each with the same listener and the same three backend addresses on `lo`
//!   direct               no rules; the backend's own address is dialled
//!   kernelet             the agent's programs on the client's cgroup
//!   iptables, nftables   kube-proxy's chains and maps
//! ```
//!
//! Clients of all cases live at once and take turns, so that the machine's mood is everybody's. The service that is
//! dialled is the middle one of the list: a walk along rules is then as long as it is on average.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod kernelet_tables;
mod rules;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use client::Client;
use common::Report;
use kernelet_tests::command::run;
use kernelet_tests::host;
use kernelet_tests::sweep::{Residue, sweep};

const PREFIX: &str = "kbc";
const SERVICES: [u32; 3] = [10, 1_000, 10_000];
const ROUNDS: usize = 20;
const CONNECTS_A_ROUND: usize = 500;
const ENDPOINTS: u32 = 3;
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// Address of a service.
fn service(number: u32) -> SocketAddrV4 {
    SocketAddrV4::new(
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number),
        PORT,
    )
}

/// Address of one endpoint of a service. Those of the dialled service are on `lo`; nothing is sent to the others.
fn endpoint(number: u32, index: u32) -> SocketAddrV4 {
    let base = u32::from(Ipv4Addr::new(10, 128, 0, 1));
    SocketAddrV4::new(
        Ipv4Addr::from(base + number * ENDPOINTS + index),
        BACKEND_PORT,
    )
}

fn main() {
    if let Some(target) = client::requested() {
        return client::serve(target);
    }
    let residue = Residue {
        prefix: PREFIX,
        directories: &[kernelet_tables::bpf_directory()],
    };
    sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    let mut report = Report::new("connect");
    for services in SERVICES {
        measure(services, &mut report);
        sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    }
    report.finish();
}

fn measure(services: u32, report: &mut Report) {
    let dialled = services / 2;
    let mut clients = Vec::new();
    for case in ["direct", "kernelet", "iptables", "nftables"] {
        let netns = namespace(case, dialled);
        match case {
            "kernelet" => {
                let synced = kernelet_tables::fill(case, services);
                report.add(
                    case,
                    u64::from(services),
                    "first full sync of the maps",
                    synced.as_secs_f64() * 1e3,
                    "ms",
                );
            }
            "iptables" => rules::iptables(&netns, services),
            "nftables" => rules::nftables(&netns, services),
            _ => {}
        }
        let target = if case == "direct" {
            endpoint(dialled, 0)
        } else {
            service(dialled)
        };
        clients.push((
            case,
            Client::start(case, &netns, target),
            Vec::<Duration>::new(),
        ));
    }
    for (_, client, _) in &mut clients {
        client.connect(CONNECTS_A_ROUND);
    }
    for _ in 0..ROUNDS {
        for (_, client, samples) in &mut clients {
            samples.extend(client.connect(CONNECTS_A_ROUND));
        }
    }
    for (case, _, samples) in &mut clients {
        report.add_latency(case, u64::from(services), samples, "µs");
    }
    for case in ["kernelet", "iptables", "nftables"] {
        for metric in ["p50", "p99"] {
            report.add_ratio(case, "direct", u64::from(services), metric);
        }
    }
}

/// A namespace with the dialled service's endpoints on `lo`.
fn namespace(case: &str, dialled: u32) -> String {
    let netns = format!("{PREFIX}-{case}");
    let line = |line: String| run(&line).unwrap_or_else(|error| panic!("{error}"));
    line(format!("ip netns add {netns}"));
    line(format!("ip -n {netns} link set lo up"));
    for index in 0..ENDPOINTS {
        line(format!(
            "ip -n {netns} address add {}/32 dev lo",
            endpoint(dialled, index).ip()
        ));
    }
    // Service addresses need a route, as they have on a node: the default one.
    line(format!("ip -n {netns} route add default dev lo"));
    host::create_dir(client::cgroup(case)).unwrap_or_else(|error| panic!("{error}"));
    netns
}
