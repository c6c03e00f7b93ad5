//! Images of many pods at once, from a registry, by a real containerd.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::pull::AT_ONCE;
use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use crate::runtime::testing::registry::Registry;

/// More than are pulled at once.
const PODS: usize = AT_ONCE + 3;
/// Longer than anything here takes; nothing depends on how long.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(waiting: &mut watch::Receiver<usize>, count: usize) {
    let is_so = waiting.wait_for(|waiting| *waiting == count);
    let waited = tokio::time::timeout(PATIENCE, is_so).await.map(drop);
    assert!(waited.is_ok(), "{} pulls, not {count}", *waiting.borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_images_are_pulled_at_once_and_the_others_wait_their_turn() {
    let Some(node) = Node::new().await else {
        return;
    };
    let registry = Registry::start(&node.daemon.path().join("images/busybox.tar")).await;
    let mut waiting = registry.waiting();
    let _agent = node.agent();
    let names: Vec<String> = (0..PODS)
        .map(|number| format!("pulling-{number}"))
        .collect();
    for name in &names {
        let mut pod = spec(FOREVER, "Always");
        pod["containers"][0]["image"] = json!(format!("{}/{name}:1", registry.address));
        node.api.create(name, pod);
    }
    until(&mut waiting, AT_ONCE).await;
    // All have begun, and those that are not at the registry by now wait for the others.
    for name in &names {
        let image = format!("{}/{name}:1", registry.address);
        told(&node, &format!("Pulling: Pulling image \"{image}\"")).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*waiting.borrow(), AT_ONCE);

    // Whoever is done makes room for one.
    registry.let_go(1);
    let is_one_ready = || {
        let pods = names.iter().filter_map(|name| node.api.pod(name)?.status);
        pods.filter(is_ready).count() == 1
    };
    for _ in 0..1500 {
        if is_one_ready() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_one_ready());
    until(&mut waiting, AT_ONCE).await;
    registry.let_go(PODS - 1);
    for name in &names {
        node.api.wait(name, "ready", is_ready).await;
        let image = format!("{}/{name}:1", registry.address);
        let words = format!("Pulled: Successfully pulled image \"{image}\" in ");
        told(&node, &words).await;
    }
    for name in &names {
        node.api.delete(name, 0);
    }
    for name in &names {
        node.api.wait_gone(name).await;
    }
}
