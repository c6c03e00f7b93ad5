//! StatefulSets: one pod after the other, each with a name and a claim that stay.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::*;

/// Waits until the set's pods are these, ready and of this image; gives when each was made.
async fn runs(cluster: &Cluster, names: &[&str], image: &str) -> Vec<k8s_openapi::jiff::Timestamp> {
    let pods: Api<Pod> = cluster.default_namespace();
    until("the pods are there", async || {
        let mut found = Vec::new();
        for pod in list(&pods, "app=db").await {
            let spec = pod.spec.clone()?;
            if spec.containers[0].image.as_deref() != Some(image)
                || pod.metadata.deletion_timestamp.is_some()
                || !crate::controllers::pods::is_ready(&pod)
            {
                return None;
            }
            found.push((pod.name_any(), pod.metadata.creation_timestamp?.0));
        }
        found.sort();
        let (known, times): (Vec<String>, Vec<_>) = found.into_iter().unzip();
        (known == names).then_some(times)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn stateful_pods_keep_their_names_and_claims() {
    let cluster = Cluster::new(&["node-1", "node-2"]).await;
    cluster
        .apply::<StatefulSet>(json!({
            "metadata": {"name": "db"},
            "spec": {
                "replicas": 3,
                "serviceName": "db",
                "selector": {"matchLabels": {"app": "db"}},
                "template": {
                    "metadata": {"labels": {"app": "db"}},
                    "spec": {"containers": [{"name": "c", "image": "db:1"}]},
                },
            },
        }))
        .await;
    let made = runs(&cluster, &["db-0", "db-1", "db-2"], "db:1").await;
    assert!(made.is_sorted(), "one after the other: {made:?}");
    let sets: Api<StatefulSet> = cluster.default_namespace();
    let patch = async |patch: serde_json::Value| {
        sets.patch("db", &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .unwrap()
    };
    let newer = json!({"template": {"spec": {"containers": [{"name": "c", "image": "db:2"}]}}});
    patch(json!({"spec": newer})).await;
    let made = runs(&cluster, &["db-0", "db-1", "db-2"], "db:2").await;
    assert!(
        made.iter().rev().is_sorted(),
        "the last one first: {made:?}"
    );
    patch(json!({"spec": {"replicas": 1}})).await;
    runs(&cluster, &["db-0"], "db:2").await;
    until("the status says so", async || {
        let set = sets.get("db").await.unwrap();
        let status = set.status.clone()?;
        let all = status.replicas == 1 && status.available_replicas == Some(1);
        let done = status.current_revision == status.update_revision;
        (all && done && status.observed_generation == set.metadata.generation).then_some(())
    })
    .await;
}

/// Pods that wait for storage which nobody here provides.
#[tokio::test(flavor = "multi_thread")]
async fn claims_go_with_their_set_where_it_says_so() {
    let cluster = Cluster::new(&[]).await;
    cluster
        .apply::<StatefulSet>(json!({
            "metadata": {"name": "db"},
            "spec": {
                "replicas": 2,
                "podManagementPolicy": "Parallel",
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"},
                "selector": {"matchLabels": {"app": "db"}},
                "template": {
                    "metadata": {"labels": {"app": "db"}},
                    "spec": {"containers": [{"name": "c", "image": "db:1"}]},
                },
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}},
                    },
                }],
            },
        }))
        .await;
    let claims: Api<PersistentVolumeClaim> = cluster.default_namespace();
    let names = async || {
        let all = list(&claims, "").await;
        let mut names: Vec<String> = all.iter().map(|claim| claim.name_any()).collect();
        names.sort();
        (names, all)
    };
    until("each pod has its claim, and the set owns it", async || {
        let (names, all) = names().await;
        let owned = all.iter().all(|claim| !claim.owner_references().is_empty());
        (names == ["data-db-0", "data-db-1"] && owned).then_some(())
    })
    .await;
    let sets: Api<StatefulSet> = cluster.default_namespace();
    sets.delete("db", &DeleteParams::background())
        .await
        .unwrap();
    until("the claims are gone", async || {
        names().await.0.is_empty().then_some(())
    })
    .await;
}
