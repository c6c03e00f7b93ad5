//! What nodes keep back from their pods, and what each pod may have of processes, as flags of the agent say.

use kernelet_tests::host;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::{Value, json};

use crate::application::REPAIR;
use crate::workloads::{apply, bound, uid};

/// What the agents of the scenario are told.
pub(crate) const FLAGS: [&str; 3] = [
    "--kube-reserved=cpu=150m,memory=64Mi",
    "--system-reserved=cpu=100m",
    "--pod-max-pids=765",
];
const RESERVED_MILLIS: u64 = 250;
const RESERVED_BYTES: u64 = 64 << 20;
const MAX_PIDS: &str = "765\n";

/// An amount of CPU in thousandths.
fn millis(amount: &Value) -> u64 {
    let text = amount.as_str().unwrap();
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().unwrap(),
        None => text.parse::<u64>().unwrap() * 1000,
    }
}

/// An amount of memory in bytes, as nodes write it.
fn bytes(amount: &Value) -> u64 {
    let text = amount.as_str().unwrap();
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let found = units
        .iter()
        .find_map(|(unit, shift)| Some(text.strip_suffix(unit)?.parse::<u64>().unwrap() << shift));
    found.unwrap_or_else(|| text.parse().unwrap())
}

pub(crate) fn what_is_reserved_is_not_for_pods(scenario: &Scenario) {
    let node = "worker-1";
    let status = scenario.get(&format!("node {node}"))["status"].clone();
    let [all, left] = ["capacity", "allocatable"].map(|kind| &status[kind]);
    let cpu = millis(&all["cpu"]);
    assert_eq!(millis(&left["cpu"]), cpu - RESERVED_MILLIS);
    // The hard threshold of eviction keeps some, too.
    let kept = bytes(&all["memory"]) - bytes(&left["memory"]);
    assert_eq!(kept, RESERVED_BYTES + (100 << 20));

    // What is left fits to the last thousandth, and nothing beyond it.
    let asks = |name: &str, millis: u64| {
        let mut pod = bound(name, node, "exec /busybox sleep 3600");
        let requests = json!({ "requests": { "cpu": format!("{millis}m") } });
        pod["spec"]["containers"][0]["resources"] = requests;
        apply(scenario, &pod);
    };
    asks("fits", cpu - RESERVED_MILLIS);
    scenario.kubectl("wait --for=condition=Ready pod/fits --timeout=60s");
    asks("exceeds", 1);
    let refused = eventually("the pod is refused", REPAIR, || {
        let pod = scenario.get("pod exceeds");
        match pod["status"]["phase"] == "Failed" {
            true => Ok(pod["status"].clone()),
            false => Err(pod["status"].to_string()),
        }
    });
    let left = cpu - RESERVED_MILLIS;
    assert_eq!(refused["reason"], "OutOfcpu");
    assert_eq!(
        refused["message"],
        format!(
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1, used: {left}, capacity: {left}"
        )
    );

    let uid = uid(&scenario.get("pod fits"));
    let own = &scenario.node(node).unwrap().cgroup;
    let file = format!("{own}/kubepods/burstable/pod{uid}/pids.max");
    let mounts = host::cgroup_mounts().unwrap().into_iter();
    let limits: Vec<String> = mounts
        .filter_map(|mount| host::read(mount.join(&file)).ok())
        .collect();
    assert_eq!(limits, [MAX_PIDS]);
    scenario.kubectl("delete pod fits exceeds --timeout=60s");
}
