//! A quota counts what is there, refuses what is too much, and makes room when something goes.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, ResourceQuota, Secret};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::{Cluster, list, until};

/// Until the quota says that so much is used of something.
async fn used(cluster: &Cluster, name: &str, amount: &str) {
    let quotas = cluster.default_namespace::<ResourceQuota>();
    until(&format!("{amount} of {name} is used"), || async {
        let status = quotas.get("q").await.unwrap().status?;
        let used = status.used?.get(name)?.0.clone();
        (used == amount).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_holds_a_deployment_back_until_there_is_room() {
    let cluster = Cluster::new(&["n1"]).await;
    let hard = json!({"pods": "2", "requests.cpu": "1", "secrets": "5"});
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    cluster.apply::<ResourceQuota>(quota).await;
    used(&cluster, "pods", "0").await;

    let web: Value = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{
                "name": "c", "image": "good", "resources": {"requests": {"cpu": "100m"}},
            }]},
        }},
    });
    cluster.apply::<Deployment>(web).await;
    used(&cluster, "pods", "2").await;
    used(&cluster, "requests.cpu", "200m").await;
    let events = cluster.default_namespace::<Event>();
    until("the refusal is told", || async {
        let all = list(&events, "").await;
        let told = |event: &Event| {
            let message = event.message.as_deref().unwrap_or_default();
            message.contains("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2")
        };
        all.iter().any(told).then_some(())
    })
    .await;
    let pods = cluster.default_namespace::<Pod>();
    assert_eq!(list(&pods, "app=web").await.len(), 2);

    let quotas = cluster.default_namespace::<ResourceQuota>();
    let more = Patch::Merge(json!({"spec": {"hard": {"pods": "3"}}}));
    let params = PatchParams::default();
    quotas.patch("q", &params, &more).await.unwrap();
    until("there is room for the third", || async {
        (list(&pods, "app=web").await.len() == 3).then_some(())
    })
    .await;
    used(&cluster, "pods", "3").await;

    // What goes makes room, be it of a kind that a controller follows or not.
    let background = DeleteParams::background();
    let deployments = cluster.default_namespace::<Deployment>();
    deployments.delete("web", &background).await.unwrap();
    used(&cluster, "pods", "0").await;
    used(&cluster, "requests.cpu", "0").await;
    let secret = json!({"metadata": {"name": "s"}});
    cluster.apply::<Secret>(secret).await;
    used(&cluster, "secrets", "1").await;
    let secrets = cluster.default_namespace::<Secret>();
    secrets.delete("s", &background).await.unwrap();
    used(&cluster, "secrets", "0").await;
}
