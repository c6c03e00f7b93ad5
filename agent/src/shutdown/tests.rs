//! Shutdowns as a logind tells them, on a bus of the test's own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Watcher;
use super::bus::fake::{Daemon, Logind, Order};
use super::order::Steps;
use crate::events::Events;
use crate::node::status::{Health, Part};
use crate::pod::spec::PodView;
use crate::pod::{ContainerSummary, Demand, Demands, PodSummary, PodTable, TERMINATED};

/// Longer than anything here takes; nothing depends on how long.
const PATIENCE: Duration = Duration::from_secs(60);

fn put(pods: &PodTable, name: &str, priority: i32, state: &str) {
    let object = json!({
        "metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {"priority": priority, "terminationGracePeriodSeconds": 600, "containers": [{"name": "c"}]},
    });
    let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
    pods.show(
        &Arc::new(pod),
        &Arc::new(serde_json::from_value(json!({"phase": "Running"})).unwrap()),
    );
    pods.put(PodSummary {
        uid: name.into(),
        containers: vec![ContainerSummary {
            state: state.into(),
            ..ContainerSummary::default()
        }],
        ..PodSummary::default()
    });
}

fn client() -> kube::Client {
    let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        Ok::<_, std::convert::Infallible>(http::Response::new(body))
    });
    kube::Client::new(nobody, "default")
}

struct Node {
    pods: PodTable,
    demanded: mpsc::Receiver<Demand>,
    health: watch::Receiver<Health>,
    told: watch::Receiver<Part>,
    _watcher: AbortOnDropHandle<()>,
}

fn node(bus: &Path, config: &Path) -> Node {
    let (demands, demanded) = Demands::channel();
    let (health, health_seen) = watch::channel(Health::default());
    let (told, told_seen) = watch::channel(Part::Up);
    told.send_replace(Part::Down("it begins".into()));
    let pods = PodTable::default();
    let seconds = SignedDuration::from_secs;
    let watcher = Watcher {
        bus: bus.to_owned(),
        logind_config: config.to_owned(),
        steps: Steps::of(seconds(600), seconds(100)).unwrap(),
        node: "n".into(),
        pods: pods.clone(),
        demands,
        health,
        told,
        events: Events::start(client(), "kubelet", "n".into()),
    };
    Node {
        pods,
        demanded,
        health: health_seen,
        told: told_seen,
        _watcher: AbortOnDropHandle::new(tokio::spawn(watcher.run())),
    }
}

async fn until<T>(what: &str, seen: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, seen.wait_for(wanted)).await;
    assert!(waited.is_ok_and(|seen| seen.is_ok()), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_pods_that_end_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let Some(daemon) = Daemon::start(directory.path()).await else {
        return;
    };
    let config = directory.path().join("logind.conf.d/99-kernelet.conf");
    let (orders, mut locks) = Logind::start(&daemon, config.clone()).await;
    let mut node = node(&daemon.socket, &config);
    until("it makes shutdowns wait", &mut node.told, |told| {
        *told == Part::Up
    })
    .await;
    assert_eq!(*locks.borrow(), 1);
    let written = std::fs::read_to_string(&config).unwrap();
    assert!(written.contains("InhibitDelayMaxSec=600\n"), "{written}");

    put(
        &node.pods,
        "critical",
        crate::pod::spec::SYSTEM_CRITICAL,
        "running",
    );
    put(&node.pods, "web", 0, "running");
    put(&node.pods, "db", 10, "running");
    orders.send(Order::Prepare(true)).await.unwrap();
    until("the node is not ready", &mut node.health, |it| {
        it.is_shutting_down
    })
    .await;
    assert_eq!(node.demanded.recv().await, Some(Demand::ShutDown(true)));
    let mut first = Vec::new();
    for _ in 0..2 {
        let Some(Demand::Evict { uid, eviction }) = node.demanded.recv().await else {
            panic!("{first:?}");
        };
        assert_eq!(eviction.reason, TERMINATED);
        first.push(uid);
    }
    first.sort();
    assert_eq!(first, ["db", "web"]);
    assert_eq!(*locks.borrow(), 1);

    // The critical one has its turn when, and not before, the others have ended.
    let early = Arc::new(AtomicBool::new(true));
    let (is_early, pods) = (early.clone(), node.pods.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        is_early.store(false, SeqCst);
        put(&pods, "web", 0, "Completed");
        put(&pods, "db", 10, "Completed");
    });
    let Some(Demand::Evict { uid, .. }) = node.demanded.recv().await else {
        panic!("nothing more");
    };
    assert_eq!((uid.as_str(), early.load(SeqCst)), ("critical", false));
    put(
        &node.pods,
        "critical",
        crate::pod::spec::SYSTEM_CRITICAL,
        "Completed",
    );
    until("the machine may go down", &mut locks, |locks| *locks == 0).await;

    orders.send(Order::Prepare(false)).await.unwrap();
    until("the next one waits, too", &mut locks, |locks| *locks == 1).await;
    until("the node is ready", &mut node.health, |it| {
        !it.is_shutting_down
    })
    .await;
    assert_eq!(node.demanded.recv().await, Some(Demand::ShutDown(false)));
}

#[tokio::test]
async fn without_logind_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let none = directory.path().join("none");
    let mut node = node(&none, &directory.path().join("config"));
    let is_said = |told: &Part| matches!(told, Part::Down(why) if why.contains("no D-Bus at"));
    until("it is said", &mut node.told, is_said).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_begins_in_the_middle_of_a_shutdown_goes_on_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some(daemon) = Daemon::start(directory.path()).await else {
        return;
    };
    let config = directory.path().join("config");
    let (orders, mut locks) = Logind::start(&daemon, config.clone()).await;
    orders.send(Order::Prepare(true)).await.unwrap();
    let mut node = node(&daemon.socket, &config);
    until("the node is not ready", &mut node.health, |it| {
        it.is_shutting_down
    })
    .await;
    until("nobody is waited for", &mut locks, |locks| *locks == 0).await;
}
