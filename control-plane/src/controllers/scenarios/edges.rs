//! What happens at the edges: references that lead nowhere, objects that people write or delete by hand.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Endpoints, Event, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, ResourceExt};
use serde_json::json;

use super::{Cluster, list, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_nobody_can_look_for_costs_nothing() {
    let cluster = Cluster::new(&[]).await;
    let namespaces = cluster.cluster_wide::<Namespace>();
    let owned: Namespace = serde_json::from_value(json!({"metadata": {
        "name": "team",
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "nobody"}],
    }}))
    .unwrap();
    namespaces
        .create(&PostParams::default(), &owned)
        .await
        .unwrap();
    let message = until("people are told", || async {
        let events = list(&cluster.default_namespace::<Event>(), "").await;
        let of_ours = |event: &Event| event.reason.as_deref() == Some("OwnerRefInvalidNamespace");
        events.into_iter().find(of_ours)?.message
    })
    .await;
    assert_eq!(
        message,
        "ownerRef [v1/ConfigMap, namespace: , name: gone, uid: nobody] does not exist in namespace \"\""
    );
    let kept = namespaces.get("team").await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_endpoints_of_a_service_come_back() {
    let cluster = Cluster::new(&[]).await;
    let service = json!({
        "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    cluster.apply::<Service>(service).await;
    let endpoints = cluster.default_namespace::<Endpoints>();
    let there = || async { endpoints.get_opt("web").await.unwrap() };
    let first = until("they are there", there).await;
    endpoints
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    let second = until("they are there again", there).await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_people_write_become_slices() {
    let cluster = Cluster::new(&[]).await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
    cluster.apply::<Service>(service).await;
    let by_hand = json!({
        "metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}],
    });
    cluster.apply::<Endpoints>(by_hand).await;
    let slices = cluster.default_namespace::<EndpointSlice>();
    let addresses = || async {
        let slices = list(&slices, "kubernetes.io/service-name=db").await;
        let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints);
        endpoints
            .flat_map(|endpoint| endpoint.addresses)
            .collect::<Vec<_>>()
    };
    until("a slice says it", || async {
        (addresses().await == ["192.0.2.7"]).then_some(())
    })
    .await;
    let endpoints = cluster.default_namespace::<Endpoints>();
    let moved =
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.8"}], "ports": [{"port": 5432}]}]});
    endpoints
        .patch("db", &PatchParams::default(), &Patch::Merge(moved))
        .await
        .unwrap();
    until("the slice follows", || async {
        (addresses().await == ["192.0.2.8"]).then_some(())
    })
    .await;
    let select = json!({"spec": {"selector": {"app": "db"}}});
    cluster
        .default_namespace::<Service>()
        .patch("db", &PatchParams::default(), &Patch::Merge(select))
        .await
        .unwrap();
    until("pods are looked for instead", || async {
        addresses().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_shun_each_other_get_a_node_each() {
    let cluster = Cluster::new(&["n1", "n2"]).await;
    let loner = |name: &str| {
        let term = json!({
            "labelSelector": {"matchLabels": {"app": "lone"}}, "topologyKey": "topology.kubernetes.io/zone",
            "namespaceSelector": {},
        });
        json!({
            "metadata": {"name": name, "labels": {"app": "lone"}},
            "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
            },
        })
    };
    for name in ["one", "two", "three"] {
        cluster.apply::<Pod>(loner(name)).await;
    }
    let pods = cluster.default_namespace::<Pod>();
    until("one of them waits and says why", || async {
        let pods = list(&pods, "app=lone").await;
        let conditions = pods
            .into_iter()
            .flat_map(|pod| pod.status?.conditions)
            .flatten();
        let mut messages = conditions.filter_map(|it| it.message);
        let expected = "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules. \
             preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.";
        messages.any(|it| it == expected).then_some(())
    })
    .await;
    let bound = || async {
        let pods = list(&pods, "app=lone").await;
        let bound = pods.into_iter().filter_map(|pod| {
            let node = pod.spec?.node_name?;
            Some((node, pod.metadata.name?))
        });
        bound.collect::<BTreeSet<_>>()
    };
    let two = until("the others run", || async {
        Some(bound().await).filter(|bound| bound.len() == 2)
    })
    .await;
    let (node, gone) = two.first().unwrap();
    pods.delete(gone, &DeleteParams::default()).await.unwrap();
    until("the third takes the place", || async {
        let bound = bound().await;
        let took = |(on, name): &(String, String)| on == node && name != gone;
        bound.iter().any(took).then_some(())
    })
    .await;
}

/// A node is full of what matters less.
#[tokio::test(flavor = "multi_thread")]
async fn a_more_important_pod_drives_others_away() {
    let cluster = Cluster::new(&["node-1"]).await;
    let pods: Api<Pod> = cluster.default_namespace();
    let pod = |name: &str, class: Option<&str>| {
        json!({
            "metadata": {"name": name, "labels": {"app": "crowd"}},
            "spec": {
                "priorityClassName": class,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "2"}}}],
            },
        })
    };
    for name in ["one", "two"] {
        cluster.apply::<Pod>(pod(name, None)).await;
    }
    let running = async |wanted: usize| {
        until("they run", async || {
            let pods = list(&pods, "app=crowd").await;
            let ready = pods
                .iter()
                .filter(|pod| crate::controllers::pods::is_ready(pod));
            (ready.count() == wanted && pods.len() == wanted).then_some(pods)
        })
        .await
    };
    running(2).await;
    let classes: Api<PriorityClass> = cluster.cluster_wide();
    let class = serde_json::from_value(json!({"metadata": {"name": "high"}, "value": 1000}));
    classes
        .create(&PostParams::default(), &class.unwrap())
        .await
        .unwrap();
    cluster.apply::<Pod>(pod("urgent", Some("high"))).await;
    let left = running(2).await;
    assert!(left.iter().any(|pod| pod.name_any() == "urgent"));
    let events: Api<Event> = cluster.default_namespace();
    until("the one that went is told why", async || {
        let events = list(&events, "").await;
        let mut events = events
            .iter()
            .filter(|event| event.reason.as_deref() == Some("Preempted"));
        events.next().map(|_| ())
    })
    .await;
}
