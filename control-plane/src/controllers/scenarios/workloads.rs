//! Disruption budgets with their pods, and what becomes of the owned when their owner or namespace goes.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::EvictParams;
use kube::core::DynamicObject;
use kube::discovery::ApiResource;

use super::*;

fn template(restart: &str) -> serde_json::Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}], "restartPolicy": restart},
    })
}

/// Waits until the budget allows so many disruptions of so many pods.
async fn allows(cluster: &Cluster, name: &str, allowed: i32, healthy: i32) {
    let budgets: Api<PodDisruptionBudget> = cluster.default_namespace();
    until("the budget has seen its pods", async || {
        let status = budgets.get(name).await.unwrap().status?;
        let numbers = (status.disruptions_allowed, status.current_healthy);
        (numbers == (allowed, healthy)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_waits_for_its_budget() {
    let cluster = Cluster::new(&["node-1"]).await;
    cluster
        .apply::<Deployment>(json!({
            "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template("Always")},
        }))
        .await;
    let selector = json!({"matchLabels": {"app": "web"}});
    cluster
        .apply::<PodDisruptionBudget>(json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": 0, "selector": selector}}))
        .await;
    allows(&cluster, "web", 0, 2).await;
    let pods: Api<Pod> = cluster.default_namespace();
    let first = list(&pods, "app=web").await.remove(0).name_any();
    let refused = pods.evict(&first, &EvictParams::default()).await;
    let kube::Error::Api(status) = refused.unwrap_err() else {
        panic!("not the server's answer");
    };
    let cause = status.details.unwrap().causes.remove(0);
    assert_eq!(
        (status.code, &*cause.reason, &*cause.message),
        (
            429,
            "DisruptionBudget",
            "The disruption budget web needs 2 healthy pods and has 2 currently"
        )
    );
    let budgets: Api<PodDisruptionBudget> = cluster.default_namespace();
    let looser = json!({"spec": {"maxUnavailable": "50%"}});
    budgets
        .patch("web", &PatchParams::default(), &Patch::Merge(looser))
        .await
        .unwrap();
    allows(&cluster, "web", 1, 2).await;
    pods.evict(&first, &EvictParams::default()).await.unwrap();
    until("the pod is replaced", async || {
        let now = list(&pods, "app=web").await;
        now.iter().all(|pod| pod.name_any() != first).then_some(())
    })
    .await;
    allows(&cluster, "web", 1, 2).await;
}

/// One of each kind, as little as there may be of it.
fn workloads() -> Vec<serde_json::Value> {
    let selector = json!({"matchLabels": {"app": "web"}});
    let jobs = json!({"template": template("Never"), "suspend": true});
    vec![
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"replicas": 0, "selector": selector, "template": template("Always")}}),
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {"selector": selector, "template": template("Always")}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1, "data": {"a": "b"}}),
        json!({"apiVersion": "batch/v1", "kind": "Job", "spec": jobs}),
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"schedule": "@daily", "suspend": true, "jobTemplate": {"spec": jobs}}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "spec": {"minAvailable": 1, "selector": selector}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}}),
        json!({"apiVersion": "v1", "kind": "ReplicationController", "spec": {"replicas": 0, "template": template("Always")}}),
        json!({"apiVersion": "v1", "kind": "PodTemplate", "template": template("Always")}),
    ]
}

/// The objects of a workload's kind in a namespace.
fn api_of(cluster: &Cluster, object: &DynamicObject, namespace: &str) -> Api<DynamicObject> {
    let types = object.types.clone().unwrap();
    let (group, version) = types
        .api_version
        .rsplit_once('/')
        .unwrap_or(("", &types.api_version));
    let kind = kube::core::GroupVersionKind::gvk(group, version, &types.kind);
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(cluster.client.clone(), namespace, &resource)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_with_all_workloads_in_it() {
    let cluster = Cluster::new(&[]).await;
    let namespaces: Api<Namespace> = cluster.cluster_wide();
    let namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let mut objects = Vec::new();
    for mut object in workloads() {
        object["metadata"] = json!({"name": "web"});
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let api = api_of(&cluster, &object, "shop");
        api.create(&PostParams::default(), &object).await.unwrap();
        objects.push(api);
    }
    namespaces
        .delete("shop", &DeleteParams::default())
        .await
        .unwrap();
    until("the namespace is gone", async || {
        namespaces
            .get_opt("shop")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    for api in objects {
        assert_eq!(
            api.get_opt("web").await.unwrap(),
            None,
            "{}",
            api.resource_url()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_workload_owns_goes_with_it() {
    let cluster = Cluster::new(&[]).await;
    let pods: Api<Pod> = cluster.default_namespace();
    for mut object in workloads() {
        object["metadata"] = json!({"name": "web"});
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let api = api_of(&cluster, &object, "default");
        let made = api.create(&PostParams::default(), &object).await.unwrap();
        let types = object.types.unwrap();
        let owned = json!({
            "metadata": {"name": "owned", "ownerReferences": [
                {"apiVersion": types.api_version, "kind": types.kind, "name": "web", "uid": made.metadata.uid},
            ]},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]},
        });
        cluster.apply::<Pod>(owned).await;
        api.delete("web", &DeleteParams::background())
            .await
            .unwrap();
        until("the owned pod is gone", async || {
            pods.get_opt("owned").await.unwrap().is_none().then_some(())
        })
        .await;
    }
}

/// No watch tells of an event, nor of an owner that goes before the watch of its kind begins.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_owned_by_an_object_that_nobody_watches_goes_with_it() {
    let cluster = Cluster::new(&[]).await;
    let events: Api<Event> = cluster.default_namespace();
    let owner = cluster
        .apply::<Event>(json!({
            "metadata": {"name": "owner"}, "type": "Normal", "reason": "Test", "message": "an owner",
            "involvedObject": {"kind": "Namespace", "name": "default", "namespace": "default"},
        }))
        .await;
    let owned = json!({
        "metadata": {"name": "owned", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Event", "name": "owner", "uid": owner.metadata.uid},
        ]},
    });
    cluster.apply::<ConfigMap>(owned).await;
    let maps: Api<ConfigMap> = cluster.default_namespace();
    // Time enough to find the owner there.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(maps.get_opt("owned").await.unwrap().is_some());
    events
        .delete("owner", &DeleteParams::default())
        .await
        .unwrap();
    until("the owned object is gone", async || {
        maps.get_opt("owned").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_controller_has_its_pods() {
    let cluster = Cluster::new(&["node-1"]).await;
    let controllers: Api<ReplicationController> = cluster.default_namespace();
    let scaled = async |replicas: i32| {
        let patch = json!({"spec": {"replicas": replicas}});
        controllers
            .patch("web", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    };
    let available = async |replicas: i32| {
        until("the pods are there", async || {
            let status = controllers.get("web").await.unwrap().status?;
            let numbers = (
                status.replicas,
                status.available_replicas.unwrap_or_default(),
            );
            (numbers == (replicas, replicas)).then_some(())
        })
        .await;
    };
    cluster
        .apply::<ReplicationController>(
            json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "template": template("Always")}}),
        )
        .await;
    available(2).await;
    let pods: Api<Pod> = cluster.default_namespace();
    for pod in list(&pods, "app=web").await {
        let owner = pod.owner_references()[0].clone();
        assert_eq!(
            (owner.api_version.as_str(), owner.kind.as_str()),
            ("v1", "ReplicationController")
        );
    }
    scaled(1).await;
    available(1).await;
}
