//! The node's keeper and the pods' workers together, against a real containerd.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::full_disk_tests::Disk;
use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use super::{Manager, Paths};
use crate::events::Events;
use crate::housekeeping::eviction::{Pressures, Rules};
use crate::housekeeping::images::ImageRules;
use crate::housekeeping::keeper::Keeper;
use crate::housekeeping::signal::{BySignal, thresholds};
use crate::node::status::Health;
use crate::runtime::Runtime;
use crate::runtime::containerd::Containerd;
use crate::runtime::testing::{busybox_archive, relay};
use crate::testing::steps::{Cut, Moment, Steps};

/// Longer than anything here takes; nothing depends on how long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a small file system.
const INODES: u32 = 400;

/// Keeps the node by these hard thresholds, images included where they take any room at all.
fn keep(
    node: &Node,
    agent: &Manager,
    hard: &str,
) -> (AbortOnDropHandle<()>, watch::Receiver<Health>) {
    keep_by(node, agent, hard, node.daemon.client())
}

fn keep_by(
    node: &Node,
    agent: &Manager,
    hard: &str,
    runtime: Containerd,
) -> (AbortOnDropHandle<()>, watch::Receiver<Health>) {
    let (keeper, seen) = keeper(node, agent, hard, runtime);
    (AbortOnDropHandle::new(tokio::spawn(keeper.run())), seen)
}

fn keeper(
    node: &Node,
    agent: &Manager,
    hard: &str,
    runtime: Containerd,
) -> (Keeper, watch::Receiver<Health>) {
    let none = BySignal::default();
    let thresholds = Rules::thresholds(
        &thresholds(hard).unwrap(),
        &BySignal::default(),
        &BySignal::default(),
        &none,
    );
    let (health, seen) = watch::channel(Health::default());
    let keeper = Keeper {
        period: Duration::from_millis(200),
        node: "node-1".into(),
        root_dir: node.daemon.path().into(),
        paths: Paths::new(
            node.daemon.path().into(),
            node.daemon.path().join("run"),
            node.daemon.cgroup(),
        ),
        pods: agent.table().clone(),
        runtime: Arc::new(runtime),
        demands: agent.demands(),
        rules: Rules {
            thresholds: thresholds.unwrap(),
            max_pod_grace: SignedDuration::ZERO,
            transition: SignedDuration::from_secs(300),
        },
        image_rules: ImageRules {
            high_threshold: 0,
            low_threshold: 0,
            min_age: SignedDuration::ZERO,
        },
        health,
        events: Events::start(node.api.client(), "kubelet", "node-1".into()),
    };
    (keeper, seen)
}

fn is_evicted(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some("Evicted")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_outgrows_its_limit_takes_its_pod_with_it_and_no_other() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    let (_keeper, mut health) = keep(&node, &agent, "");
    let pod = |bytes: u32| {
        let script = format!("head -c {bytes} /dev/urandom >/cache/file; {FOREVER}");
        let mut pod = spec(&script, "Always");
        pod["volumes"] = json!([{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
        pod
    };
    node.api.create("modest", pod(1 << 10));
    node.api.create("greedy", pod(1 << 22));
    let status = node.api.wait("greedy", "evicted", is_evicted).await;
    assert_eq!(
        status.message.as_deref(),
        Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ")
    );
    node.api.wait("modest", "ready", is_ready).await;

    // An image that was put here is shown, and stays, however full its file system is said to be.
    let shown = health.wait_for(|health| !health.images.is_empty()).await;
    let names = shown.unwrap().images[0].names.clone();
    assert_eq!(names, ["docker.io/library/busybox:test"]);
    told(
        &node,
        "FreeDiskSpaceFailed: Failed to garbage collect required amount of images.",
    )
    .await;
    assert_eq!(node.daemon.client().images().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_short_of_memory_evicts_one_pod_after_the_other_and_takes_no_new_one() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    let with = |priority: i32| {
        let mut pod = spec(FOREVER, "Always");
        pod["priority"] = json!(priority);
        pod
    };
    for (name, priority) in [("low", -1), ("high", 1), ("critical", 2_000_000_000)] {
        node.api.create(name, with(priority));
        node.api.wait(name, "ready", is_ready).await;
    }
    let mut changes = node.api.changes();
    let (_keeper, mut health) = keep(&node, &agent, "memory.available<100%");
    node.api.wait("high", "evicted", is_evicted).await;
    let order = evicted_in_order(&mut changes);
    assert_eq!(order, ["low", "high"], "the lower priority goes first");
    let status = node.api.pod("low").unwrap().status.unwrap();
    let message = status.message.unwrap();
    let start = "The node was low on resource: memory. Threshold quantity: ";
    assert!(message.starts_with(start), "{message}");
    let end = ", request is 0, has larger consumption of memory. ";
    assert!(message.ends_with(end), "{message}");
    told(&node, "EvictionThresholdMet: Attempting to reclaim memory").await;
    let shown = health.wait_for(|health| health.pressures.memory).await;
    let only_memory = Pressures {
        memory: true,
        ..Pressures::default()
    };
    assert_eq!(shown.unwrap().pressures, only_memory);

    node.api.create("late", spec(FOREVER, "Always"));
    let status = node.api.wait("late", "refused", is_evicted).await;
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: The node had condition: [MemoryPressure]. ")
    );
    let critical = node.api.pod("critical").unwrap().status.unwrap();
    assert!(is_ready(&critical));
}

/// The names of pods in the order in which they were evicted.
fn evicted_in_order(changes: &mut broadcast::Receiver<Value>) -> Vec<String> {
    let mut order = Vec::new();
    while let Ok(change) = changes.try_recv() {
        let object = &change["object"];
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if object["status"]["reason"] == "Evicted" && !order.contains(&name) {
            order.push(name);
        }
    }
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_short_of_processes_evicts_who_has_the_most_of_the_least_priority() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    for (name, priority, processes) in [
        ("pids-few", 0, 1),
        ("pids-many", 0, 20),
        ("pids-prized", 1, 40),
    ] {
        let script = format!(
            "n=0; while [ $n -lt {processes} ]; do n=$((n+1)); sleep 1000 & done; echo forked; {FOREVER}"
        );
        let mut pod = spec(&script, "Always");
        pod["priority"] = json!(priority);
        node.api.create(name, pod);
        node.log(name, "main", 0, "forked").await;
        node.api.wait(name, "ready", is_ready).await;
    }
    let mut changes = node.api.changes();
    let (_keeper, mut health) = keep(&node, &agent, "pid.available<100%");
    node.api.wait("pids-prized", "evicted", is_evicted).await;
    assert_eq!(
        evicted_in_order(&mut changes),
        ["pids-many", "pids-few", "pids-prized"]
    );
    let status = node.api.pod("pids-many").unwrap().status.unwrap();
    let message = status.message.unwrap();
    let (most, available) = message
        .strip_prefix("The node was low on resource: pids. Threshold quantity: ")
        .and_then(|rest| rest.strip_suffix(". ")?.split_once(", available: "))
        .unwrap_or_else(|| panic!("{message}"));
    assert_ne!(most, available, "some have been taken");
    told(&node, "EvictionThresholdMet: Attempting to reclaim pids").await;
    let shown = health.wait_for(|health| health.pressures.pid).await;
    let only_processes = Pressures {
        pid: true,
        ..Pressures::default()
    };
    assert_eq!(shown.unwrap().pressures, only_processes);
    node.api.create("pids-late", spec(FOREVER, "Always"));
    let status = node.api.wait("pids-late", "refused", is_evicted).await;
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: The node had condition: [PIDPressure]. ")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_is_short_of_inodes_is_freed_of_the_pod_that_has_the_most_files() {
    let Some(node) = Node::new().await else {
        return;
    };
    let place = |name: &str| node.daemon.path().join(name);
    let snapshotter = place("root/io.containerd.snapshotter.v1.overlayfs");
    let _layers = Disk::new(snapshotter.clone(), 64 << 10, INODES);
    std::fs::create_dir(snapshotter.join("snapshots")).unwrap();
    let _pods = Disk::new(place("pods"), 1 << 10, INODES);
    let agent = node.agent();
    // In volumes, and in containers' own layers.
    for (signal, directory, root_dir) in [
        ("nodefs.inodesFree", "/cache", place("pods")),
        ("imagefs.inodesFree", "/own", node.daemon.path().into()),
    ] {
        let kind = signal.split('.').next().unwrap();
        let [few, many] = ["few", "many"].map(|name| format!("{name}-{kind}"));
        for (name, files) in [(&few, 10), (&many, INODES * 5 / 8)] {
            let script = format!(
                "busybox mkdir -p {directory}; n=0; while [ $n -lt {files} ]; do n=$((n+1)); : >{directory}/$n; done; \
                 echo wrote; {FOREVER}"
            );
            let mut pod = spec(&script, "Always");
            pod["volumes"] = json!([{"name": "cache", "emptyDir": {}}]);
            pod["containers"][0]["volumeMounts"] =
                json!([{"name": "cache", "mountPath": "/cache"}]);
            node.api.create(name, pod);
            node.log(name, "main", 0, "wrote").await;
            node.api.wait(name, "ready", is_ready).await;
        }
        let hard = format!("{signal}<50%");
        let (mut keeper, mut health) = keeper(&node, &agent, &hard, node.daemon.client());
        keeper.root_dir = root_dir;
        keeper.rules.transition = SignedDuration::ZERO;
        let _keeper = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
        let status = node.api.wait(&many, "evicted", is_evicted).await;
        let message = status.message.unwrap();
        let start = format!(
            "The node was low on resource: inodes. Threshold quantity: {}, available: ",
            INODES / 2
        );
        assert!(message.starts_with(&start), "{message}");
        assert!(!message.contains("Container"), "{message}");
        told(&node, "EvictionThresholdMet: Attempting to reclaim inodes").await;
        // What it wrote goes with it, and the pressure with that.
        let is_well = |health: &Health| !health.pressures.disk;
        let freed = tokio::time::timeout(PATIENCE, health.wait_for(is_well)).await;
        assert!(freed.is_ok_and(|freed| freed.is_ok()), "{signal}");
        let status = node.api.pod(&few).unwrap().status.unwrap();
        assert!(is_ready(&status), "{status:?}");
        for name in [&few, &many] {
            node.api.delete(name, 0);
            node.api.wait_gone(name).await;
        }
    }
}

/// A keeper collects an image that has two names and that nobody uses, and is killed at this step; gives its steps.
async fn collect(node: &Node, agent: &Manager, cut: Option<Cut>) -> Vec<String> {
    let archive = node.daemon.path().join("spare.tar");
    busybox_archive(&archive, "spare:one", json!({"Cmd": ["/bin/true"]}));
    let client = node.daemon.client();
    client.import(&archive).await.unwrap();
    let [one, two] = ["one", "two"].map(|tag| format!("docker.io/library/spare:{tag}"));
    node.daemon.ctr(&["images", "tag", &one, &two]);
    for name in [&one, &two] {
        let unpinned = "io.cri-containerd.pinned=";
        node.daemon.ctr(&["images", "label", name, unpinned]);
    }
    let steps = Arc::<Steps>::default();
    let socket = node.daemon.path().join("keeper.sock");
    let _ = std::fs::remove_file(&socket);
    let relay = relay::start(&socket, &node.daemon.socket(), steps.clone());
    steps.begin(cut);
    let (keeper, _health) = keep_by(node, agent, "", node.daemon.client_at(&socket));
    let gone = async {
        while client.images().await.unwrap().len() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = gone => {}
        () = steps.cut_off() => {}
    }
    drop((keeper, relay));
    steps.taken()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_be_killed_after_each_step_of_collecting_images() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    node.api.create("user", spec(FOREVER, "Always"));
    node.api.wait("user", "ready", is_ready).await;
    let before = node.daemon.stored();
    let steps = collect(&node, &agent, None).await;
    let deletions = steps.iter().filter(|step| *step == "Images/Delete").count();
    assert!(deletions >= 2, "one for each name: {steps:?}");
    for nth in 0..deletions {
        for moment in [Moment::During, Moment::After] {
            let step = "Images/Delete".to_owned();
            let cut = Cut { step, nth, moment };
            collect(&node, &agent, Some(cut.clone())).await;
            let (_keeper, _health) = keep(&node, &agent, "");
            for _ in 0..500 {
                if node.daemon.stored() == before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
            assert_eq!(node.daemon.stored(), before, "{cut:?}");
        }
    }
    let status = node.api.pod("user").unwrap().status.unwrap();
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!((is_ready(&status), container.restart_count), (true, 0));
    node.api.delete("user", 0);
    node.api.wait_gone("user").await;
}
