//! What a user sees happen.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, NamespaceCondition, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, ResourceExt};
use serde_json::{Value, json};

use super::{Cluster, list, until};

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
                    "resources": {"requests": {"cpu": "100m"}},
                }]},
            },
        },
    })
}

fn service() -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    })
}

async fn ready_endpoints(cluster: &Cluster) -> Vec<(String, String)> {
    let slices = list(
        &cluster.default_namespace::<EndpointSlice>(),
        "kubernetes.io/service-name=web",
    )
    .await;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints);
    let ready = endpoints.filter(|endpoint| {
        endpoint
            .conditions
            .as_ref()
            .is_some_and(|it| it.ready == Some(true))
    });
    ready
        .map(|endpoint| {
            (
                endpoint.node_name.unwrap_or_default(),
                endpoint.addresses[0].clone(),
            )
        })
        .collect()
}

async fn rolled_out(cluster: &Cluster, replicas: i32) {
    let api = cluster.default_namespace::<Deployment>();
    until("the rollout is complete", || async {
        let deployment = api.get("web").await.unwrap();
        let status = deployment.status?;
        let counts = [
            status.replicas,
            status.updated_replicas,
            status.ready_replicas,
            status.available_replicas,
        ];
        (status.observed_generation == deployment.metadata.generation
            && counts
                .iter()
                .all(|count| count.unwrap_or_default() == replicas))
        .then_some(())
    })
    .await;
}

async fn reasons(cluster: &Cluster) -> BTreeSet<String> {
    list(&cluster.default_namespace::<Event>(), "")
        .await
        .into_iter()
        .filter_map(|event| event.reason)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_pods_on_both_nodes_behind_its_service() {
    let cluster = Cluster::new(&["n1", "n2"]).await;
    cluster.apply::<Service>(service()).await;
    let started = std::time::Instant::now();
    cluster.apply::<Deployment>(deployment(30, "good")).await;
    rolled_out(&cluster, 30).await;
    until("all are ready endpoints", || async {
        (ready_endpoints(&cluster).await.len() == 30).then_some(())
    })
    .await;
    println!(
        "30 pods from Deployment to ready endpoints in {:?}",
        started.elapsed()
    );
    let on_n1 = ready_endpoints(&cluster)
        .await
        .iter()
        .filter(|(node, _)| node == "n1")
        .count();
    assert_eq!(on_n1, 15, "spread evenly");
    let slices = list(
        &cluster.default_namespace::<EndpointSlice>(),
        "kubernetes.io/service-name=web",
    )
    .await;
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    assert!(
        slices[0]
            .endpoints
            .iter()
            .all(|it| it.zone == it.node_name.as_ref().map(|node| format!("zone-{node}")))
    );
    until("people are told", || async {
        let told = reasons(&cluster).await;
        ["ScalingReplicaSet", "SuccessfulCreate", "Scheduled"]
            .iter()
            .all(|reason| told.contains(*reason))
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_replaces_all_pods_and_undo_brings_the_old_set_back() {
    let cluster = Cluster::new(&["n1", "n2"]).await;
    cluster.apply::<Deployment>(deployment(4, "v1")).await;
    rolled_out(&cluster, 4).await;
    let api = cluster.default_namespace::<Deployment>();
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    for (version, revision) in [("v2", "2"), ("v1", "3")] {
        api.patch(
            "web",
            &PatchParams::default(),
            &Patch::Strategic(image(version)),
        )
        .await
        .unwrap();
        rolled_out(&cluster, 4).await;
        let pods = list(&cluster.default_namespace::<Pod>(), "app=web").await;
        let alive = pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        assert!(
            alive.clone().all(
                |pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(version)
            )
        );
        assert_eq!(alive.count(), 4);
        assert_eq!(
            api.get("web").await.unwrap().annotations()["deployment.kubernetes.io/revision"],
            revision
        );
    }
    assert_eq!(
        list(&cluster.default_namespace::<ReplicaSet>(), "")
            .await
            .len(),
        2
    );
    api.patch(
        "web",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 1}})),
    )
    .await
    .unwrap();
    rolled_out(&cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_there_is_room() {
    let cluster = Cluster::new(&["n1"]).await;
    let pod = json!({
        "metadata": {"name": "big"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "3"}}}],
                 "nodeSelector": {"disk": "fast"}},
    });
    cluster.apply::<Pod>(pod).await;
    let pods = cluster.default_namespace::<Pod>();
    // Until the node's controller has seen that it is ready, it has a taint.
    let why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
               preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    until("the pod says why", || async {
        let status = pods.get("big").await.unwrap().status?;
        let condition = status
            .conditions?
            .into_iter()
            .find(|it| it.type_ == "PodScheduled")?;
        condition.message.filter(|message| message == why)
    })
    .await;
    let label = json!({"metadata": {"labels": {"disk": "fast"}}});
    cluster
        .cluster_wide::<Node>()
        .patch("n1", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    until("it runs", || async {
        pods.get("big")
            .await
            .unwrap()
            .status?
            .phase
            .filter(|phase| phase == "Running")
    })
    .await;
    until("people are told", || async {
        reasons(&cluster)
            .await
            .contains("FailedScheduling")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_nodes_pods_leave_the_service_and_are_replaced_and_it_may_come_back() {
    let cluster = Cluster::new(&["n1", "n2"]).await;
    cluster.apply::<Service>(service()).await;
    let mut impatient = deployment(4, "good");
    impatient["spec"]["template"]["spec"]["tolerations"] = json!([{
        "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1,
    }]);
    cluster.apply::<Deployment>(impatient).await;
    until("all serve", || async {
        (ready_endpoints(&cluster).await.len() == 4).then_some(())
    })
    .await;
    cluster.silence("n1");
    until("its pods serve no more", || async {
        ready_endpoints(&cluster)
            .await
            .iter()
            .all(|(node, _)| node == "n2")
            .then_some(())
    })
    .await;
    until("they are replaced", || async {
        (ready_endpoints(&cluster).await.len() == 4).then_some(())
    })
    .await;
    let nodes = cluster.cluster_wide::<Node>();
    let silent = nodes.get("n1").await.unwrap();
    let taints = silent.spec.unwrap().taints.unwrap_or_default();
    assert!(
        taints
            .iter()
            .any(|taint| taint.key == "node.kubernetes.io/unreachable"
                && taint.effect == "NoExecute")
    );

    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    until("what was left of it is removed", || async {
        let pods = list(&cluster.default_namespace::<Pod>(), "app=web").await;
        pods.iter()
            .all(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n2"))
            .then_some(())
    })
    .await;
    cluster.join("n1").await;
    until("it has a range and no taints again", || async {
        let spec = nodes.get("n1").await.unwrap().spec?;
        (spec.taints.unwrap_or_default().is_empty() && spec.pod_cidr.is_some()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_gets_a_range_of_its_own() {
    let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    let cluster = Cluster::new(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let nodes: Api<Node> = cluster.cluster_wide();
    let ranges = until("all have one", || async {
        let nodes = list(&nodes, "").await;
        nodes
            .into_iter()
            .map(|node| node.spec?.pod_cidr)
            .collect::<Option<BTreeSet<String>>>()
    })
    .await;
    assert_eq!(ranges.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_both_families_gives_every_node_a_range_of_each() {
    let names = ["n0", "n1", "n2", "n3"];
    let cluster = Cluster::with_pods_in("10.244.0.0/16,fd00:10:244::/48", &names).await;
    let nodes: Api<Node> = cluster.cluster_wide();
    let ranges = until("all have them", || async {
        let nodes = list(&nodes, "").await;
        let specs = nodes.into_iter().map(|node| node.spec);
        specs
            .map(|spec| {
                let all = spec.as_ref()?.pod_cidrs.clone()?;
                assert_eq!(spec?.pod_cidr.as_ref(), all.first());
                Some(all)
            })
            .collect::<Option<Vec<Vec<String>>>>()
    })
    .await;
    assert!(
        ranges
            .iter()
            .all(|of_node| of_node.len() == 2 && of_node[1].starts_with("fd00:10:244:")),
        "{ranges:?}"
    );
    let different: BTreeSet<&String> = ranges.iter().flatten().collect();
    assert_eq!(different.len(), 2 * names.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_from_ready_to_endpoint_is_short() {
    let cluster = Cluster::new(&["n1"]).await;
    cluster.apply::<Service>(service()).await;
    cluster.apply::<Deployment>(deployment(1, "broken")).await;
    let pods = cluster.default_namespace::<Pod>();
    let pod = until("the pod runs", || async {
        let pods = list(&pods, "app=web").await;
        pods.into_iter().find(|pod| {
            pod.status
                .as_ref()
                .is_some_and(|status| status.pod_ip.is_some())
        })
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(ready_endpoints(&cluster).await.is_empty());
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let started = std::time::Instant::now();
    pods.patch_status(
        &pod.name_any(),
        &PatchParams::default(),
        &Patch::Strategic(ready),
    )
    .await
    .unwrap();
    until("it serves", || async {
        (ready_endpoints(&cluster).await.len() == 1).then_some(())
    })
    .await;
    println!("from ready to endpoint in {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_deployment_takes_everything_below_it_or_nothing() {
    let cluster = Cluster::new(&["n1"]).await;
    let deployments = cluster.default_namespace::<Deployment>();
    let sets = cluster.default_namespace::<ReplicaSet>();
    let pods = cluster.default_namespace::<Pod>();

    cluster.apply::<Deployment>(deployment(2, "good")).await;
    rolled_out(&cluster, 2).await;
    deployments
        .delete("web", &DeleteParams::orphan())
        .await
        .unwrap();
    until("only the Deployment is gone", || async {
        let sets = list(&sets, "").await;
        let freed = sets.len() == 1 && sets[0].owner_references().is_empty();
        (freed && deployments.get_opt("web").await.unwrap().is_none()).then_some(())
    })
    .await;
    assert_eq!(list(&pods, "app=web").await.len(), 2);

    cluster.apply::<Deployment>(deployment(2, "good")).await;
    until("the ReplicaSet is taken in again", || async {
        let sets = list(&sets, "").await;
        (sets.len() == 1 && !sets[0].owner_references().is_empty()).then_some(())
    })
    .await;
    rolled_out(&cluster, 2).await;
    deployments
        .delete("web", &DeleteParams::background())
        .await
        .unwrap();
    until("all is gone", || async {
        (list(&sets, "").await.is_empty() && list(&pods, "app=web").await.is_empty()).then_some(())
    })
    .await;

    cluster.apply::<Deployment>(deployment(2, "good")).await;
    rolled_out(&cluster, 2).await;
    deployments
        .delete("web", &DeleteParams::foreground())
        .await
        .unwrap();
    until("the Deployment is gone", || async {
        deployments
            .get_opt("web")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(
        list(&sets, "").await.is_empty() && list(&pods, "app=web").await.is_empty(),
        "it went last"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_gets_its_account_and_goes_with_all_that_is_in_it() {
    let cluster = Cluster::new(&["n1"]).await;
    let namespaces = cluster.cluster_wide::<Namespace>();
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "team");
    until("it has an account", || async {
        accounts.get_opt("default").await.unwrap()
    })
    .await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "team");
    let map: ConfigMap = serde_json::from_value(
        json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}),
    )
    .unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let deployment: Deployment = serde_json::from_value(deployment(2, "good")).unwrap();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "team");
    deployments
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    // Its pod never gets a node, and the job waits for how it ends.
    let job: Job = serde_json::from_value(json!({
        "metadata": {"name": "work"},
        "spec": {"podReplacementPolicy": "Failed", "template": {"spec": {
            "containers": [{"name": "c", "image": "good"}], "restartPolicy": "Never",
            "nodeSelector": {"is": "nowhere"},
        }}},
    }))
    .unwrap();
    let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), "team");
    jobs.create(&PostParams::default(), &job).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    until("its pods run", || async {
        (list(&pods, "").await.len() == 3).then_some(())
    })
    .await;

    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    // Pods go first, and what holds them meanwhile is no matter here.
    until("it says what holds it", || async {
        let conditions = namespaces.get("team").await.unwrap().status?.conditions?;
        let holds = |it: &NamespaceCondition| {
            let message = it.message.as_deref().unwrap_or_default();
            it.type_ == "NamespaceFinalizersRemaining" && message.contains("example.com/hold")
        };
        conditions.iter().any(holds).then_some(())
    })
    .await;
    assert!(list(&pods, "").await.is_empty());
    let free = json!({"metadata": {"finalizers": null}});
    maps.patch("held", &PatchParams::default(), &Patch::Merge(free))
        .await
        .unwrap();
    until("it is gone", || async {
        namespaces
            .get_opt("team")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(list(&pods, "").await.is_empty());
}

#[tokio::test]
async fn a_namespace_has_its_account_and_the_authoritys_certificate() {
    let cluster = Cluster::new(&[]).await;
    let namespaces: Api<Namespace> = cluster.cluster_wide();
    let new = serde_json::from_value(json!({"metadata": {"name": "new"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &new)
        .await
        .unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "new");
    let root = async || maps.get_opt("kube-root-ca.crt").await.unwrap();
    let map = until("the certificate is there", root).await;
    assert_eq!(map.data.unwrap()["ca.crt"], "the authority");
    // Whoever changes it, it is as it was.
    let other = Patch::Merge(json!({"data": {"ca.crt": "another"}}));
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &other)
        .await
        .unwrap();
    until("the certificate is back", async || {
        let data = root().await?.data?;
        (data["ca.crt"] == "the authority").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_secret_for_a_token_is_filled_and_goes_with_the_account() {
    let cluster = Cluster::new(&[]).await;
    let accounts: Api<ServiceAccount> = cluster.default_namespace();
    let account = serde_json::from_value(json!({"metadata": {"name": "robot"}})).unwrap();
    accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let secrets: Api<Secret> = cluster.default_namespace();
    let secret = serde_json::from_value(json!({
        "metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token",
    }))
    .unwrap();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let data = until("the token is there", async || {
        secrets.get("token").await.unwrap().data
    })
    .await;
    assert_eq!(data["namespace"].0, b"default");
    assert!(!data["token"].0.is_empty() && !data["ca.crt"].0.is_empty());
    accounts
        .delete("robot", &DeleteParams::default())
        .await
        .unwrap();
    until("the secret is gone", async || {
        secrets
            .get_opt("token")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
}
