//! DaemonSets on nodes that come and go.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};

use super::*;

/// Waits until the set's pods are ready on exactly these nodes, with this image.
async fn runs_on(cluster: &Cluster, nodes: &[&str], image: &str) {
    let pods: Api<Pod> = cluster.default_namespace();
    until("each node has its pod", async || {
        let mut on = Vec::new();
        for pod in list(&pods, "app=log").await {
            let spec = pod.spec.clone()?;
            if spec.containers[0].image.as_deref() != Some(image)
                || pod.metadata.deletion_timestamp.is_some()
                || !crate::controllers::pods::is_ready(&pod)
            {
                return None;
            }
            on.push(spec.node_name?);
        }
        on.sort();
        (on == nodes).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_follow_nodes_and_their_template() {
    let cluster = Cluster::new(&["node-1", "node-2"]).await;
    let set = cluster
        .apply::<DaemonSet>(json!({
            "metadata": {"name": "log"},
            "spec": {
                "selector": {"matchLabels": {"app": "log"}},
                "template": {
                    "metadata": {"labels": {"app": "log"}},
                    "spec": {"containers": [{"name": "c", "image": "log:1"}]},
                },
            },
        }))
        .await;
    runs_on(&cluster, &["node-1", "node-2"], "log:1").await;
    cluster.join("node-3").await;
    runs_on(&cluster, &["node-1", "node-2", "node-3"], "log:1").await;
    let sets: Api<DaemonSet> = cluster.default_namespace();
    let newer =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "log:2"}]}}}});
    sets.patch("log", &PatchParams::default(), &Patch::Strategic(newer))
        .await
        .unwrap();
    runs_on(&cluster, &["node-1", "node-2", "node-3"], "log:2").await;
    until("the status says so", async || {
        let set = sets.get("log").await.unwrap();
        let status = set.status.clone()?;
        let all = status.updated_number_scheduled == Some(3) && status.number_available == Some(3);
        (all && status.observed_generation == set.metadata.generation).then_some(())
    })
    .await;
    let revisions: Api<ControllerRevision> = cluster.default_namespace();
    let kept = list(&revisions, "app=log").await;
    let mut numbers: Vec<i64> = kept.iter().map(|one| one.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    let owner = &kept[0].metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(Some(&owner.uid), set.metadata.uid.as_ref());
}
