//! From POST of a bound pod to Running, image present: one at a time beside `ctr run` of the same image, and 30 at once.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Report, client};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kernelet_tests::{Cluster, Spec};
use kube::api::{Api, DeleteParams, PostParams, WatchParams};

const IMAGE: &str = "docker.io/library/backend:v0.0.1";
const ONE_AT_A_TIME: usize = 30;
const AT_ONCE: usize = 30;
const ROUNDS_AT_ONCE: usize = 5;
/// After many pods went the kernel takes their namespaces apart and containerd collects their snapshots: a round begins when
/// that is done.
const REST: Duration = Duration::from_secs(5);

fn main() {
    let cluster = Cluster::up(Spec::scenario("kbp", 120, 1), |_| {})
        .unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(measure(&cluster));
    cluster.down().unwrap_or_else(|error| panic!("{error}"));
    report.finish();
}

async fn measure(cluster: &Cluster) -> Report {
    let pods: Api<Pod> = Api::default_namespaced(client(cluster).await);
    let mut report = Report::new("pods");

    // The first of each pays for what is cached afterwards.
    start(&pods, &["warm-up".into()]).await;
    remove(&pods, "warm-up").await;
    ctr_run(cluster, "warm-up");

    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for number in 0..ONE_AT_A_TIME {
        let name = format!("one-{number}");
        ours.push(start(&pods, std::slice::from_ref(&name)).await);
        remove(&pods, &name).await;
        peers.push(ctr_run(cluster, &name));
    }
    report.add_latency("kernelet, one at a time", 0, &mut ours, "ms");
    report.add_latency("ctr run, one at a time", 0, &mut peers, "ms");
    report.add_ratio(
        "kernelet, one at a time",
        "ctr run, one at a time",
        0,
        "p50",
    );

    tokio::time::sleep(REST).await;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS_AT_ONCE {
        let names: Vec<String> = (0..AT_ONCE)
            .map(|number| format!("many-{round}-{number}"))
            .collect();
        rounds.push(start(&pods, &names).await);
        for name in &names {
            remove(&pods, name).await;
        }
        tokio::time::sleep(REST).await;
    }
    rounds.sort_unstable();
    report.add(
        "kernelet, 30 at once, all Running",
        0,
        "median",
        rounds[rounds.len() / 2].as_secs_f64() * 1e3,
        "ms",
    );
    report
}

/// Creates bound pods and gives the time until all are Running.
async fn start(pods: &Api<Pod>, names: &[String]) -> Duration {
    let version = pods
        .list_metadata(&Default::default())
        .await
        .expect("pods can be listed")
        .metadata
        .resource_version;
    let began = Instant::now();
    let created = futures::stream::iter(names).for_each_concurrent(AT_ONCE, |name| async move {
        pods.create(&PostParams::default(), &pod(name))
            .await
            .unwrap_or_else(|error| panic!("creating {name}: {error}"));
    });
    let running = async {
        let mut left: std::collections::BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let mut events = pods
            .watch(&WatchParams::default(), &version.unwrap_or_default())
            .await
            .expect("pods can be watched")
            .boxed();
        while !left.is_empty() {
            let event = events
                .try_next()
                .await
                .expect("the watch goes on")
                .expect("the watch does not end");
            if let kube::api::WatchEvent::Modified(pod) | kube::api::WatchEvent::Added(pod) = event
            {
                let phase = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref());
                if phase == Some("Running") {
                    left.remove(pod.metadata.name.as_deref().unwrap_or_default());
                }
            }
        }
        began.elapsed()
    };
    let ((), elapsed) = tokio::join!(created, running);
    elapsed
}

async fn remove(pods: &Api<Pod>, name: &str) {
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete(name, &now)
        .await
        .unwrap_or_else(|error| panic!("deleting {name}: {error}"));
    while pods.get_opt(name).await.is_ok_and(|pod| pod.is_some()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": "worker-1",
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "backend", "image": "backend:v0.0.1" }],
        },
    }))
    .expect("a pod")
}

/// Runs the image with containerd's own client, to where its process runs; then removes it.
fn ctr_run(cluster: &Cluster, name: &str) -> Duration {
    let worker = cluster.workers().next().expect("there is a worker");
    let ctr = || {
        let mut command: Command = worker.command("ctr");
        command
            .arg("--address")
            .arg(worker.containerd_socket())
            .args(["--namespace", "k8s.io"]);
        command
    };
    let name = format!("ctr-{name}");
    let began = Instant::now();
    let run = |command: &mut Command| {
        kernelet_tests::command::output(command).unwrap_or_else(|error| panic!("{error}"))
    };
    run(ctr().args(["run", "--detach", IMAGE, &name]));
    let elapsed = began.elapsed();
    run(ctr().args(["task", "delete", "--force", &name]));
    run(ctr().args(["container", "delete", &name]));
    elapsed
}
