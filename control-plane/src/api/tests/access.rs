//! Who may do what.

use super::*;

#[tokio::test]
async fn who_may_not_is_told_so() {
    let f = Fixture::new().await;
    let as_user = |user: User, method: &'static str, uri: &'static str| {
        f.call_as(user, method, uri, "application/json", "")
    };
    let nobody = as_user(
        User::authenticated("x", []),
        "GET",
        "/api/v1/namespaces/default/pods",
    )
    .await;
    assert_eq!(nobody.code, 403);
    assert_eq!(
        nobody.message(),
        "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let node = || User::authenticated("system:node:n1", [NODES.to_owned()]);
    f.call("POST", PODS, pod("a")).await;
    assert_eq!(
        as_user(node(), "GET", "/api/v1/namespaces/default/pods/a")
            .await
            .code,
        403
    );
    let binding = json!({"metadata": {"name": "a"}, "target": {"name": "n1"}});
    f.call("POST", &format!("{PODS}/a/binding"), binding).await;
    assert_eq!(
        as_user(node(), "GET", "/api/v1/namespaces/default/pods/a")
            .await
            .code,
        200
    );
    let unknown = f.get("/api/v1/nonsense").await;
    assert_eq!(
        (unknown.code, unknown.message()),
        (404, "the server could not find the requested resource")
    );
    assert_eq!(
        f.call("POST", &format!("{MAPS}/a"), map("a")).await.code,
        405
    );
}

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to() {
    let f = Fixture::new().await;
    let code_for = async |node: &str, method: &str, uri: &str| {
        let user = User::authenticated(format!("system:node:{node}"), [NODES.to_owned()]);
        let answer = f.call_as(user, method, uri, "application/json", "").await;
        (answer.code, answer.message().to_owned())
    };
    for name in ["used", "unused"] {
        assert_eq!(f.call("POST", MAPS, map(name)).await.code, 201);
    }
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"metadata": {"name": "used"}, "data": {}});
    assert_eq!(f.call("POST", secrets, secret).await.code, 201);
    let mut user = pod("a");
    user["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "used"}}]);
    user["spec"]["imagePullSecrets"] = json!([{"name": "used"}]);
    assert_eq!(f.call("POST", PODS, user).await.code, 201);
    let (used, unused) = (format!("{MAPS}/used"), format!("{MAPS}/unused"));

    // Not before the pod is this node's.
    let (code, message) = code_for("n1", "GET", &used).await;
    assert_eq!(code, 403);
    assert!(
        message.ends_with("no pod on this node refers to it"),
        "{message}"
    );
    let binding = json!({"metadata": {"name": "a"}, "target": {"name": "n1"}});
    f.call("POST", &format!("{PODS}/a/binding"), binding).await;
    f.get(PODS).await;
    for (node, method, uri, expected) in [
        ("n1", "GET", used.as_str(), 200),
        ("n1", "GET", &format!("{secrets}/used"), 200),
        ("n1", "GET", &unused, 403),
        ("n2", "GET", &used, 403),
        ("n1", "DELETE", &used, 403),
        ("n1", "GET", MAPS, 403),
        (
            "n1",
            "GET",
            "/api/v1/namespaces/kube-system/configmaps/used",
            403,
        ),
    ] {
        let (code, message) = code_for(node, method, uri).await;
        assert_eq!(code, expected, "{node} {method} {uri}: {message}");
    }
}

#[tokio::test]
async fn a_node_shows_what_it_runs_from_files_by_mirrors() {
    let f = Fixture::new().await;
    let json_body = "application/json";
    let as_node = async |method: &str, uri: &str, kind: &str, body: &Value| {
        let user = User::authenticated("system:node:n1", [NODES.to_owned()]);
        f.call_as(user, method, uri, kind, &body.to_string()).await
    };
    let mut plain = pod("web-n1");
    plain["spec"]["nodeName"] = json!("n1");
    let refused = as_node("POST", PODS, json_body, &plain).await;
    assert_eq!(refused.code, 403, "{}", refused.message());
    let mut mirror = plain.clone();
    mirror["metadata"]["annotations"] = json!({
        "kubernetes.io/config.mirror": "hash", "kubernetes.io/config.hash": "hash",
        "kubernetes.io/config.source": "file",
    });
    let made = as_node("POST", PODS, json_body, &mirror).await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert_eq!(made.body["spec"]["serviceAccountName"], Value::Null);
    let uid = made.body["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_ne!(uid, "hash", "the API gives it an identity of its own");

    let one = format!("{PODS}/web-n1");
    let status = json!({"metadata": {"uid": uid}, "status": {"phase": "Running"}});
    let patch = "application/strategic-merge-patch+json";
    let told = as_node("PATCH", &format!("{one}/status"), patch, &status).await;
    assert_eq!(
        told.body["status"]["phase"],
        "Running",
        "{}",
        told.message()
    );
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    let gone = as_node("DELETE", &one, json_body, &options).await;
    assert_eq!(gone.code, 200, "{}", gone.message());
    assert_eq!(f.get(&one).await.code, 404);
}
