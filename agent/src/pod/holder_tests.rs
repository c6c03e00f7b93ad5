//! Containers that share their processes, on a real containerd.

use serde_json::json;

use super::holder;
use super::testing::node::{Node, is_ready, spec, told};
use crate::runtime::{ContainerState, Runtime};

#[tokio::test(flavor = "multi_thread")]
async fn containers_see_each_others_processes_whatever_becomes_of_agents_and_of_the_first_process()
{
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    let look = r#"
        [ $$ = 1 ] && echo "is the first"
        echo "first: $(cat /proc/1/comm)"
        until grep -l neighbour /proc/[0-9]*/root/mark 2>/dev/null; do sleep 0.05; done
        ls /proc/1/root/etc || echo "nothing to see"
        kill -9 1; kill -0 1 && echo "the first lives"
        echo seen; exec sleep 1000
    "#;
    let mut pair = spec(look, "Always");
    pair["shareProcessNamespace"] = json!(true);
    let neighbour = json!({
        "name": "neighbour", "image": "busybox:test",
        "args": ["echo neighbour > /mark; exec sleep 1000"],
    });
    pair["containers"].as_array_mut().unwrap().push(neighbour);
    node.api.create("pair", pair);
    node.api.wait("pair", "ready", is_ready).await;
    let log = node.log("pair", "main", 0, "seen").await;
    for text in ["first: holder", "/root/mark", "the first lives"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert!(!log.contains("is the first"), "{log}");

    let before = node.pids().await;
    assert_eq!(before.len(), 3);
    assert_eq!(agent.table().list()[0].containers.len(), 2, "not shown");
    drop(agent);
    let agent = node.agent();
    for _ in 0..1500 {
        if agent.table().list().iter().any(|pod| pod.ready) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(node.pids().await, before, "all of them ran on");

    let client = node.daemon.client();
    let containers = client.list().await.unwrap();
    let first = containers.iter().find(|it| it.name == holder::NAME);
    client
        .signal(&first.unwrap().id, libc::SIGKILL)
        .await
        .unwrap();
    node.api
        .wait("pair", "started again", |status| {
            let mut all = status.container_statuses.iter().flatten();
            is_ready(status) && all.all(|it| it.restart_count == 1)
        })
        .await;
    told(&node, "SandboxChanged").await;
    node.log("pair", "main", 1, "seen").await;

    drop(agent);
    node.api.remove("pair");
    let _agent = node.agent();
    for _ in 0..1500 {
        if client.list().await.unwrap().is_empty() && node.left_on_disk().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let left = client.list().await.unwrap();
    let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
    let running = left.iter().filter(|it| running(&it.state)).count();
    panic!("{running} run; {left:?} {:?}", node.left_on_disk());
}
