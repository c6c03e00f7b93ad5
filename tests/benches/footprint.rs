//! Resident memory: the agent idle, with 110 pods, with 10,000 services; the control plane idle.

mod common;

use std::time::Duration;

use common::{Report, client};
use kernelet_tests::{Cluster, Spec};

/// As many as upstream allows a node.
const PODS: usize = 110;
const SERVICES: u64 = 10_000;
/// How long memory may settle: the agent gives free pages back every 10 seconds.
const SETTLE: Duration = Duration::from_secs(15);

fn main() {
    let cluster = Cluster::up(Spec::scenario("kbf", 121, 1), |_| {})
        .unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut report = Report::new("footprint");

    sample(&cluster, &mut report, "idle", 0);
    kubectl(
        &cluster,
        &[
            "create",
            "deployment",
            "many",
            "--image=backend:v0.0.1",
            &format!("--replicas={PODS}"),
        ],
    );
    kubectl(
        &cluster,
        &["rollout", "status", "deployment", "many", "--timeout=300s"],
    );
    sample(&cluster, &mut report, "110 pods", 0);
    kubectl(&cluster, &["delete", "deployment", "many"]);
    kubectl(
        &cluster,
        &[
            "wait",
            "--for=delete",
            "pod",
            "-l",
            "app=many",
            "--timeout=300s",
        ],
    );

    runtime
        .block_on(async { common::services::create(&client(&cluster).await, 0..SERVICES).await });
    sample(
        &cluster,
        &mut report,
        "10,000 services x 3 endpoints",
        SERVICES,
    );
    cluster.down().unwrap_or_else(|error| panic!("{error}"));
    report.finish();
}

fn sample(cluster: &Cluster, report: &mut Report, case: &str, services: u64) {
    std::thread::sleep(SETTLE);
    for (_, program, bytes) in cluster.resident() {
        if program != "containerd" {
            report.add(
                format!("{program}, {case}"),
                services,
                "resident",
                bytes as f64 / 1e6,
                "MB",
            );
        }
    }
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) {
    kernelet_tests::command::output(cluster.kubectl().args(arguments))
        .unwrap_or_else(|error| panic!("{error}"));
}
