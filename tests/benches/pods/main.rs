//! What a node's work with pods costs: from POST to Running beside the same containerd driven by `ctr run` and through CRI, one
//! at a time and many at once; processor time; an end until the API says so; readiness until the kernel knows.

mod api;
mod changes;
mod cri;
mod ctr;
mod spent;

use std::time::Duration;

use common::{Report, client};
use futures::future::join_all;
use kernelet_tests::{Cluster, Node, Spec};

use api::Pods;
use cri::Cri;
use spent::Spent;

#[path = "../common/mod.rs"]
mod common;

const IMAGE: &str = "docker.io/library/backend:v0.0.1";
const ONE_AT_A_TIME: usize = 30;
/// How many at once, and how often.
const AT_ONCE: [(usize, usize); 2] = [(30, 3), (110, 2)];
/// After many pods went the kernel takes their namespaces apart and containerd collects their snapshots: a round begins when
/// that is done.
const REST: Duration = Duration::from_secs(5);
/// How long idle pods are watched.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_PODS: usize = 110;

const NOTES: &str = "\
kernelet: from before the POST of a bound pod until a watch says Running; network and service account token included.
ctr run: from before the program starts until it has ended; no network, no log.
CRI: RunPodSandbox, CreateContainer, StartContainer; the network by the CNI plugins ptp and host-local; no API, no token.
CPU: user and kernel time of a start and its removal; node: agent or client, containerd, shims, runc, log writers.";

fn main() {
    let mut spec = Spec::scenario("kbp", 120, 1);
    // To the agent the image of CRI's sandboxes is of no use.
    spec.agent_args = vec!["--image-gc-high-threshold=100".to_owned()];
    let cluster = Cluster::up(spec, |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(measure(&cluster));
    cluster.down().unwrap_or_else(|error| panic!("{error}"));
    report.finish();
    println!("\n{NOTES}");
}

/// What starts and removes containers of the image.
enum Driver<'a> {
    Kernelet(Box<Pods>),
    Ctr(&'a Node),
    Cri(Box<Cri>),
}

impl Driver<'_> {
    fn name(&self) -> &'static str {
        match self {
            Driver::Kernelet(_) => "kernelet",
            Driver::Ctr(_) => "ctr run",
            Driver::Cri(_) => "CRI",
        }
    }

    /// Starts one for each name, all at once, and gives how long each took.
    async fn start(&self, names: &[String]) -> Vec<Duration> {
        match self {
            Driver::Kernelet(pods) => pods.start(names).await,
            Driver::Ctr(node) => join_all(names.iter().map(|name| ctr::run(node, name))).await,
            Driver::Cri(cri) => join_all(names.iter().map(|name| cri.start(name))).await,
        }
    }

    /// Removes them, and waits until they have gone.
    async fn remove(&self, names: &[String]) {
        match self {
            Driver::Kernelet(pods) => pods.remove(names).await,
            Driver::Ctr(node) => {
                join_all(names.iter().map(|name| ctr::remove(node, name))).await;
            }
            Driver::Cri(cri) => {
                join_all(names.iter().map(|name| cri.remove(name))).await;
            }
        }
    }
}

async fn measure(cluster: &Cluster) -> Report {
    let mut report = Report::new("pods");
    let node = cluster.workers().next().expect("there is a worker");
    let pods = || async { Pods::new(client(cluster).await) };
    let drivers = [
        Driver::Kernelet(Box::new(pods().await)),
        Driver::Ctr(node),
        Driver::Cri(Box::new(Cri::new(node).await)),
    ];
    // The first of each pays for what is cached afterwards.
    for driver in &drivers {
        let names = ["warm-up".to_owned()];
        driver.start(&names).await;
        driver.remove(&names).await;
    }
    one_at_a_time(cluster, &drivers, &mut report).await;
    for (count, rounds) in AT_ONCE {
        at_once(&drivers, count, rounds, &mut report).await;
    }
    idle(cluster, &pods().await, &mut report).await;
    changes::ends(cluster, &pods().await, &mut report).await;
    changes::readiness(cluster, &pods().await, &mut report).await;
    report
}

async fn one_at_a_time(cluster: &Cluster, drivers: &[Driver<'_>; 3], report: &mut Report) {
    let mut samples = [const { Vec::new() }; 3];
    let mut costs = [Spent::default(); 3];
    for number in 0..ONE_AT_A_TIME {
        let names = [format!("one-{number}")];
        for (index, driver) in drivers.iter().enumerate() {
            let before = Spent::now(cluster);
            samples[index].extend(driver.start(&names).await);
            driver.remove(&names).await;
            costs[index] += Spent::now(cluster) - before;
        }
    }
    let case = |driver: &Driver| format!("{}, one at a time", driver.name());
    for (driver, samples) in drivers.iter().zip(&mut samples) {
        report.add_latency(&case(driver), 0, samples, &["p50", "p90"], "ms");
    }
    for peer in &drivers[1..] {
        report.add_ratio(&case(&drivers[0]), &case(peer), 0, "p50");
    }
    for (driver, cost) in drivers.iter().zip(costs) {
        let is_ours = matches!(driver, Driver::Kernelet(_));
        let mut add = |part, time: Duration| {
            let each = time.as_secs_f64() / ONE_AT_A_TIME as f64;
            let case = format!("{}, CPU a pod: {part}", driver.name());
            report.add(case, 0, "mean", each, "s");
        };
        add("node", cost.node);
        if is_ours {
            add("agent of that", cost.agent);
            add("control plane", cost.control_plane);
        }
    }
}

async fn at_once(drivers: &[Driver<'_>], count: usize, rounds: usize, report: &mut Report) {
    for driver in drivers {
        let case = format!("{}, {count} at once", driver.name());
        let (mut samples, mut wholes) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            tokio::time::sleep(REST).await;
            let names: Vec<String> = (0..count)
                .map(|number| format!("many-{count}-{round}-{number}"))
                .collect();
            let round = driver.start(&names).await;
            wholes.extend(round.iter().max().copied());
            samples.extend(round);
            driver.remove(&names).await;
        }
        report.add_latency(&case, 0, &mut samples, &["p50", "p90"], "ms");
        let whole = common::percentile(&mut wholes, 50).as_secs_f64() * 1e3;
        report.add(case, 0, "all, median", whole, "ms");
    }
}

/// What pods cost that do nothing.
async fn idle(cluster: &Cluster, pods: &Pods, report: &mut Report) {
    let watch = || async {
        tokio::time::sleep(REST).await;
        let before = Spent::now(cluster);
        tokio::time::sleep(IDLE).await;
        Spent::now(cluster) - before
    };
    let without = watch().await;
    let names: Vec<String> = (0..IDLE_PODS)
        .map(|number| format!("idle-{number}"))
        .collect();
    pods.start(&names).await;
    let with = watch().await;
    pods.remove(&names).await;
    let hours = IDLE.as_secs_f64() / 3600.0;
    for (part, with, without) in [
        ("agent", with.agent, without.agent),
        ("node", with.node, without.node),
    ] {
        let (with, without) = (with.as_secs_f64(), without.as_secs_f64());
        report.add(
            format!("{part}, CPU an idle hour without pods"),
            0,
            "mean",
            without / hours,
            "s",
        );
        let more = (with - without).max(0.0) / hours / IDLE_PODS as f64;
        report.add(
            format!("{part}, CPU an idle pod-hour, of {IDLE_PODS}"),
            0,
            "mean",
            more,
            "s",
        );
    }
}
