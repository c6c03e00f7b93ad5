//! What admission does to pods, claims and namespaces, through the whole API.

use super::*;

const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const LIMITS: &str = "/api/v1/namespaces/default/limitranges";

fn asking(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": resources},
    ]}})
}

impl Fixture {
    /// A quota with what its controller would say of it.
    async fn quota(&self, spec: Value, used: Value) {
        let quota = json!({"metadata": {"name": "q"}, "spec": spec});
        let mut made = self.call("POST", QUOTAS, quota).await.body;
        made["status"] = json!({"hard": spec["hard"], "used": used});
        let written = self.call("PUT", &format!("{QUOTAS}/q/status"), made).await;
        assert_eq!(written.code, 200, "{}", written.body);
    }

    async fn used(&self) -> Value {
        self.get(&format!("{QUOTAS}/q")).await.body["status"]["used"].clone()
    }
}

#[tokio::test]
async fn a_pod_gets_the_priority_of_its_class() {
    let f = Fixture::new().await;
    let plain = f.call("POST", PODS, pod("plain")).await.body;
    assert_eq!(plain["spec"]["priority"], 0);
    assert_eq!(plain["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(
        plain["spec"]["tolerations"].as_array().map(Vec::len),
        Some(2)
    );
    let mut critical = pod("critical");
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    let critical = f.call("POST", PODS, critical).await.body;
    assert_eq!(critical["spec"]["priority"], 2_000_001_000);

    let class = json!({"metadata": {"name": "usual"}, "value": 5, "globalDefault": true, "preemptionPolicy": "Never"});
    assert_eq!(f.call("POST", CLASSES, class).await.code, 201);
    let usual = f.call("POST", PODS, pod("usual")).await.body;
    assert_eq!(usual["spec"]["priorityClassName"], "usual");
    assert_eq!(
        (
            &usual["spec"]["priority"],
            &usual["spec"]["preemptionPolicy"]
        ),
        (&json!(5), &json!("Never"))
    );

    let mut unknown = pod("unknown");
    unknown["spec"]["priorityClassName"] = json!("nope");
    let refused = f.call("POST", PODS, unknown).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            403,
            "pods \"unknown\" is forbidden: no PriorityClass with name nope was found"
        )
    );
    let second = json!({"metadata": {"name": "other"}, "value": 6, "globalDefault": true});
    let refused = f.call("POST", CLASSES, second).await;
    assert_eq!(
        refused.message(),
        "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"
    );
    let kept = f
        .call(
            "DELETE",
            &format!("{CLASSES}/system-node-critical"),
            Value::Null,
        )
        .await;
    assert_eq!(kept.code, 403);
    // An update of the pod that says nothing of it keeps it.
    let mut changed = usual.clone();
    changed["metadata"]["labels"] = json!({"a": "b"});
    changed["spec"]
        .as_object_mut()
        .unwrap()
        .shift_remove("priority");
    let changed = f.call("PUT", &format!("{PODS}/usual"), changed).await;
    assert_eq!(
        (changed.code, &changed.body["spec"]["priority"]),
        (200, &json!(5))
    );
}

#[tokio::test]
async fn limits_are_given_and_kept() {
    let f = Fixture::new().await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
    ]}});
    assert_eq!(f.call("POST", LIMITS, range).await.code, 201);
    let given = f.call("POST", PODS, pod("a")).await.body;
    assert_eq!(
        given["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}})
    );
    assert_eq!(given["status"]["qosClass"], "Burstable");
    assert_eq!(
        given["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let greedy = f
        .call("POST", PODS, asking("b", json!({"limits": {"cpu": "2"}})))
        .await;
    assert_eq!(
        (greedy.code, greedy.message()),
        (
            403,
            "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        )
    );
    let claim = json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}},
    }});
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let refused = f.call("POST", claims, claim).await;
    assert_eq!(
        refused.message(),
        "persistentvolumeclaims \"c\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"
    );
}

#[tokio::test]
async fn a_quota_is_charged_and_refuses() {
    let f = Fixture::new().await;
    // Nobody has counted yet, so nothing is refused.
    let quota = json!({"metadata": {"name": "new"}, "spec": {"hard": {"pods": "0"}}});
    f.call("POST", QUOTAS, quota).await;
    assert_eq!(f.call("POST", PODS, pod("early")).await.code, 201);
    f.call("DELETE", &format!("{QUOTAS}/new"), Value::Null)
        .await;

    let hard =
        json!({"pods": "2", "requests.cpu": "1", "configmaps": "1", "count/configmaps": "5"});
    let spec = json!({"hard": hard});
    let used =
        json!({"pods": "0", "requests.cpu": "0", "configmaps": "0", "count/configmaps": "0"});
    f.quota(spec, used).await;
    let half = json!({"requests": {"cpu": "600m"}});
    assert_eq!(
        f.call("POST", PODS, asking("a", half.clone())).await.code,
        201
    );
    let now =
        json!({"pods": "1", "requests.cpu": "600m", "configmaps": "0", "count/configmaps": "0"});
    assert_eq!(f.used().await, now);
    let more = f.call("POST", PODS, asking("b", half.clone())).await;
    assert_eq!(
        (more.code, more.message()),
        (
            403,
            "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
        )
    );
    let silent = f.call("POST", PODS, pod("c")).await;
    assert_eq!(
        silent.message(),
        "pods \"c\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    // What is tried, or invalid, costs nothing.
    let tried = asking("d", json!({"requests": {"cpu": "100m"}}));
    f.call("POST", &format!("{PODS}?dryRun=All"), tried.clone())
        .await;
    let mut wrong = tried;
    wrong["spec"]["restartPolicy"] = json!("Often");
    assert_eq!(f.call("POST", PODS, wrong).await.code, 422);
    assert_eq!(f.used().await, now);
    assert_eq!(
        f.call(
            "POST",
            PODS,
            asking("a", json!({"requests": {"cpu": "100m"}}))
        )
        .await
        .code,
        409
    );
    assert_eq!(f.used().await, now);
    assert_eq!(f.call("POST", MAPS, map("one")).await.code, 201);
    let second = f.call("POST", MAPS, map("two")).await;
    assert_eq!(
        second.message(),
        "configmaps \"two\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1"
    );
}

#[tokio::test]
async fn many_at_once_do_not_exceed_a_quota() {
    let f = Fixture::new().await;
    let spec = json!({"hard": {"pods": "7"}});
    f.quota(spec, json!({"pods": "0"})).await;
    let made = futures::future::join_all((0..20).map(|n| {
        let f = &f;
        async move { f.call("POST", PODS, pod(&format!("p{n}"))).await.code }
    }))
    .await;
    assert_eq!(
        made.iter().filter(|code| **code == 201).count(),
        7,
        "{made:?}"
    );
    assert_eq!(made.iter().filter(|code| **code == 403).count(), 13);
    assert_eq!(f.used().await, json!({"pods": "7"}));
}

#[tokio::test]
async fn a_namespaces_labels_say_what_pods_may_do() {
    let f = Fixture::new().await;
    let namespaces = "/api/v1/namespaces";
    let labelled =
        |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    let wrong = labelled("w", json!({"pod-security.kubernetes.io/enforce": "strict"}));
    let refused = f.call("POST", namespaces, wrong).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            422,
            "Namespace \"w\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
        )
    );
    let mut made = f
        .call("POST", namespaces, labelled("t", json!({})))
        .await
        .body;
    let account = json!({"metadata": {"name": "default"}});
    f.call("POST", "/api/v1/namespaces/t/serviceaccounts", account)
        .await;
    let pods = "/api/v1/namespaces/t/pods";
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = json!(true);
    assert_eq!(f.call("POST", pods, host.clone()).await.code, 201);

    made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("baseline");
    let told = f.call("PUT", "/api/v1/namespaces/t", made).await;
    assert_eq!(told.code, 200);
    assert_eq!(
        told.warnings,
        [
            "299 - \"existing pods in namespace \\\"t\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"host: host namespaces\"",
        ]
    );
    host["metadata"]["name"] = json!("again");
    let refused = f.call("POST", pods, host.clone()).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            403,
            "pods \"again\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
        )
    );
    let set = json!({"metadata": {"name": "s"}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": host["spec"]},
    }});
    let warned = f
        .call("POST", "/apis/apps/v1/namespaces/t/replicasets", set)
        .await;
    assert_eq!(warned.code, 201, "{}", warned.body);
    assert_eq!(
        warned.warnings,
        [
            "299 - \"would violate PodSecurity \\\"baseline:latest\\\": host namespaces (hostNetwork=true)\""
        ]
    );
}

#[tokio::test]
async fn classes_are_given_where_none_is_named() {
    let f = Fixture::new().await;
    let marked = |name: &str, key: &str, mut rest: Value| {
        rest["metadata"] = json!({"name": name, "annotations": {key: "true"}});
        rest
    };
    let storage = marked(
        "fast",
        "storageclass.kubernetes.io/is-default-class",
        json!({"provisioner": "example.com/p"}),
    );
    let made = f
        .call("POST", "/apis/storage.k8s.io/v1/storageclasses", storage)
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    let claim = f.call("POST", claims, claim).await.body;
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    assert_eq!(claim["status"]["phase"], "Pending");

    let ingress = marked(
        "web",
        "ingressclass.kubernetes.io/is-default-class",
        json!({"spec": {"controller": "example.com/i"}}),
    );
    f.call("POST", "/apis/networking.k8s.io/v1/ingressclasses", ingress)
        .await;
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let to = json!({"service": {"name": "web", "port": {"number": 80}}});
    let ingress = json!({"metadata": {"name": "i"}, "spec": {"defaultBackend": to}});
    let ingress = f.call("POST", ingresses, ingress).await.body;
    assert_eq!(ingress["spec"]["ingressClassName"], "web");
    // What admission sets is nobody's, so that nobody who applies takes it away.
    let made = f
        .call(
            "POST",
            &format!("{ingresses}?fieldManager=somebody"),
            json!({"metadata": {"name": "j"}, "spec": {"defaultBackend": to}}),
        )
        .await
        .body;
    let owners = made["metadata"]["managedFields"].to_string();
    assert!(
        owners.contains("f:defaultBackend") && !owners.contains("f:ingressClassName"),
        "{owners}"
    );

    let class = json!({"metadata": {"name": "kata"}, "handler": "kata", "overhead": {"podFixed": {"memory": "64Mi"}}});
    f.call("POST", "/apis/node.k8s.io/v1/runtimeclasses", class)
        .await;
    let mut sandboxed = pod("s");
    sandboxed["spec"]["runtimeClassName"] = json!("kata");
    let sandboxed = f.call("POST", PODS, sandboxed).await.body;
    assert_eq!(sandboxed["spec"]["overhead"], json!({"memory": "64Mi"}));
    let mut lost = pod("l");
    lost["spec"]["runtimeClassName"] = json!("none");
    assert_eq!(
        f.call("POST", PODS, lost).await.message(),
        "pods \"l\" is forbidden: pod rejected: RuntimeClass \"none\" not found"
    );
}

#[tokio::test]
async fn a_new_node_gets_no_pods_before_it_is_ready() {
    let f = Fixture::new().await;
    let node = json!({"metadata": {"name": "n"}});
    let node = f.call("POST", "/api/v1/nodes", node).await.body;
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
}
