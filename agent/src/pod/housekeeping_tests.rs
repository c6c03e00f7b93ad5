//! The node's keeper and the pods' workers together, against a real containerd.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::tests::{FOREVER, Node, is_ready, spec, told};
use super::{Manager, Paths};
use crate::events::Events;
use crate::housekeeping::eviction::{Pressures, Rules};
use crate::housekeeping::images::ImageRules;
use crate::housekeeping::keeper::Keeper;
use crate::housekeeping::signal::{BySignal, thresholds};
use crate::node::status::Health;
use crate::runtime::Runtime;

/// Keeps the node by these hard thresholds, images included where they take any room at all.
fn keep(
    node: &Node,
    agent: &Manager,
    hard: &str,
) -> (AbortOnDropHandle<()>, watch::Receiver<Health>) {
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
        runtime: Arc::new(node.daemon.client()),
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
    (AbortOnDropHandle::new(tokio::spawn(keeper.run())), seen)
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
    let mut order = Vec::new();
    while let Ok(change) = changes.try_recv() {
        let object = &change["object"];
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if object["status"]["reason"] == "Evicted" && !order.contains(&name) {
            order.push(name);
        }
    }
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
