//! StatefulSets: one pod after the other, each with a name and a claim that stay.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use kube::api::PropagationPolicy;

use super::*;

/// Waits until the set's pods are these, ready and of this image.
async fn runs(cluster: &Cluster, names: &[&str], image: &str) {
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
            found.push(pod.name_any());
        }
        found.sort();
        (found == names).then_some(())
    })
    .await;
}

/// The names of pods in the order in which they are made, from now on.
fn made(cluster: &Cluster) -> Arc<Mutex<Vec<String>>> {
    let order = Arc::new(Mutex::new(Vec::new()));
    let (pods, seen): (Api<Pod>, _) = (cluster.default_namespace(), order.clone());
    let shutdown = cluster.shutdown.clone();
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut known = BTreeSet::new();
        let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()));
        while let Some(event) = events.next().await {
            if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event
                && known.insert(pod.metadata.uid.clone())
            {
                seen.lock().unwrap().push(pod.name_any());
            }
        }
    }));
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn stateful_pods_keep_their_names_and_claims() {
    let cluster = Cluster::new(&["node-1", "node-2"]).await;
    let order = made(&cluster);
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
    runs(&cluster, &["db-0", "db-1", "db-2"], "db:1").await;
    let sets: Api<StatefulSet> = cluster.default_namespace();
    let patch = async |patch: serde_json::Value| {
        sets.patch("db", &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .unwrap()
    };
    let newer = json!({"template": {"spec": {"containers": [{"name": "c", "image": "db:2"}]}}});
    patch(json!({"spec": newer})).await;
    runs(&cluster, &["db-0", "db-1", "db-2"], "db:2").await;
    let up_and_down = ["db-0", "db-1", "db-2", "db-2", "db-1", "db-0"];
    until("all were seen", async || {
        (order.lock().unwrap().len() == 6).then_some(())
    })
    .await;
    assert_eq!(*order.lock().unwrap(), up_and_down, "one after the other");
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

/// How people change what of a StatefulSet cannot be changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_is_made_anew_takes_its_pods_over() {
    let cluster = Cluster::new(&["node-1"]).await;
    let set = json!({
        "metadata": {"name": "db"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": "db:1"}]},
            },
        },
    });
    cluster.apply::<StatefulSet>(set.clone()).await;
    runs(&cluster, &["db-0", "db-1"], "db:1").await;
    let pods: Api<Pod> = cluster.default_namespace();
    let uids = async || {
        let pods = list(&pods, "app=db").await.into_iter();
        let uids: BTreeSet<_> = pods.filter_map(|pod| pod.metadata.uid).collect();
        uids
    };
    let before = uids().await;
    let sets: Api<StatefulSet> = cluster.default_namespace();
    let orphan = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    sets.delete("db", &orphan).await.unwrap();
    until("it is gone", async || {
        sets.get_opt("db").await.unwrap().is_none().then_some(())
    })
    .await;
    let made = cluster.apply::<StatefulSet>(set).await;
    until("the pods are its own, and of its revision", async || {
        let status = sets.get("db").await.unwrap().status?;
        let owned = list(&pods, "app=db").await.iter().all(|pod| {
            let owners = pod.owner_references();
            owners
                .iter()
                .any(|owner| Some(&owner.uid) == made.metadata.uid.as_ref())
        });
        let settled = status.updated_replicas == Some(2) && status.ready_replicas == Some(2);
        (owned && settled).then_some(())
    })
    .await;
    assert_eq!(uids().await, before, "none was made anew");
}
