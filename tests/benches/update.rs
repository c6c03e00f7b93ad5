//! From an EndpointSlice change to the map entry in the kernel, the first full sync, and what both halves of that take of
//! memory, at 10 to 50,000 services.
//!
//! A change is timed from before its request is sent, so the figure holds the API's own write to disk too.

mod common;

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_ebpf::abi::{Scope, ServiceKey, TCP, maps as names};
use aya::maps::MapInfo;
use common::{Report, client, services};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kernelet::dataplane::Maps;
use kernelet_tests::{Cluster, Program, Spec};
use kube::api::{Api, ListParams, PostParams};
use rustix::process::Signal;

const SERVICES: [u64; 4] = [10, 1_000, 10_000, 50_000];
/// What the maps need room for: three backends a service.
const ROOM: &str = "--max-services=131072";
const CHANGES: u64 = 300;
const WORKER: &str = "worker-1";
/// How long a sync may take before the benchmark gives up.
const LIMIT: Duration = Duration::from_secs(120);
/// How long memory may settle.
const SETTLE: Duration = Duration::from_secs(3);

fn main() {
    let mut spec = Spec::scenario("kbu", 122, 1);
    spec.agent_args = vec![ROOM.to_owned()];
    let mut cluster = Cluster::up(spec, |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut report = Report::new("update");
    let mut existing = 0;
    for count in SERVICES {
        runtime.block_on(async {
            services::create(&client(&cluster).await, existing..count).await;
        });
        existing = count;
        let keys = runtime.block_on(keys(&cluster));
        await_all(&cluster, &keys);
        let mut samples = runtime.block_on(change(&cluster, &keys));
        report.add_latency(
            "request sent to map entry",
            count,
            &mut samples,
            &["p50", "p99"],
            "ms",
        );
        report.add(
            "agent start to first full sync",
            count,
            "once",
            restart(&mut cluster, &keys).as_secs_f64(),
            "s",
        );
        memory(&cluster, count, &mut report);
    }
    cluster.down().unwrap_or_else(|error| panic!("{error}"));
    report.finish();
}

/// The address of every service, by its number.
async fn keys(cluster: &Cluster) -> Vec<ServiceKey> {
    let api: Api<Service> = Api::default_namespaced(client(cluster).await);
    let mut numbered: Vec<(u64, ServiceKey)> = api
        .list(&ListParams::default())
        .await
        .expect("services can be listed")
        .into_iter()
        .filter_map(|service| {
            let number = services::number(service.metadata.name.as_deref()?)?;
            let address: std::net::Ipv4Addr = service.spec?.cluster_ip?.parse().ok()?;
            Some((
                number,
                ServiceKey {
                    address: address.into(),
                    port: 80u16.to_be_bytes(),
                    protocol: TCP,
                    scope: Scope::CLUSTER,
                },
            ))
        })
        .collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, key)| key).collect()
}

fn pins(cluster: &Cluster) -> PathBuf {
    let version = format!("v{}", agent_ebpf::abi::ABI_VERSION);
    Path::new("/sys/fs/bpf")
        .join(&cluster.spec.prefix)
        .join(WORKER)
        .join(version)
}

fn await_all(cluster: &Cluster, keys: &[ServiceKey]) {
    let deadline = Instant::now() + LIMIT;
    let wait = || {
        assert!(
            Instant::now() < deadline,
            "not every service came into the maps"
        );
        std::thread::sleep(Duration::from_millis(1));
    };
    let maps = loop {
        match Maps::open(&pins(cluster)) {
            Ok(maps) => break maps,
            Err(_) => wait(),
        }
    };
    for key in keys {
        while !matches!(maps.service(key), Ok(Some(entry)) if entry.ready == 3) {
            wait();
        }
    }
}

/// Changes one slice after another, and gives how long each took to be in the kernel.
async fn change(cluster: &Cluster, keys: &[ServiceKey]) -> Vec<Duration> {
    let api: Api<EndpointSlice> = Api::default_namespaced(client(cluster).await);
    let maps = Maps::open(&pins(cluster)).unwrap_or_else(|error| panic!("{error}"));
    let generation = |key| {
        maps.service(key)
            .ok()
            .flatten()
            .map(|entry| entry.generation)
    };
    let mut samples = Vec::new();
    for change in 0..CHANGES {
        // A stride that is prime to the counts visits services far from each other.
        let number = change * 7 % keys.len() as u64;
        let name = services::name(number);
        let present = api.get(&name).await.expect("the slice exists");
        let last = present
            .endpoints
            .last()
            .and_then(|endpoint| endpoint.addresses.first());
        let variant = u64::from(last == services::slice(number, 0).endpoints[2].addresses.first());
        let mut next = services::slice(number, variant);
        next.metadata.resource_version = present.metadata.resource_version;

        let before = generation(&keys[number as usize]);
        let began = Instant::now();
        let post = PostParams::default();
        let replace = api.replace(&name, &post, &next);
        let watch = async {
            while generation(&keys[number as usize]) == before {
                assert!(
                    began.elapsed() < LIMIT,
                    "the change of {name} never came into the maps"
                );
                tokio::task::yield_now().await;
            }
            began.elapsed()
        };
        let (replaced, elapsed) = tokio::join!(replace, watch);
        replaced.unwrap_or_else(|error| panic!("{name}: {error}"));
        samples.push(elapsed);
    }
    samples
}

/// What the maps and the agent take.
fn memory(cluster: &Cluster, services: u64, report: &mut Report) {
    std::thread::sleep(SETTLE);
    let maps: u64 = names::ALL
        .iter()
        .map(|name| map_bytes(&pins(cluster).join(name)))
        .sum();
    report.add("maps", services, "kernel memory", maps as f64 / 1e6, "MB");
    let resident = cluster.resident().into_iter();
    for (_, program, bytes) in resident.filter(|row| row.1 == "kernelet") {
        report.add(program, services, "resident", bytes as f64 / 1e6, "MB");
    }
}

/// By the kernel's own count.
fn map_bytes(pin: &Path) -> u64 {
    let info = MapInfo::from_pin(pin).expect("the map is pinned");
    let map = info.fd().expect("the map can be opened");
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).expect("the descriptor is open");
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok())
        .expect("the kernel counts it")
}

/// Starts the agent anew with empty maps, and gives the time until every service is in them.
fn restart(cluster: &mut Cluster, keys: &[ServiceKey]) -> Duration {
    cluster
        .kill(WORKER, Program::Agent, Signal::TERM)
        .unwrap_or_else(|error| panic!("{error}"));
    std::fs::remove_dir_all(pins(cluster)).unwrap_or_else(|error| panic!("{error}"));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let seen = cluster.clone();
        let synced = scope.spawn(move || {
            await_all(&seen, keys);
            began.elapsed()
        });
        cluster
            .restart(WORKER, Program::Agent)
            .unwrap_or_else(|error| panic!("{error}"));
        synced.join().expect("the services came into the maps")
    })
}
