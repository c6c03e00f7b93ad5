//! Benchmarks: each is a bench target of the `tests` crate, which measures and prints; this starts it.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;

use crate::shell::{self, cargo};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// The API server: requests a second, processor time of each, memory; over either store, and beside another one.
    Api,
    /// connect() latency: direct, through Kernelet, iptables and nftables.
    Connect,
    /// From an accepted EndpointSlice change to the map entry in the kernel; first full sync.
    Update,
    /// From POST of a bound pod to Running, beside `ctr run` and CRI; processor time of pods; ends and readiness until known.
    Pods,
    /// Pod to pod, on one node and between two: beside bare veth pairs, and beside a bridge with masquerade rules.
    PodNetwork,
    /// What network policies cost a packet and a request, by how many rules a pod has.
    Policy,
    /// A client outside to a node's port, beside iptables and nftables rules and the backend itself.
    #[value(name = "nodeport")]
    NodePort,
    /// Resident memory of the agent and the control plane.
    Footprint,
}

/// Runs one benchmark; `json` also gets its rows. `peer` is another API server to measure.
pub fn run(bench: Bench, json: Option<&Path>, peer: Option<&Path>) -> Result<()> {
    let name = match bench {
        Bench::Api => "api",
        Bench::Connect => "connect",
        Bench::Update => "update",
        Bench::Pods => "pods",
        Bench::PodNetwork => "pod_network",
        Bench::Policy => "policy",
        Bench::NodePort => "node_port",
        Bench::Footprint => "footprint",
    };
    let mut command = cargo();
    command.args([
        "bench",
        "--quiet",
        "--package",
        "kernelet-tests",
        "--bench",
        name,
        "--",
    ]);
    for (flag, path) in [("--json", json), ("--peer", peer)] {
        if let Some(path) = path {
            let absolute = std::env::current_dir()?.join(path);
            command.arg(flag).arg(absolute);
        }
    }
    shell::run(&mut command)
}
