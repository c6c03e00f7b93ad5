//! Addresses of Services of type LoadBalancer.

use k8s_openapi::api::core::v1::{ConfigMap, Event, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, list, until};

async fn put_pools(cluster: &Cluster, data: Value) {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "kube-system");
    let name = "kernelet-load-balancer";
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
    if maps.create(&PostParams::default(), &map).await.is_err() {
        maps.replace(name, &PostParams::default(), &map)
            .await
            .unwrap();
    }
}

fn balancer(name: &str, spec: Value) -> Value {
    let mut service = json!({
        "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    });
    json_patch::merge(&mut service, &json!({ "spec": spec }));
    service
}

async fn address(cluster: &Cluster, name: &str) -> Option<String> {
    let service = cluster
        .default_namespace::<Service>()
        .get(name)
        .await
        .ok()?;
    let ingress = service.status?.load_balancer?.ingress?;
    ingress.first()?.ip.clone()
}

async fn gets(cluster: &Cluster, name: &str, wanted: &str) {
    until(&format!("{name} has {wanted}"), || async {
        (address(cluster, name).await.as_deref() == Some(wanted)).then_some(())
    })
    .await;
}

async fn is_told(cluster: &Cluster, namespace: &str, wanted: &str) {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    until(&format!("people are told: {wanted}"), || async {
        let events = list(&events, "").await;
        let mut messages = events.into_iter().filter_map(|it| it.message);
        messages.any(|it| it == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_given_waited_for_and_taken_back() {
    let cluster = Cluster::new(&[]).await;
    put_pools(&cluster, json!({"lan": "192.0.2.10-192.0.2.11"})).await;
    let services = cluster.default_namespace::<Service>();
    cluster
        .apply::<Service>(balancer("one", json!({"loadBalancerIP": "192.0.2.11"})))
        .await;
    gets(&cluster, "one", "192.0.2.11").await;
    cluster
        .apply::<Service>(balancer(
            "two",
            json!({"loadBalancerClass": "kernelet.io/arp"}),
        ))
        .await;
    gets(&cluster, "two", "192.0.2.10").await;
    let foreign = json!({"loadBalancerClass": "example.com/cloud"});
    cluster.apply::<Service>(balancer("foreign", foreign)).await;
    cluster.apply::<Service>(balancer("three", json!({}))).await;
    is_told(&cluster, "default", "no IPv4 address is free in any pool").await;

    let plain = json!({"spec": {"type": "ClusterIP"}});
    services
        .patch("one", &PatchParams::default(), &Patch::Merge(plain))
        .await
        .unwrap();
    gets(&cluster, "three", "192.0.2.11").await;
    assert_eq!(address(&cluster, "one").await, None);
    let other =
        json!({"metadata": {"annotations": {"kernelet.io/load-balancer-ips": "192.0.2.11"}}});
    services
        .patch("two", &PatchParams::default(), &Patch::Merge(other))
        .await
        .unwrap();
    is_told(
        &cluster,
        "default",
        "192.0.2.11 is the Service default/three's",
    )
    .await;
    assert_eq!(address(&cluster, "two").await.unwrap(), "192.0.2.10");
    services
        .delete("three", &DeleteParams::default())
        .await
        .unwrap();
    gets(&cluster, "two", "192.0.2.11").await;
    assert_eq!(address(&cluster, "foreign").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_change_while_everything_runs_and_nonsense_is_told() {
    let cluster = Cluster::new(&["n1"]).await;
    cluster.apply::<Service>(balancer("web", json!({}))).await;
    let none = "no pool has IPv4 addresses to give; name some in the ConfigMap kube-system/kernelet-load-balancer";
    is_told(&cluster, "default", none).await;
    let bad = json!({
        "inside": "10.96.7.0/24", "pods": "10.244.9.0/24", "lan": "192.0.2.7, 192.0.2.9",
        "twice": "192.0.2.8-192.0.2.20",
    });
    put_pools(&cluster, bad).await;
    // The node has 192.0.2.7 itself.
    gets(&cluster, "web", "192.0.2.9").await;
    for why in [
        "pool inside: 10.96.7.1-10.96.7.254 overlaps 10.96.0.0/12, which is the cluster's own for pods or services",
        "pool pods: 10.244.9.1-10.244.9.254 overlaps 10.244.0.0/16, which is the cluster's own for pods or services",
        "pool twice: 192.0.2.8-192.0.2.20 overlaps 192.0.2.9 of pool lan",
    ] {
        is_told(&cluster, "kube-system", why).await;
    }
    put_pools(&cluster, json!({"lan": "198.51.100.0/29"})).await;
    is_told(
        &cluster,
        "default",
        "it keeps 192.0.2.9, which is in no pool any more",
    )
    .await;
    assert_eq!(address(&cluster, "web").await.unwrap(), "192.0.2.9");
    let asks = json!({"metadata": {"annotations": {"kernelet.io/load-balancer-pool": "lan"}}});
    cluster
        .default_namespace::<Service>()
        .patch("web", &PatchParams::default(), &Patch::Merge(asks))
        .await
        .unwrap();
    gets(&cluster, "web", "198.51.100.1").await;
}
