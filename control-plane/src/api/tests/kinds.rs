//! What is particular to some kinds.

use super::*;

#[tokio::test]
async fn namespaces_are_guarded() {
    let f = Fixture::new().await;
    let kept = f
        .call("DELETE", "/api/v1/namespaces/default", Value::Null)
        .await;
    assert_eq!(
        (kept.code, kept.message()),
        (
            403,
            "namespaces \"default\" is forbidden: this namespace may not be deleted"
        )
    );
    f.call(
        "POST",
        "/api/v1/namespaces",
        json!({"metadata": {"name": "t"}}),
    )
    .await;
    let marked = f.call("DELETE", "/api/v1/namespaces/t", Value::Null).await;
    assert_eq!(
        marked.body["status"]["phase"], "Terminating",
        "{}",
        marked.body
    );
    let late = f
        .call("POST", "/api/v1/namespaces/t/configmaps", map("a"))
        .await;
    assert_eq!(late.code, 403);
    assert!(
        late.message().contains("because it is being terminated"),
        "{}",
        late.message()
    );
    let mut finalized = marked.body;
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(
        f.call("PUT", "/api/v1/namespaces/t/finalize", finalized)
            .await
            .code,
        200
    );
    assert_eq!(f.get("/api/v1/namespaces/t").await.code, 404);
}

#[tokio::test]
async fn an_eviction_deletes_a_pod_as_it_says() {
    let f = Fixture::new().await;
    let created = f.call("POST", PODS, pod("a")).await.body;
    let evict = async |options: Value| {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": "a", "namespace": "default"}, "deleteOptions": options,
        });
        f.call("POST", &format!("{PODS}/a/eviction"), eviction)
            .await
            .code
    };
    assert_eq!(evict(json!({"preconditions": {"uid": "other"}})).await, 409);
    assert_eq!(evict(json!({"dryRun": ["All"]})).await, 201);
    assert_eq!(f.get(&format!("{PODS}/a")).await.body, created);
    assert_eq!(evict(json!({"gracePeriodSeconds": 0})).await, 201);
    assert_eq!(f.get(&format!("{PODS}/a")).await.code, 404);
    assert_eq!(evict(Value::Null).await, 404);
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let f = Fixture::new().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    assert_eq!(f.call("POST", deployments, deployment).await.code, 201);
    let scale = f.get(&format!("{deployments}/web/scale")).await.body;
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("app=web"))
    );
    let mut wanted = scale;
    wanted["spec"]["replicas"] = json!(5);
    assert_eq!(
        f.call("PUT", &format!("{deployments}/web/scale"), wanted.clone())
            .await
            .code,
        200
    );
    let web = f.get(&format!("{deployments}/web")).await.body;
    assert_eq!(
        (&web["spec"]["replicas"], &web["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
    assert_eq!(
        f.call("PUT", &format!("{deployments}/web/scale"), wanted)
            .await
            .code,
        409
    );
}

#[tokio::test]
async fn services_get_addresses_and_give_them_back() {
    let f = Fixture::new().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    let first = f.call("POST", services, service("a", "10.96.7.7")).await;
    assert_eq!(first.code, 201, "{}", first.body);
    let taken = f.call("POST", services, service("b", "10.96.7.7")).await;
    assert_eq!(taken.code, 422);
    assert!(
        taken.message().contains("provided IP is already allocated"),
        "{}",
        taken.message()
    );
    f.call("DELETE", &format!("{services}/a"), Value::Null)
        .await;
    f.get(services).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        f.call("POST", services, service("b", "10.96.7.7"))
            .await
            .code,
        201
    );
}

#[tokio::test]
async fn events_are_one_thing_under_two_names() {
    let f = Fixture::new().await;
    let event = json!({
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "it runs", "type": "Normal",
    });
    let created = f
        .call("POST", "/api/v1/namespaces/default/events", event)
        .await;
    assert_eq!(created.code, 201, "{}", created.body);
    let other = f
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .body;
    assert_eq!(
        (&other["apiVersion"], &other["note"]),
        (&json!("events.k8s.io/v1"), &json!("it runs"))
    );
    let selected = f
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp")
        .await;
    assert_eq!(selected.body["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_service_with_as_many_ports_as_fit_into_a_commit_can_go() {
    let f = Fixture::new().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |count: u16| {
        let port = |number| json!({"name": format!("p{number}"), "port": number});
        let ports: Vec<Value> = (1..=count).map(port).collect();
        json!({"metadata": {"name": "many"}, "spec": {"type": "NodePort", "ports": ports}})
    };
    let refused = f.call("POST", services, service(127)).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    let made = f.call("POST", services, service(126)).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let uri = format!("{services}/many");
    assert_eq!(f.call("DELETE", &uri, Value::Null).await.code, 200);
}

#[tokio::test]
async fn services_say_their_families() {
    let f = Fixture::new().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| {
        let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        service
    };
    let plain = f.call("POST", services, service("plain", json!({}))).await;
    let spec = &plain.body["spec"];
    assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
    assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
    assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));

    let preferred = json!({"ipFamilyPolicy": "PreferDualStack"});
    let preferred = f.call("POST", services, service("two", preferred)).await;
    assert_eq!(preferred.body["spec"]["ipFamilies"], json!(["IPv4"]));

    let required = json!({"ipFamilyPolicy": "RequireDualStack"});
    let refused = f.call("POST", services, service("must", required)).await;
    assert_eq!(refused.code, 422);
    let message = refused.body["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("this cluster is not configured for dual-stack services"),
        "{message}"
    );

    // A replacement that knows nothing of families or addresses keeps them.
    let again = service("plain", json!({"sessionAffinity": "ClientIP"}));
    let kept = f.call("PUT", &format!("{services}/plain"), again).await;
    assert_eq!(kept.code, 200, "{}", kept.body);
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        assert_eq!(kept.body["spec"][field], spec[field], "{field}");
    }
}
