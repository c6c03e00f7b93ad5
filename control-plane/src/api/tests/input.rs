//! What bodies are taken, and what is said about the others.

use super::*;

#[tokio::test]
async fn bad_input_is_explained_and_not_stored() {
    let f = Fixture::new().await;
    let strict = f
        .call(
            "POST",
            &format!("{MAPS}?fieldValidation=Strict"),
            json!({"metadata": {"name": "a"}, "foo": 1}),
        )
        .await;
    assert_eq!(strict.code, 400);
    assert!(
        strict
            .message()
            .ends_with("strict decoding error: unknown field \"foo\""),
        "{}",
        strict.message()
    );
    let warned = f
        .call("POST", MAPS, json!({"metadata": {"name": "w"}, "foo": 1}))
        .await;
    assert_eq!(
        (warned.code, warned.warnings),
        (201, vec!["299 - \"unknown field \\\"foo\\\"\"".to_owned()])
    );

    let mut two = pod("BAD_NAME");
    two["spec"]["containers"][0]["ports"] = json!([{"containerPort": 70000}]);
    let invalid = f.call("POST", PODS, two).await;
    assert_eq!(
        (invalid.code, &invalid.body["reason"]),
        (422, &json!("Invalid"))
    );
    assert!(
        invalid
            .message()
            .starts_with("Pod \"BAD_NAME\" is invalid: [metadata.name: Invalid value"),
        "{}",
        invalid.message()
    );
    assert_eq!(
        invalid.body["details"]["causes"].as_array().map(Vec::len),
        Some(2)
    );

    let wrong_type = f
        .call(
            "POST",
            PODS,
            json!({"metadata": {"name": "a"}, "spec": {"containers": "x"}}),
        )
        .await;
    assert_eq!(wrong_type.code, 400);
    assert!(
        wrong_type.message().contains("spec.containers"),
        "{}",
        wrong_type.message()
    );
    let elsewhere = f
        .call(
            "POST",
            MAPS,
            json!({"metadata": {"name": "a", "namespace": "kube-system"}}),
        )
        .await;
    assert_eq!(elsewhere.code, 400);
    let nowhere = f
        .call("POST", "/api/v1/namespaces/nowhere/configmaps", map("a"))
        .await;
    assert_eq!(
        (nowhere.code, nowhere.message()),
        (404, "namespaces \"nowhere\" not found")
    );
    let huge = f
        .call_as(
            admin(),
            "POST",
            MAPS,
            "application/json",
            &" ".repeat(3 * 1024 * 1024 + 1),
        )
        .await;
    assert_eq!(huge.code, 413);
    let protobuf = f
        .call_as(
            admin(),
            "POST",
            MAPS,
            "application/vnd.kubernetes.protobuf",
            "k8s",
        )
        .await;
    assert_eq!(protobuf.code, 400);
    assert_eq!(f.get(PODS).await.body["items"], json!([]));
}

#[tokio::test]
async fn yaml_is_accepted() {
    let f = Fixture::new().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n";
    assert_eq!(
        f.call_as(admin(), "POST", MAPS, "application/yaml", yaml)
            .await
            .code,
        201
    );
}

#[tokio::test]
async fn protobuf_is_accepted() {
    let f = Fixture::new().await;
    let body = "k8s\0\n\x0f\n\x02v1\x12\x09ConfigMap\x12\x0d\n\x03\n\x01a\x12\x06\n\x01k\x12\x01v";
    let protobuf = "application/vnd.kubernetes.protobuf";
    let made = f.call_as(admin(), "POST", MAPS, protobuf, body).await;
    assert_eq!((made.code, made.message()), (201, ""));
    assert_eq!(made.body["data"], json!({"k": "v"}));
    let elsewhere = f.call_as(admin(), "POST", PODS, protobuf, body).await;
    assert_eq!(elsewhere.code, 400);
}
