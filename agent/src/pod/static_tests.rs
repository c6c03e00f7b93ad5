//! Pods from files and their mirrors, against a real containerd.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::spec::{CONFIG_HASH, CONFIG_MIRROR};
use super::testing::node::{FOREVER, Node, is_ready, spec};
use crate::runtime::{ContainerState, Runtime};

pub(super) const NAME: &str = "static-node-1";

pub(super) fn manifest(script: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static"},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [{"name": "main", "image": "busybox:test", "args": [script]}],
        },
    })
    .to_string()
}

impl Node {
    /// Puts the file of a pod, whole at once.
    pub(super) fn put_manifest(&self, text: Option<&str>) {
        let directory = self.daemon.path().join("manifests");
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("static.yaml");
        match text {
            Some(text) => {
                let draft = directory.join(".draft");
                std::fs::write(&draft, text).unwrap();
                std::fs::rename(draft, file).unwrap();
            }
            None => std::fs::remove_file(file).unwrap(),
        }
    }

    pub(super) async fn running(&self) -> Vec<String> {
        let all = self.daemon.client().list().await.unwrap();
        let running = all
            .into_iter()
            .filter(|container| matches!(container.state, ContainerState::Running { .. }));
        running.map(|container| container.id).collect()
    }

    pub(super) async fn mirror(&self, wanted: impl Fn(&Pod) -> bool) -> Pod {
        for _ in 0..1500 {
            if let Some(pod) = self.api.pod(NAME)
                && wanted(&pod)
            {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        panic!("the mirror is not as wanted: {:?}", self.api.pod(NAME));
    }
}

pub(super) fn ready(pod: &Pod) -> bool {
    is_ready(&pod.status.clone().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_file_outlives_its_mirror_and_its_agent_and_goes_with_its_file() {
    let Some(node) = Node::new().await else {
        return;
    };
    node.put_manifest(Some(&manifest(FOREVER)));
    let agent = node.agent();
    let first = node.mirror(ready).await;
    let annotations = first.metadata.annotations.clone().unwrap();
    assert_eq!(annotations[CONFIG_MIRROR], annotations[CONFIG_HASH]);
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(
        first.spec.as_ref().unwrap().node_name.as_deref(),
        Some("node-1")
    );
    let running = node.running().await;
    assert_eq!(running.len(), 1);

    // Whether it is deleted gently or by force, there is a new one, and the pod goes on.
    let other = |before: &Pod| {
        let uid = before.metadata.uid.clone();
        move |pod: &Pod| pod.metadata.uid != uid && ready(pod)
    };
    node.api.delete(NAME, 30);
    let second = node.mirror(other(&first)).await;
    node.api.remove(NAME);
    let third = node.mirror(other(&second)).await;
    assert_eq!(node.running().await, running);

    // Another agent takes the pod over, and the mirror with it. What was a pod's whose file is gone goes.
    drop(agent);
    let _agent = node.agent();
    let third = node
        .mirror(|pod| pod.metadata.uid == third.metadata.uid && ready(pod))
        .await;
    assert_eq!(node.running().await, running);

    // Another content is another pod, which begins when the first one has ended.
    node.put_manifest(Some(&manifest(&format!("{FOREVER} # again"))));
    let fourth = node.mirror(other(&third)).await;
    let hash = |pod: &Pod| pod.metadata.annotations.as_ref().unwrap()[CONFIG_HASH].clone();
    assert_ne!(hash(&fourth), hash(&first));
    let now = node.running().await;
    assert!(now.len() == 1 && now != running, "{now:?}");

    node.put_manifest(None);
    node.api.wait_gone(NAME).await;
    for _ in 0..500 {
        if node.left_on_disk().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
    assert_eq!(node.daemon.client().list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_whose_file_went_while_no_agent_ran_goes_with_its_pod() {
    let Some(node) = Node::new().await else {
        return;
    };
    node.put_manifest(Some(&manifest(FOREVER)));
    let agent = node.agent();
    node.mirror(ready).await;
    drop(agent);
    node.put_manifest(None);
    let _agent = node.agent();
    node.api.wait_gone(NAME).await;
    for _ in 0..1000 {
        if node.daemon.client().list().await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(node.daemon.client().list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_annotation_makes_a_pod_of_the_api_one_of_a_file_or_a_mirror() {
    let Some(node) = Node::new().await else {
        return;
    };
    let annotated = |key: &'static str, value: &'static str| {
        move |pod: &mut serde_json::Value| pod["metadata"]["annotations"][key] = value.into()
    };
    node.api.create("annotated", spec(FOREVER, "Always"));
    let source = annotated("kubernetes.io/config.source", "file");
    node.api.change("annotated", source);
    let _agent = node.agent();
    node.api.wait("annotated", "ready", is_ready).await;
    node.api
        .change("annotated", annotated(CONFIG_MIRROR, "a-hash"));
    // A change that is heard after that one.
    node.api.create("later-plain", spec(FOREVER, "Always"));
    node.api.wait("later-plain", "ready", is_ready).await;
    assert!(node.api.pod("annotated").is_some());
    assert_eq!(node.running().await.len(), 2);
    node.api.delete("later-plain", 1);
    node.api.delete("annotated", 1);
    node.api.wait_gone("annotated").await;
    node.api.wait_gone("later-plain").await;
    assert_eq!(node.running().await, Vec::<String>::new());
}
