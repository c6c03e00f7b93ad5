//! The kinds that make pods, and those that watch over them, through the whole API.

use super::*;

const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

fn template(restart: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}], "restartPolicy": restart},
    })
}

async fn patch(f: &Fixture, uri: &str, kind: &str, body: Value) -> Answer {
    let content_type = format!("application/{kind}+json");
    f.call_as(admin(), "PATCH", uri, &content_type, &body.to_string())
        .await
}

#[tokio::test]
async fn a_job_makes_its_pods_its_own() {
    let f = Fixture::new().await;
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let job = json!({"metadata": {"generateName": "pi-"}, "spec": {"template": template("Never")}});
    let made = f.call("POST", jobs, job).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let (metadata, spec) = (&made.body["metadata"], &made.body["spec"]);
    assert_eq!(
        spec["selector"]["matchLabels"],
        json!({"batch.kubernetes.io/controller-uid": metadata["uid"]})
    );
    let labels = &spec["template"]["metadata"]["labels"];
    assert_eq!(
        (&labels["job-name"], &labels["app"]),
        (&metadata["name"], &json!("web"))
    );
    let uri = format!("{jobs}/{}", metadata["name"].as_str().expect("a name"));
    let change = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}});
    let refused = patch(&f, &uri, "strategic-merge-patch", change).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert!(refused.message().ends_with("field is immutable"));
    // Its pods are left alone unless the client says otherwise.
    let left = f.call("DELETE", &uri, Value::Null).await;
    assert_eq!(left.code, 200);
    assert!(
        left.warnings[0].contains("child pods are preserved by default"),
        "{:?}",
        left.warnings
    );
    let marked = f.get(&uri).await.body;
    assert_eq!(marked["metadata"]["finalizers"], json!(["orphan"]));
}

#[tokio::test]
async fn an_autoscaler_is_one_object_in_two_versions() {
    let f = Fixture::new().await;
    let at = |version: &str| {
        format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers")
    };
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let older = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 5, "targetCPUUtilizationPercentage": 70},
    });
    let made = f.call("POST", &at("v1"), older).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let newer = f.get(&format!("{}/web", at("v2"))).await.body;
    assert_eq!(newer["apiVersion"], "autoscaling/v2");
    let cpu = &newer["spec"]["metrics"][0]["resource"];
    assert_eq!(cpu["target"]["averageUtilization"], 70);
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "64Mi"}}});
    let both = json!({"spec": {"metrics": [newer["spec"]["metrics"][0], memory]}});
    let uri = format!("{}/web", at("v2"));
    assert_eq!(patch(&f, &uri, "merge-patch", both).await.code, 200);
    // What the older version has no field for survives a change through it.
    let uri = format!("{}/web", at("v1"));
    let most = json!({"spec": {"maxReplicas": 9}});
    assert_eq!(patch(&f, &uri, "merge-patch", most).await.code, 200);
    let list = f.get(&at("v2")).await.body;
    let spec = &list["items"][0]["spec"];
    assert_eq!(spec["maxReplicas"], 9);
    let names: Vec<_> = spec["metrics"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|metric| &metric["resource"]["name"])
        .collect();
    assert_eq!(names, ["memory", "cpu"]);
    let group = f.get("/apis/autoscaling").await.body;
    assert_eq!(group["preferredVersion"]["version"], "v2");
}

#[tokio::test]
async fn what_has_replicas_is_scaled() {
    let f = Fixture::new().await;
    for (uri, kind, selector) in [
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            "ReplicationController",
            json!({"app": "web"}),
        ),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            "StatefulSet",
            json!({"matchLabels": {"app": "web"}}),
        ),
    ] {
        let object = json!({
            "kind": kind, "metadata": {"name": "web"},
            "spec": {"selector": selector, "template": template("Always")},
        });
        let made = f.call("POST", uri, object).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let scale = f.get(&format!("{uri}/web/scale")).await.body;
        assert_eq!(
            (&scale["spec"]["replicas"], &scale["status"]["selector"]),
            (&json!(1), &json!("app=web"))
        );
        let more = json!({"spec": {"replicas": 3}});
        let scaled = patch(&f, &format!("{uri}/web/scale"), "merge-patch", more).await;
        assert_eq!(scaled.code, 200, "{}", scaled.body);
        let web = f.get(&format!("{uri}/web")).await.body;
        assert_eq!(
            (&web["spec"]["replicas"], &web["metadata"]["generation"]),
            (&json!(3), &json!(2))
        );
    }
}

#[tokio::test]
async fn a_patch_replaces_a_budgets_selector() {
    let f = Fixture::new().await;
    let budget = json!({
        "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    });
    assert_eq!(f.call("POST", BUDGETS, budget).await.code, 201);
    let uri = format!("{BUDGETS}/web");
    let change = json!({"spec": {"selector": {"matchLabels": {"tier": "db"}}}});
    let changed = patch(&f, &uri, "strategic-merge-patch", change).await;
    assert_eq!(
        changed.body["spec"]["selector"],
        json!({"matchLabels": {"tier": "db"}})
    );
    assert_eq!(changed.body["metadata"]["generation"], 2);
}

#[tokio::test]
async fn an_eviction_spends_what_its_budget_allows() {
    let f = Fixture::new().await;
    for name in ["a", "b"] {
        let mut web = pod(name);
        web["metadata"]["labels"] = json!({"app": "web"});
        assert_eq!(f.call("POST", PODS, web).await.code, 201);
        let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let uri = format!("{PODS}/{name}/status");
        assert_eq!(patch(&f, &uri, "merge-patch", status).await.code, 200);
    }
    let budget = json!({
        "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    });
    assert_eq!(f.call("POST", BUDGETS, budget.clone()).await.code, 201);
    let evict = async |name: &str| {
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        f.call("POST", &format!("{PODS}/{name}/eviction"), eviction)
            .await
    };
    let unseen = evict("a").await;
    assert_eq!(unseen.code, 429, "{}", unseen.body);
    assert_eq!(unseen.body["details"]["retryAfterSeconds"], 10);
    let status = json!({"status": {
        "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
    }});
    let uri = format!("{BUDGETS}/web");
    let told = patch(&f, &format!("{uri}/status"), "merge-patch", status).await;
    assert_eq!(told.code, 200, "{}", told.body);
    let gone = evict("a").await;
    assert_eq!(gone.code, 201, "{}", gone.body);
    assert_eq!(f.get(&format!("{PODS}/a")).await.code, 404);
    let spent = f.get(&uri).await.body["status"].clone();
    assert_eq!(spent["disruptionsAllowed"], 0);
    assert!(spent["disruptedPods"]["a"].is_string(), "{spent}");
    let refused = evict("b").await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            429,
            "Cannot evict pod as it would violate the pod's disruption budget."
        )
    );
    assert_eq!(
        refused.body["details"]["causes"][0],
        json!({"reason": "DisruptionBudget", "message": "The disruption budget web does not allow evicting pods currently"})
    );
    let mut second = budget;
    second["metadata"]["name"] = json!("web-2");
    assert_eq!(f.call("POST", BUDGETS, second).await.code, 201);
    let several = evict("b").await;
    assert_eq!(several.code, 500);
    assert!(
        several
            .message()
            .starts_with("This pod has more than one PodDisruptionBudget")
    );
    assert_eq!(f.get(&format!("{PODS}/b")).await.code, 200);
}

#[tokio::test]
async fn a_pod_is_bound_with_its_debug_containers_and_not_before_its_gates_are_gone() {
    let f = Fixture::new().await;
    let mut gated = pod("a");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    let mut placed = gated.clone();
    placed["spec"]["nodeName"] = json!("n1");
    let refused = f.call("POST", PODS, placed).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            422,
            "Pod \"a\" is invalid: spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"
        )
    );
    assert_eq!(f.call("POST", PODS, gated).await.code, 201);
    let one = format!("{PODS}/a");
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]}});
    let patch = async |uri: &str, body: Value| {
        let kind = "application/strategic-merge-patch+json";
        f.call_as(admin(), "PATCH", uri, kind, &body.to_string())
            .await
    };
    let added = patch(&format!("{one}/ephemeralcontainers"), debug).await;
    assert_eq!(added.code, 200, "{}", added.message());

    let binding = json!({"metadata": {"name": "a"}, "target": {"name": "n1"}});
    let bind = async || {
        f.call("POST", &format!("{one}/binding"), binding.clone())
            .await
    };
    assert_eq!(bind().await.code, 409);
    let opened = patch(&one, json!({"spec": {"schedulingGates": null}})).await;
    assert_eq!(opened.code, 200, "{}", opened.message());
    let bound = bind().await;
    assert_eq!(bound.code, 201, "{}", bound.message());
    assert_eq!(f.get(&one).await.body["spec"]["nodeName"], "n1");
}
