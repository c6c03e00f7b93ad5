//! An ordinary object of each kind that has no controller here: made, shown, written back as it is, and deleted.

use super::*;

/// Path of the collection, and an object for it.
fn examples() -> Vec<(&'static str, Value)> {
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
    let claim =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let volume = json!({
        "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "example.com", "volumeHandle": "h"},
    });
    let selector = json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]});
    vec![
        (
            "/api/v1/namespaces/default/limitranges",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
        ),
        (
            "/api/v1/namespaces/default/resourcequotas",
            json!({"spec": {"hard": {"pods": "5"}, "scopeSelector": selector}}),
        ),
        ("/api/v1/persistentvolumes", json!({"spec": volume})),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            json!({"spec": claim}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            json!({"spec": {"rules": [{"host": "a.example.com", "http": {"paths": [path]}}]}}),
        ),
        (
            "/apis/networking.k8s.io/v1/ingressclasses",
            json!({"spec": {"controller": "example.com/ingress"}}),
        ),
        (
            "/apis/networking.k8s.io/v1/servicecidrs",
            json!({"spec": {"cidrs": ["10.200.0.0/16"]}}),
        ),
        (
            "/apis/networking.k8s.io/v1/ipaddresses",
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "web"}}}),
        ),
        (
            "/apis/node.k8s.io/v1/runtimeclasses",
            json!({"handler": "kata", "overhead": {"podFixed": {"cpu": "10m"}}}),
        ),
        (
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            json!({"value": 7}),
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"provisioner": "example.com/csi"}),
        ),
        (
            "/apis/storage.k8s.io/v1/volumeattributesclasses",
            json!({"driverName": "example.com", "parameters": {"iops": "4000"}}),
        ),
        ("/apis/storage.k8s.io/v1/csidrivers", json!({"spec": {}})),
        (
            "/apis/storage.k8s.io/v1/csinodes",
            json!({"spec": {"drivers": [{"name": "example.com", "nodeID": "n"}]}}),
        ),
        (
            "/apis/storage.k8s.io/v1/namespaces/default/csistoragecapacities",
            json!({"storageClassName": "fast", "capacity": "1Gi"}),
        ),
        (
            "/apis/storage.k8s.io/v1/volumeattachments",
            json!({"spec": {"attacher": "example.com", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}),
        ),
    ]
}

#[tokio::test]
async fn objects_of_every_kind_live_from_create_to_delete() {
    let f = Fixture::new().await;
    for (path, mut object) in examples() {
        let name = if path.ends_with("ipaddresses") {
            "10.200.0.5"
        } else {
            "example"
        };
        object["metadata"] = json!({"name": name});
        let made = f.call("POST", path, object.clone()).await;
        assert_eq!(made.code, 201, "{path}: {}", made.body);
        let one = format!("{path}/{name}");
        let same = f.call("PUT", &one, made.body.clone()).await;
        assert_eq!((same.code, &same.body), (200, &made.body), "{path}");
        let applied = f
            .call_as(
                admin(),
                "PATCH",
                &format!("{one}?fieldManager=somebody"),
                "application/apply-patch+yaml",
                &json!({"apiVersion": made.body["apiVersion"], "kind": made.body["kind"], "metadata": {
                    "name": name, "labels": {"a": "b"},
                }})
                .to_string(),
            )
            .await;
        assert_eq!(applied.code, 200, "{path}: {}", applied.body);
        let request = Request::builder().uri(path).header(
            header::ACCEPT,
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        );
        let table = f.send(admin(), request, Body::empty()).await;
        let table = table
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let table: Value = serde_json::from_slice(&table).expect("JSON");
        let columns = table["columnDefinitions"].as_array().map(Vec::len);
        let rows = table["rows"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["cells"][0] == name);
        let row = row.unwrap_or_else(|| panic!("{path}: {table}"));
        assert_eq!(row["cells"].as_array().map(Vec::len), columns, "{path}");
        let gone = f.call("DELETE", &one, Value::Null).await;
        assert_eq!(gone.code, 200, "{path}: {}", gone.body);
        assert_eq!(f.get(&one).await.code, 404, "{path}");
    }
}
