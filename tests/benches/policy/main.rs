//! What network policies cost a packet, and a request, by how many rules a pod has.
//!
//! ```text
//!   one node:   client pod ──▶ a pod without a policy
//!                          └─▶ one with a rule, one with 100, one with 10,000: each names a range and a port, and one the client
//! ```
//!
//! Requests: clients of all cases live at once and take turns. A packet: the program at a pod's link is run by the kernel over
//! and over with one packet, of a conversation that was allowed or the first of one, which is looked up in the rules.
//! `--short` makes fewer rounds, to see that it works.

#[path = "../common/mod.rs"]
mod common;

mod node;

use std::net::SocketAddr;
use std::path::PathBuf;

use common::client::{self, BACKEND_PORT, Client, Exchange, Server};
use common::{Report, is_short};
use kernelet_tests::sweep::{Residue, sweep};
use node::{Node, Packet};

const PREFIX: &str = "kpl";
/// How many rules; 0 is no policy.
const RULES: [u32; 4] = [0, 1, 100, 10_000];
const EXCHANGES_A_ROUND: usize = 500;
/// Runs of a program for one figure, and figures of which the smallest counts: what else runs only adds to it.
const RUNS: u32 = 100_000;

fn main() {
    if client::played_a_part() {
        return;
    }
    let directories = [node::bpf_directory()];
    let residue = Residue {
        prefix: PREFIX,
        directories: &directories,
    };
    let clean = || sweep(&residue).unwrap_or_else(|error| panic!("{error}"));
    clean();
    let mut report = Report::new("policy");
    let node = Node::new(&RULES);
    requests(&node, &mut report);
    packets(&node, &mut report);
    drop(node);
    clean();
    report.finish();
}

fn case(rules: u32) -> String {
    match rules {
        0 => "no policy".to_owned(),
        1 => "1 rule".to_owned(),
        many => format!("{many} rules"),
    }
}

fn requests(node: &Node, report: &mut Report) {
    let rounds = if is_short() { 2 } else { 20 };
    let mut cases: Vec<_> = RULES
        .iter()
        .zip(&node.servers)
        .map(|(rules, pod)| {
            let name = case(*rules);
            let server = Server::start(&cgroup("servers"), &pod.netns, Exchange::Call);
            let address = SocketAddr::from((pod.address, BACKEND_PORT));
            let cgroup = cgroup(&format!("rules-{rules}"));
            let from = &node.client.netns;
            let client = Client::start(&cgroup, from, Exchange::Call, address, false);
            (name, client, server, Vec::new())
        })
        .collect();
    for (_, client, ..) in &mut cases {
        client.exchange(EXCHANGES_A_ROUND);
    }
    for _ in 0..rounds {
        for (_, client, _, samples) in &mut cases {
            samples.extend(client.exchange(EXCHANGES_A_ROUND));
        }
    }
    for (name, _, _, samples) in &mut cases {
        let p50 = common::percentile(samples, 50).as_secs_f64() * 1e6;
        report.add(&*name, 0, "request p50", p50, "µs");
    }
    ratios("request p50", report);
}

fn packets(node: &Node, report: &mut Report) {
    let rounds = if is_short() { 3 } else { 9 };
    let metrics = [
        ("packet of a conversation", Packet::Later),
        ("first packet", Packet::First),
    ];
    for rules in RULES {
        node.load(rules);
        for (metric, packet) in metrics {
            let fastest = (0..rounds).map(|_| node.run(packet, RUNS)).min();
            let fastest = fastest.expect("there are rounds").as_nanos() as f64;
            report.add(case(rules), 0, metric, fastest, "ns");
        }
    }
    for (metric, _) in metrics {
        ratios(metric, report);
    }
}

fn ratios(metric: &'static str, report: &mut Report) {
    for rules in &RULES[1..] {
        report.add_ratio(&case(*rules), &case(0), 0, metric);
    }
}

fn cgroup(case: &str) -> PathBuf {
    client::cgroup(PREFIX, case)
}
