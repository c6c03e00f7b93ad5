//! Controllers' pods, a node's own pods, and a node that is short of disk, on real agents.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Cluster, Program, Spec, command, host};
use serde_json::{Value, json};

use crate::application::REPAIR;
use crate::reserve;

const NODES: [&str; 2] = ["worker-1", "worker-2"];
/// The node that gets a small disk.
const SMALL: &str = "worker-2";
/// What is evicted writes more than half of that.
const DISK: &str = "64m";

#[test]
fn workloads_and_the_nodes_own_pods_run_as_their_controllers_and_files_say() {
    let mut spec = Spec::scenario("khw", 114, 2);
    let manifests = spec.directory.join("manifests");
    spec.agent_args = vec![format!("--pod-manifest-path={}", manifests.display())];
    spec.agent_args.extend(reserve::FLAGS.map(str::to_owned));
    let Some(mut scenario) = Scenario::begin(spec) else {
        return;
    };
    reserve::what_is_reserved_is_not_for_pods(&scenario);
    a_daemon_set_has_a_pod_on_each_node(&scenario);
    a_stateful_sets_pods_come_and_go_in_order(&scenario);
    jobs_end_as_their_pods_do(&scenario);
    a_static_pod_outlives_its_mirror_and_goes_with_its_file(&scenario, &manifests);
    who_fills_the_disk_is_evicted(&mut scenario);
}

pub(crate) fn apply(scenario: &Scenario, object: &Value) {
    let mut kubectl = Cluster::kubectl(scenario);
    let command = kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = object.to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

/// A workload's template of pods that run the sample, as `app`.
fn template(app: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "backend",
                "image": "backend:v0.0.1",
                "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
            }],
        },
    })
}

/// The template of pods that run a line of the node's static busybox, and are not started again.
fn script(line: &str) -> Value {
    json!({ "spec": {
        "terminationGracePeriodSeconds": 1,
        "restartPolicy": "Never",
        "containers": [{
            "name": "main",
            "image": "backend:v0.0.1",
            "command": ["/busybox", "sh", "-c", line],
            "volumeMounts": [
                { "name": "busybox", "mountPath": "/busybox" },
                { "name": "scratch", "mountPath": "/scratch" },
            ],
        }],
        "volumes": [
            { "name": "busybox", "hostPath": { "path": "/bin/busybox", "type": "File" } },
            { "name": "scratch", "emptyDir": {} },
        ],
    } })
}

fn workload(kind: &str, name: &str, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": { "selector": { "matchLabels": { "app": name } }, "template": template(name) },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

pub(crate) fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
}

/// An object, if it is there.
fn find(scenario: &Scenario, what: &str) -> Option<Value> {
    let text = scenario.kubectl(&format!("get {what} --ignore-not-found -o json"));
    serde_json::from_str(&text).ok()
}

/// Until nothing of a label is left, on the nodes neither.
fn delete(scenario: &Scenario, what: &str) {
    scenario.kubectl(&format!("delete {what} --timeout=60s"));
    let app = what.rsplit('/').next().unwrap();
    scenario.kubectl(&format!("wait --for=delete pod -l app={app} --timeout=60s"));
}

/// A pod of a line of script that no scheduler has a say in.
pub(crate) fn bound(name: &str, node: &str, line: &str) -> Value {
    let mut pod = script(line);
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"] = json!({ "name": name });
    pod["spec"]["nodeName"] = json!(node);
    pod
}

fn a_daemon_set_has_a_pod_on_each_node(scenario: &Scenario) {
    apply(scenario, &workload("DaemonSet", "everywhere", json!({})));
    scenario.kubectl("rollout status daemonset everywhere --timeout=60s");
    let pods = || scenario.list("pods -l app=everywhere");
    let nodes: BTreeSet<String> = pods()
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(nodes, NODES.map(str::to_owned).into());

    let before: BTreeSet<String> = pods().iter().map(uid).collect();
    scenario.kubectl("set env daemonset everywhere CHANGED=yes");
    scenario.kubectl("rollout status daemonset everywhere --timeout=60s");
    let after: BTreeSet<String> = pods().iter().map(uid).collect();
    assert_eq!(after.len(), 2);
    assert!(before.is_disjoint(&after), "{before:?} {after:?}");
    delete(scenario, "daemonset/everywhere");
}

fn a_stateful_sets_pods_come_and_go_in_order(scenario: &Scenario) {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "ordered" },
        "spec": { "clusterIP": "None", "selector": { "app": "ordered" }, "ports": [{ "port": 8080 }] },
    });
    apply(scenario, &service);
    let more = json!({ "serviceName": "ordered", "replicas": 3 });
    apply(scenario, &workload("StatefulSet", "ordered", more));
    scenario.kubectl("rollout status statefulset ordered --timeout=60s");
    let pods = || scenario.list("pods -l app=ordered");
    let began = |number: usize| {
        let pod = scenario.get(&format!("pod ordered-{number}"));
        let state = &pod["status"]["containerStatuses"][0]["state"];
        let started = state["running"]["startedAt"].as_str();
        started.unwrap().to_owned()
    };
    let times: Vec<String> = (0..3).map(began).collect();
    assert!(times.is_sorted(), "one after another: {times:?}");

    // One that is deleted comes back under its name, and the others stay.
    let before = uid(&scenario.get("pod ordered-1"));
    let others = ["ordered-0", "ordered-2"].map(|name| uid(&scenario.get(&format!("pod {name}"))));
    scenario.kubectl("delete pod ordered-1 --timeout=60s");
    eventually("ordered-1 is another and Ready", REPAIR, || {
        match find(scenario, "pod ordered-1") {
            Some(pod) if uid(&pod) != before && is_ready(&pod) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let still = ["ordered-0", "ordered-2"].map(|name| uid(&scenario.get(&format!("pod {name}"))));
    assert_eq!(still, others);

    // Each has a name of its own in the cluster's DNS.
    let mut asks = script("/busybox wget -q -O - http://ordered-2.ordered:8080/healthz");
    asks["apiVersion"] = json!("v1");
    asks["kind"] = json!("Pod");
    asks["metadata"] = json!({ "name": "asks" });
    apply(scenario, &asks);
    eventually("a pod reaches ordered-2 by name", REPAIR, || {
        let pod = scenario.get("pod asks");
        match pod["status"]["phase"].as_str() {
            Some("Succeeded") => Ok(()),
            _ => Err(format!("{}", pod["status"])),
        }
    });
    assert_eq!(scenario.kubectl("logs asks"), "ok\n");
    scenario.kubectl("delete pod asks");

    scenario.kubectl("scale statefulset ordered --replicas=1");
    eventually("the first pod is left", REPAIR, || {
        let names: Vec<Value> = pods()
            .iter()
            .map(|pod| pod["metadata"]["name"].clone())
            .collect();
        match names == ["ordered-0"] {
            true => Ok(()),
            false => Err(format!("{names:?}")),
        }
    });
    delete(scenario, "statefulset/ordered");
    scenario.kubectl("delete service ordered");
}

fn jobs_end_as_their_pods_do(scenario: &Scenario) {
    let job = |name: &str, line: &str, more: Value| {
        let mut object = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
            "spec": { "template": script(line) },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        apply(scenario, &object);
    };
    let all = json!({ "completions": 3, "parallelism": 2, "completionMode": "Indexed" });
    job("counts", "echo I am $JOB_COMPLETION_INDEX", all);
    job("fails", "exit 3", json!({ "backoffLimit": 0 }));
    scenario.kubectl("wait --for=condition=Complete job/counts --timeout=60s");
    let said: BTreeSet<String> = scenario
        .list("pods -l job-name=counts")
        .iter()
        .map(|pod| {
            scenario.kubectl(&format!(
                "logs {}",
                pod["metadata"]["name"].as_str().unwrap()
            ))
        })
        .collect();
    let expected = [0, 1, 2].map(|index| format!("I am {index}\n"));
    assert_eq!(said, expected.into());

    scenario.kubectl("wait --for=condition=Failed job/fails --timeout=60s");
    let failed = scenario.get("job fails");
    let conditions = failed["status"]["conditions"].as_array().unwrap();
    let reason = conditions.iter().find(|it| it["type"] == "Failed").unwrap();
    assert_eq!(reason["reason"], "BackoffLimitExceeded");
    let pods = scenario.list("pods -l job-name=fails");
    let state = &pods[0]["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["exitCode"], 3, "{state}");
    scenario.kubectl("delete job counts fails");
}

fn a_static_pod_outlives_its_mirror_and_goes_with_its_file(scenario: &Scenario, manifests: &Path) {
    let mut pod = template("own");
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("own");
    host::create_dir(manifests).unwrap();
    // Whole at once, as agents may look at any time.
    let draft = manifests.join(".draft");
    host::write(&draft, pod.to_string()).unwrap();
    std::fs::rename(draft, manifests.join("own.json")).unwrap();

    let mirror = |node: &str| {
        eventually("the mirror is there and Ready", REPAIR, || {
            match find(scenario, &format!("pod own-{node}")) {
                Some(pod) if is_ready(&pod) => Ok(pod),
                other => Err(format!("{other:?}")),
            }
        })
    };
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let [first, _] = NODES.map(mirror);
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");

    scenario.kubectl("delete pod own-worker-1 --wait=false");
    let again = eventually("the mirror is another", REPAIR, || {
        match find(scenario, "pod own-worker-1") {
            Some(pod) if uid(&pod) != uid(&first) && is_ready(&pod) => Ok(pod),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(container(&again), container(&first), "it ran on");

    std::fs::remove_file(manifests.join("own.json")).unwrap();
    for node in NODES {
        scenario.kubectl(&format!("wait --for=delete pod own-{node} --timeout=60s"));
        eventually("the pod is gone from its node", REPAIR, || {
            let running = scenario.try_kernelet(node, "pod list")?;
            match running["pods"].as_array().is_some_and(Vec::is_empty) {
                true => Ok(()),
                false => Err(running.to_string()),
            }
        });
    }
}

/// Puts what the agent keeps on a file system of its own, and has it evict when half of that is full.
fn shrink_disk(scenario: &mut Scenario) {
    let kill = rustix::process::Signal::TERM;
    scenario.kill(SMALL, Program::Agent, kill).unwrap();
    let directory: PathBuf = scenario.node(SMALL).unwrap().directory.join("kernelet");
    let (at, kept) = (directory.display(), directory.with_extension("kept"));
    std::fs::rename(&directory, &kept).unwrap();
    host::create_dir(&directory).unwrap();
    command::run(&format!("mount -t tmpfs -o size={DISK} tmpfs {at}")).unwrap();
    command::run(&format!("cp -a {}/. {at}", kept.display())).unwrap();
    scenario.spec.agent_args.extend(
        [
            "--eviction-soft=nodefs.available<50%",
            "--eviction-soft-grace-period=nodefs.available=1s",
            "--eviction-pressure-transition-period=5s",
        ]
        .map(str::to_owned),
    );
    scenario.restart(SMALL, Program::Agent).unwrap();
}

fn condition(scenario: &Scenario, kind: &str) -> Value {
    let node = scenario.get(&format!("node {SMALL}"));
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|it| it["type"] == kind);
    found.unwrap()["status"].clone()
}

fn who_fills_the_disk_is_evicted(scenario: &mut Scenario) {
    shrink_disk(scenario);
    scenario.kubectl(&format!(
        "wait --for=condition=Ready node/{SMALL} --timeout=60s"
    ));
    let begin = |name: &str, line: &str| apply(scenario, &bound(name, SMALL, line));
    begin("modest", "exec /busybox sleep 3600");
    scenario.kubectl("wait --for=condition=Ready pod/modest --timeout=60s");
    begin(
        "greedy",
        "/busybox dd if=/dev/zero of=/scratch/file bs=1M count=36; exec /busybox sleep 3600",
    );
    let evicted = eventually("the greedy pod is evicted", REPAIR, || {
        let pod = scenario.get("pod greedy");
        let status = &pod["status"];
        match (status["reason"].as_str(), status["phase"].as_str()) {
            (Some("Evicted"), Some("Failed")) => Ok(pod),
            _ => Err(pod["status"].to_string()),
        }
    });
    let status = &evicted["status"];
    let message = status["message"].as_str().unwrap();
    let low = "The node was low on resource: ephemeral-storage. ";
    assert!(message.starts_with(low), "{message}");
    let conditions = status["conditions"].as_array().unwrap();
    let disrupted = conditions
        .iter()
        .find(|it| it["type"] == "DisruptionTarget");
    assert_eq!(disrupted.unwrap()["reason"], "TerminationByKubelet");
    let events =
        scenario.kubectl("get events --field-selector involvedObject.name=greedy,reason=Evicted");
    assert!(events.contains(low), "{events}");

    // What it wrote goes with it, and the pressure with that.
    eventually("the node has room again", REPAIR, || {
        match condition(scenario, "DiskPressure") == "False" {
            true => Ok(()),
            false => Err("DiskPressure".to_owned()),
        }
    });
    let modest = scenario.get("pod modest");
    assert!(is_ready(&modest), "{}", modest["status"]);
    eventually("the taint is gone", REPAIR, || {
        let taints = scenario.get(&format!("node {SMALL}"))["spec"]["taints"].clone();
        match taints.to_string().contains("disk-pressure") {
            false => Ok(()),
            true => Err(taints.to_string()),
        }
    });
}
