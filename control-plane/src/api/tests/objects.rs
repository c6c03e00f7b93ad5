//! Create, update, patch and delete of one object.

use super::*;

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let f = Fixture::new().await;
    let created = f.call("POST", MAPS, map("a")).await;
    assert_eq!(created.code, 201, "{}", created.body);
    let uid = created.body["metadata"]["uid"].clone();
    assert!(uid.is_string());
    assert_eq!(created.body["metadata"]["namespace"], "default");
    let got = f.get(&format!("{MAPS}/a")).await;
    assert_eq!(got.body, created.body);

    let again = f.call("POST", MAPS, map("a")).await;
    assert_eq!(
        (again.code, again.message()),
        (409, "configmaps \"a\" already exists")
    );
    assert_eq!(again.body["reason"], "AlreadyExists");

    let mut changed = created.body.clone();
    changed["data"]["k"] = json!("w");
    let updated = f.call("PUT", &format!("{MAPS}/a"), changed.clone()).await;
    assert_eq!(
        (updated.code, &updated.body["data"]["k"]),
        (200, &json!("w"))
    );
    assert_eq!(updated.body["metadata"]["uid"], uid);
    // The same again, with the version of before: somebody else was faster.
    changed["data"]["k"] = json!("x");
    let stale = f.call("PUT", &format!("{MAPS}/a"), changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.message(),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let deleted = f.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(
        (deleted.code, &deleted.body["status"]),
        (200, &json!("Success"))
    );
    assert_eq!(deleted.body["details"]["uid"], uid);
    let gone = f.get(&format!("{MAPS}/a")).await;
    assert_eq!(
        (gone.code, gone.message()),
        (404, "configmaps \"a\" not found")
    );
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing() {
    let f = Fixture::new().await;
    let created = f.call("POST", PODS, pod("a")).await.body;
    let updated = f.call("PUT", &format!("{PODS}/a"), created.clone()).await;
    assert_eq!(updated.body, created);
}

#[tokio::test]
async fn generated_names_and_dry_runs() {
    let f = Fixture::new().await;
    let named = f
        .call("POST", MAPS, json!({"metadata": {"generateName": "x-"}}))
        .await;
    let name = named.body["metadata"]["name"]
        .as_str()
        .unwrap_or_else(|| panic!("{}", named.body))
        .to_owned();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    assert_eq!(
        f.call("POST", &format!("{MAPS}?dryRun=All"), map("d"))
            .await
            .code,
        201
    );
    assert_eq!(f.get(&format!("{MAPS}/d")).await.code, 404);
    assert_eq!(
        f.call("DELETE", &format!("{MAPS}/{name}?dryRun=All"), Value::Null)
            .await
            .code,
        200
    );
    assert_eq!(f.get(&format!("{MAPS}/{name}")).await.code, 200);
    assert_eq!(
        f.call("POST", &format!("{MAPS}?dryRun=Some"), map("d"))
            .await
            .code,
        422
    );
}

#[tokio::test]
async fn a_bound_pod_stops_with_grace_and_finalizers_are_waited_for() {
    let f = Fixture::new().await;
    f.call("POST", PODS, pod("a")).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(
        f.call("POST", &format!("{PODS}/a/binding"), binding.clone())
            .await
            .code,
        201
    );
    let twice = f
        .call("POST", "/api/v1/namespaces/default/bindings", binding)
        .await;
    assert_eq!(twice.code, 409);
    let bound = f
        .get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn1"))
        .await;
    assert_eq!(bound.body["items"][0]["metadata"]["name"], "a");

    let marked = f.call("DELETE", &format!("{PODS}/a"), Value::Null).await;
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(f.get(&format!("{PODS}/a")).await.code, 200);
    let gone = f
        .call(
            "DELETE",
            &format!("{PODS}/a"),
            json!({"gracePeriodSeconds": 0}),
        )
        .await;
    assert_eq!(gone.code, 200);
    assert_eq!(f.get(&format!("{PODS}/a")).await.code, 404);

    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    f.call("POST", MAPS, held).await;
    let marked = f
        .call("DELETE", &format!("{MAPS}/held"), Value::Null)
        .await
        .body;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let mut freed = marked;
    freed["metadata"]["finalizers"] = json!([]);
    assert_eq!(
        f.call("PUT", &format!("{MAPS}/held"), freed).await.code,
        200
    );
    assert_eq!(f.get(&format!("{MAPS}/held")).await.code, 404);
}

#[tokio::test]
async fn preconditions_guard_a_delete() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    let other = f
        .call(
            "DELETE",
            &format!("{MAPS}/a"),
            json!({"preconditions": {"uid": "other"}}),
        )
        .await;
    assert_eq!(other.code, 409);
    assert!(
        other
            .message()
            .contains("Precondition failed: UID in precondition: other"),
        "{}",
        other.message()
    );
    f.call("POST", MAPS, map("b")).await;
    let all = f
        .call(
            "DELETE",
            &format!("{MAPS}?labelSelector=app%3Da"),
            Value::Null,
        )
        .await;
    assert_eq!(all.body["kind"], "ConfigMapList");
    assert_eq!(f.get(&format!("{MAPS}/a")).await.code, 404);
    assert_eq!(f.get(&format!("{MAPS}/b")).await.code, 200);
}

#[tokio::test]
async fn json_and_merge_patches_change_an_object() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    let uri = format!("{MAPS}/a");
    let patch = |content_type: &'static str, body: &'static str| {
        f.call_as(admin(), "PATCH", &uri, content_type, body)
    };
    let merged = patch(
        "application/merge-patch+json",
        r#"{"data":{"k":null,"n":"1"}}"#,
    )
    .await;
    assert_eq!(merged.body["data"], json!({"n": "1"}));
    let patched = patch(
        "application/json-patch+json",
        r#"[{"op":"add","path":"/data/m","value":"2"}]"#,
    )
    .await;
    assert_eq!(patched.body["data"], json!({"n": "1", "m": "2"}));
    let strategic = patch(
        "application/strategic-merge-patch+json",
        r#"{"metadata":{"labels":{"l":"1"}}}"#,
    )
    .await;
    assert_eq!(
        strategic.body["metadata"]["labels"],
        json!({"app": "a", "l": "1"})
    );
    assert_eq!(patch("application/apply-patch+cbor", "{}").await.code, 415);
    let stale = patch(
        "application/merge-patch+json",
        r#"{"metadata":{"resourceVersion":"1"}}"#,
    )
    .await;
    assert_eq!(stale.code, 409);
}

#[tokio::test]
async fn applying_makes_an_object_changes_it_and_names_conflicts() {
    let f = Fixture::new().await;
    let apply = |manager: &'static str, body: &'static str| {
        let uri = format!("{MAPS}/a?fieldManager={manager}");
        let f = &f;
        async move {
            f.call_as(admin(), "PATCH", &uri, "application/apply-patch+yaml", body)
                .await
        }
    };
    let nobody = apply("", "{}").await;
    assert_eq!(nobody.code, 422);
    let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: '1', l: '1'}\n";
    let made = apply("one", one).await;
    assert_eq!((made.code, &made.body["data"]["k"]), (201, &json!("1")));
    assert_eq!(
        made.body["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:data": {"f:k": {}, "f:l": {}}})
    );
    let again = apply("one", one).await;
    assert_eq!(
        (again.code, &again.body),
        (200, &made.body),
        "nothing is written"
    );

    let two = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: '2'}\n";
    let conflict = apply("two", two).await;
    assert_eq!(conflict.code, 409);
    let cause = &conflict.body["details"]["causes"][0];
    assert_eq!(
        (&cause["reason"], &cause["field"]),
        (&json!("FieldManagerConflict"), &json!(".data.k"))
    );
    assert_eq!(apply("two&force=true", two).await.body["data"]["k"], "2");
    let rest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    assert_eq!(apply("one", rest).await.body["data"], json!({"k": "2"}));

    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nspec: {}\n";
    let refused = apply("one", unknown).await;
    assert_eq!(refused.code, 400);
    let message = refused.body["message"].as_str().unwrap();
    assert!(
        message.ends_with("field not declared in schema"),
        "{message}"
    );
}

#[tokio::test]
async fn what_upstream_refuses_is_refused_in_its_words() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    for (method, uri, body, code, message) in [
        (
            "POST",
            format!("{MAPS}?dryRun=Some"),
            map("d"),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"",
        ),
        (
            "PUT",
            format!("{MAPS}/a?fieldValidation=Some"),
            map("a"),
            422,
            "UpdateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Some\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
        (
            "DELETE",
            format!("{MAPS}/a"),
            json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set",
        ),
        (
            "DELETE",
            "/api/v1/namespaces".to_owned(),
            Value::Null,
            405,
            "the server does not allow this method on the requested resource",
        ),
    ] {
        let answer = f.call(method, &uri, body).await;
        assert_eq!((answer.code, answer.message()), (code, message), "{uri}");
    }
    let discovered = f.get("/api/v1").await.body;
    let mut resources = discovered["resources"]
        .as_array()
        .expect("resources")
        .iter();
    let namespaces = resources
        .find(|one| one["name"] == "namespaces")
        .expect("namespaces");
    let verbs = namespaces["verbs"].as_array().expect("verbs");
    assert!(!verbs.contains(&json!("deletecollection")), "{verbs:?}");
}

#[tokio::test]
async fn a_scale_is_shown_as_a_table_to_who_asks_for_one() {
    let f = Fixture::new().await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    });
    let uri = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(f.call("POST", uri, deployment).await.code, 201);
    let request = Request::builder()
        .uri(format!("{uri}/web/scale"))
        .header(header::ACCEPT, table);
    let response = f.send(admin(), request, Vec::new()).await;
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let shown: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(shown["kind"], "Table");
    assert_eq!(shown["rows"][0]["cells"][1], 3);
}
