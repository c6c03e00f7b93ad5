//! A node that shuts down, as logind tells it, with pods on a real containerd.

use std::fs;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use crate::events::Events;
use crate::node::status::{Health, Part};
use crate::shutdown::bus::fake::{Daemon, Logind, Order};
use crate::shutdown::{Steps, Watcher};

/// Longer than anything here takes; nothing depends on how long.
const PATIENCE: Duration = Duration::from_secs(60);

const WORDS: &str = "Pod was terminated in response to imminent node shutdown.";

async fn until<T>(what: &str, seen: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, seen.wait_for(wanted)).await;
    assert!(waited.is_ok_and(|seen| seen.is_ok()), "{what}");
}

fn is_terminated(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some("Terminated")
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_node_shuts_down_pods_end_the_critical_last_and_no_new_one_begins() {
    let Some(node) = Node::new().await else {
        return;
    };
    let Some(bus) = Daemon::start(node.daemon.path()).await else {
        return;
    };
    let config = node.daemon.path().join("logind.conf");
    let (orders, mut locks) = Logind::start(&bus, config.clone()).await;
    let agent = node.agent();
    let (health, mut healthy) = watch::channel(Health::default());
    let (told_of, mut waits) = watch::channel(Part::Down("it begins".into()));
    let seconds = SignedDuration::from_secs;
    let watcher = Watcher {
        bus: bus.socket.clone(),
        logind_config: config,
        steps: Steps::of(seconds(600), seconds(100)).unwrap(),
        node: "node-1".into(),
        pods: agent.table().clone(),
        demands: agent.demands(),
        health,
        told: told_of,
        events: Events::start(node.api.client(), "kubelet", "node-1".into()),
    };
    let _watcher = AbortOnDropHandle::new(tokio::spawn(watcher.run()));
    until("shutdowns wait", &mut waits, |part| *part == Part::Up).await;

    let gate = node.daemon.path().join("gate");
    fs::create_dir(&gate).unwrap();
    let with = |script: &str, priority: i32| -> Value {
        let mut pod = spec(script, "Always");
        pod["priority"] = json!(priority);
        pod["terminationGracePeriodSeconds"] = json!(600);
        pod["volumes"] = json!([{"name": "gate", "hostPath": {"path": gate}}]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "gate", "mountPath": "/gate"}]);
        pod
    };
    let slow = "trap 'while [ ! -e /gate/open ]; do sleep 0.05; done; exit 0' TERM; \
        while :; do sleep 0.05; done";
    node.api.create("down-web", with(FOREVER, 0));
    node.api.create("down-slow", with(slow, 10));
    node.api
        .create("down-critical", with(FOREVER, 2_000_001_000));
    for name in ["down-web", "down-slow", "down-critical"] {
        node.api.wait(name, "ready", is_ready).await;
    }
    let mut done = with("true", 0);
    done["restartPolicy"] = json!("Never");
    node.api.create("down-done", done);
    let is_done = |status: &PodStatus| status.phase.as_deref() == Some("Succeeded");
    node.api.wait("down-done", "done", is_done).await;

    orders.send(Order::Prepare(true)).await.unwrap();
    until("the node is not ready", &mut healthy, |it| {
        it.is_shutting_down
    })
    .await;
    told(
        &node,
        "NodeShutdown: Shutdown manager detected shutdown event",
    )
    .await;
    let status = node.api.wait("down-web", "terminated", is_terminated).await;
    assert_eq!(status.message.as_deref(), Some(WORDS));
    let mut conditions = status.conditions.iter().flatten();
    let disrupted = conditions
        .find(|it| it.type_ == "DisruptionTarget")
        .unwrap();
    assert_eq!(
        (disrupted.status.as_str(), disrupted.reason.as_deref()),
        ("True", Some("TerminationByKubelet"))
    );
    assert_eq!(disrupted.message.as_deref(), Some(WORDS));
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(
        ended.terminated.unwrap().exit_code,
        0,
        "it was asked, not killed"
    );

    // Nobody begins any more.
    node.api.create("down-late", spec(FOREVER, "Always"));
    let is_refused = |status: &PodStatus| status.reason.as_deref() == Some("NodeShutdown");
    let status = node.api.wait("down-late", "refused", is_refused).await;
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: Pod was rejected as the node is shutting down.")
    );

    // As long as one of the first group takes its time, the second goes on.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let critical = node.api.pod("down-critical").unwrap().status.unwrap();
    assert!(is_ready(&critical), "{critical:?}");
    assert_eq!(*locks.borrow(), 1, "the machine waits");
    fs::write(gate.join("open"), "").unwrap();
    for name in ["down-slow", "down-critical"] {
        let status = node.api.wait(name, "terminated", is_terminated).await;
        assert_eq!(status.message.as_deref(), Some(WORDS));
    }
    until("the machine may go down", &mut locks, |locks| *locks == 0).await;
    let status = node.api.pod("down-done").unwrap().status.unwrap();
    assert!(is_done(&status) && status.reason.is_none(), "{status:?}");

    // It is called off.
    orders.send(Order::Prepare(false)).await.unwrap();
    until("the node is ready", &mut healthy, |it| !it.is_shutting_down).await;
    told(
        &node,
        "NodeShutdown: Shutdown manager detected shutdown cancellation",
    )
    .await;
    node.api.create("down-next", spec(FOREVER, "Always"));
    node.api.wait("down-next", "ready", is_ready).await;
    for name in [
        "down-web",
        "down-slow",
        "down-critical",
        "down-done",
        "down-late",
        "down-next",
    ] {
        node.api.delete(name, 0);
        node.api.wait_gone(name).await;
    }
}
