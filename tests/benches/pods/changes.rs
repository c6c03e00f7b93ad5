//! How soon others know: of a container's end, the API; of a pod's readiness, the kernel.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_ebpf::abi::{ABI_VERSION, Scope, ServiceKey, TCP};
use k8s_openapi::api::core::v1::{Pod, Service};
use kernelet::dataplane::Maps;
use kernelet_tests::{Cluster, Node, host};
use kube::api::{Api, Patch, PatchParams, PostParams};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::api::{Pods, next, pod};
use crate::common::Report;

const ENDS: usize = 30;
const CHANGES: usize = 50;
/// How long a change may take before the benchmark gives up.
const LIMIT: Duration = Duration::from_secs(30);
/// Apart, so that one change is over before the next.
const PAUSE: Duration = Duration::from_millis(100);
/// What the pod waits for beside its containers.
const GATE: &str = "kernelet.io/bench";

/// Kills containers' processes, one after another, and waits for the status that says so.
pub async fn ends(cluster: &Cluster, pods: &Pods, report: &mut Report) {
    let node = cluster.workers().next().expect("there is a worker");
    let names: Vec<String> = (0..ENDS).map(|number| format!("end-{number}")).collect();
    let mut wanted: Vec<Pod> = names.iter().map(|name| pod(name)).collect();
    for spec in wanted.iter_mut().filter_map(|pod| pod.spec.as_mut()) {
        spec.restart_policy = Some("Never".to_owned());
    }
    pods.start_all(&wanted).await;
    let mut events = pods.watch().await;
    let mut samples = Vec::new();
    for name in &names {
        tokio::time::sleep(PAUSE).await;
        let present = pods.api.get(name).await.expect("the pod exists");
        let pid = first_process(node, &present.metadata.uid.unwrap_or_default());
        let began = Instant::now();
        kill_process(pid, Signal::KILL).expect("it runs");
        loop {
            let pod = next(&mut events).await;
            let status = pod.status.unwrap_or_default();
            let mut containers = status.container_statuses.into_iter().flatten();
            let ended =
                containers.any(|it| it.state.is_some_and(|state| state.terminated.is_some()));
            if ended && pod.metadata.name.as_deref() == Some(name) {
                break;
            }
        }
        samples.push(began.elapsed());
    }
    pods.remove(&names).await;
    report.add_latency(
        "container's end to status in the API",
        0,
        &mut samples,
        &["p50", "p90"],
        "ms",
    );
}

/// The only process of the pod.
fn first_process(node: &Node, uid: &str) -> Pid {
    let mount = host::cgroup2_mount().unwrap_or_else(|error| panic!("{error}"));
    let mut pending = vec![mount.join(&node.cgroup)];
    while let Some(directory) = pending.pop() {
        if directory.to_string_lossy().contains(uid)
            && let Ok(text) = host::read(directory.join("cgroup.procs"))
            && let Some(pid) = text.lines().next().and_then(|line| line.parse().ok())
        {
            return Pid::from_raw(pid).expect("processes have positive ids");
        }
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        pending.extend(directories.map(|entry| entry.path()));
    }
    panic!("pod {uid} has no process in its cgroup");
}

/// Changes the condition that a readiness gate names, and waits until the service has as many backends in the kernel.
pub async fn readiness(cluster: &Cluster, pods: &Pods, report: &mut Report) {
    let name = "gated";
    let mut gated = pod(name);
    gated.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
    if let Some(spec) = &mut gated.spec {
        let gates = json!([{ "conditionType": GATE }]);
        spec.readiness_gates = serde_json::from_value(gates).expect("gates");
    }
    pods.start_all(&[gated]).await;
    let services: Api<Service> = Api::default_namespaced(pods.client.clone());
    let service = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    }));
    let (post, service) = (PostParams::default(), service.expect("a service"));
    let service = services.create(&post, &service).await;
    let service = service.expect("the service can be created");
    let address = service
        .spec
        .and_then(|spec| spec.cluster_ip)
        .expect("it has an address");
    let address: std::net::Ipv4Addr = address.parse().expect("of IPv4");
    let key = ServiceKey {
        address: address.into(),
        port: 80u16.to_be_bytes(),
        protocol: TCP,
        scope: Scope::CLUSTER,
    };
    let maps = Maps::open(&pins(cluster)).unwrap_or_else(|error| panic!("{error}"));
    let mut samples = Vec::new();
    for change in 0..CHANGES {
        let is_ready = change % 2 == 0;
        let patch = json!({ "status": { "conditions": [{
            "type": GATE,
            "status": if is_ready { "True" } else { "False" },
        }] } });
        let began = Instant::now();
        let parameters = PatchParams::default();
        let patch = Patch::Strategic(&patch);
        let patched = pods.api.patch_status(name, &parameters, &patch);
        let seen = async {
            let wanted = u32::from(is_ready);
            while !matches!(maps.service(&key), Ok(Some(entry)) if entry.ready == wanted) {
                assert!(
                    began.elapsed() < LIMIT,
                    "the change never came into the maps"
                );
                tokio::task::yield_now().await;
            }
            began.elapsed()
        };
        let (patched, elapsed) = tokio::join!(patched, seen);
        patched.unwrap_or_else(|error| panic!("{name}: {error}"));
        samples.push(elapsed);
        tokio::time::sleep(PAUSE).await;
    }
    services
        .delete(name, &Default::default())
        .await
        .expect("the service can be deleted");
    pods.remove(&[name.to_owned()]).await;
    let case = "readiness change, PATCH sent, to kernel map";
    report.add_latency(case, 0, &mut samples, &["p50", "p90"], "ms");
}

fn pins(cluster: &Cluster) -> PathBuf {
    Path::new("/sys/fs/bpf")
        .join(&cluster.spec.prefix)
        .join("worker-1")
        .join(format!("v{ABI_VERSION}"))
}
