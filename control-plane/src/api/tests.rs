//! The whole API, from request to answer, over an embedded store.

mod hostile;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::registry::Registry;
use super::{Api, KubeletClient, bootstrap, fields, router};
use crate::admission::Admission;
use crate::admission::service_ip::ServiceAddresses;
use crate::auth::pki::{Pki, PkiConfig};
use crate::auth::{Authenticator, MASTERS, NODES, User};
use crate::resources;
use crate::store::Store;
use crate::store::cache::Cache;
use crate::store::embedded::Embedded;

struct Fixture {
    api: Arc<Api>,
    router: Router,
    dir: tempfile::TempDir,
}

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

fn admin() -> User {
    User::authenticated("admin", [MASTERS.to_owned()])
}

impl Fixture {
    async fn new() -> Self {
        Self::start(tempfile::tempdir().expect("a directory")).await
    }

    /// A start on what the directory holds.
    async fn start(dir: tempfile::TempDir) -> Self {
        let config = PkiConfig {
            data_dir: dir.path().to_owned(),
            advertise: Ipv4Addr::LOCALHOST.into(),
            port: 6443,
            service_ip: Ipv4Addr::new(10, 96, 0, 1).into(),
            cluster_domain: "cluster.local".into(),
            hostname: String::new(),
        };
        let pki = Pki::open(&config, SystemTime::now()).expect("keys");
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).expect("a store"));
        let cache = Cache::start(store.clone(), super::index)
            .await
            .expect("a cache");
        let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
        addresses.follow(&cache).await.expect("services");
        let registry = Registry {
            admission: Admission::new(store.clone(), addresses),
            store,
            cache,
        };
        let kubelet =
            KubeletClient::new(&pki.kubelet_client, pki.ca.certificate()).expect("a client");
        let api = Api::new(
            registry,
            Authenticator::new(pki.join_token),
            kubelet,
            "127.0.0.1:6443".into(),
        );
        bootstrap::ensure(
            &api.registry,
            config.service_ip,
            "127.0.0.1:6443".parse().expect("an address"),
        )
        .await
        .expect("the system's objects");
        Fixture {
            router: router(api.clone()),
            api,
            dir,
        }
    }

    async fn send(
        &self,
        user: User,
        request: http::request::Builder,
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let mut request = request.body(body.into()).expect("a request");
        request.extensions_mut().insert(user);
        self.router
            .clone()
            .oneshot(request)
            .await
            .expect("an answer")
    }

    async fn call_as(
        &self,
        user: User,
        method: &str,
        uri: &str,
        content_type: &str,
        body: &str,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, content_type);
        let response = self.send(user, request, body.to_owned()).await;
        let warnings = response.headers().get_all(header::WARNING).iter();
        let warnings = warnings
            .map(|w| w.to_str().expect("text").to_owned())
            .collect();
        let code = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into()));
        Answer {
            code,
            warnings,
            body,
        }
    }

    async fn call(&self, method: &str, uri: &str, body: Value) -> Answer {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.call_as(admin(), method, uri, "application/json", &text)
            .await
    }

    async fn get(&self, uri: &str) -> Answer {
        self.call("GET", uri, Value::Null).await
    }

    /// The first `count` events of a watch.
    async fn events(&self, uri: &str, count: usize) -> Vec<Value> {
        let response = self
            .send(admin(), Request::builder().uri(uri), Body::empty())
            .await;
        let mut body = response.into_body();
        let mut text = Vec::new();
        while text.iter().filter(|b| **b == b'\n').count() < count {
            let frame = tokio::time::timeout(Duration::from_secs(5), body.frame())
                .await
                .expect("an event in time");
            let Some(frame) = frame else { break };
            text.extend_from_slice(&frame.expect("a frame").into_data().expect("data"));
        }
        text.split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect()
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "v"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

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
        400
    );
}

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

#[tokio::test]
async fn lists_select_and_come_in_consistent_pages() {
    let f = Fixture::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        f.call("POST", MAPS, map(name)).await;
    }
    let names = |answer: &Answer| -> Vec<String> {
        answer.body["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|i| i["metadata"]["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(
        names(&f.get(&format!("{MAPS}?labelSelector=app+in+(b,c)")).await),
        ["b", "c"]
    );
    assert_eq!(
        names(
            &f.get(&format!("{MAPS}?fieldSelector=metadata.name!=a"))
                .await
        ),
        ["b", "c", "d", "e"]
    );
    let unknown = f.get(&format!("{MAPS}?fieldSelector=spec.x=1")).await;
    assert_eq!(
        (unknown.code, unknown.message()),
        (400, "field label not supported: spec.x")
    );

    let first = f.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    // What happens between pages is not in them.
    f.call("DELETE", &format!("{MAPS}/d"), Value::Null).await;
    let next = first.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let second = f.get(&format!("{MAPS}?limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(
        second.body["metadata"]["resourceVersion"],
        first.body["metadata"]["resourceVersion"]
    );
    let next = second.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let third = f.get(&format!("{MAPS}?limit=2&continue={next}")).await;
    assert_eq!(names(&third), ["e"]);
    assert!(third.body["metadata"].get("continue").is_none());
    let future = f.get(&format!("{MAPS}?resourceVersion=999999")).await;
    assert_eq!(future.code, 504);
    assert!(
        future
            .message()
            .starts_with("Too large resource version: 999999"),
        "{}",
        future.message()
    );
}

#[tokio::test]
async fn a_watch_tells_what_a_selector_sees() {
    let f = Fixture::new().await;
    let created = f.call("POST", MAPS, map("a")).await.body;
    let version = created["metadata"]["resourceVersion"]
        .as_str()
        .expect("a version")
        .to_owned();
    for labels in [
        json!({"app": "a", "x": "1"}),
        json!({"app": "z"}),
        json!({"app": "a"}),
    ] {
        let mut object = created.clone();
        object["metadata"]["labels"] = labels;
        object["metadata"]["resourceVersion"] = json!("");
        assert_eq!(f.call("PUT", &format!("{MAPS}/a"), object).await.code, 200);
    }
    f.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    let events = f
        .events(
            &format!("{MAPS}?watch=1&labelSelector=app%3Da&resourceVersion={version}"),
            4,
        )
        .await;
    let types: Vec<_> = events
        .iter()
        .map(|e| e["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(types, ["MODIFIED", "DELETED", "ADDED", "DELETED"]);
    assert_eq!(events[1]["object"]["metadata"]["labels"]["x"], "1");
}

#[tokio::test]
async fn a_watch_list_ends_its_first_part_with_a_bookmark() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    let uri = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let events = f.events(&uri, 2).await;
    assert_eq!(events[0]["type"], "ADDED");
    assert_eq!(events[1]["type"], "BOOKMARK");
    assert_eq!(
        events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        f.events(
            &format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1"),
            9
        )
        .await
        .len(),
        1
    );
}

#[tokio::test]
async fn tables_have_columns_and_rows() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    for version in ["v1", "v1beta1"] {
        let accept =
            format!("application/json;as=Table;v={version};g=meta.k8s.io,application/json");
        let request = Request::builder().uri(MAPS).header(header::ACCEPT, accept);
        let response = f.send(admin(), request, Body::empty()).await;
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let table: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(table["kind"], "Table");
        assert_eq!(table["apiVersion"], format!("meta.k8s.io/{version}"));
        assert_eq!(table["columnDefinitions"][0]["name"], "Name");
        assert_eq!(table["rows"][0]["cells"][0], "a");
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
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
    assert_eq!(patch("application/apply-patch+yaml", "{}").await.code, 415);
    let stale = patch(
        "application/merge-patch+json",
        r#"{"metadata":{"resourceVersion":"1"}}"#,
    )
    .await;
    assert_eq!(stale.code, 409);
}

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
async fn health_version_and_discovery_answer() {
    let f = Fixture::new().await;
    assert_eq!(f.get("/livez").await.body, "ok");
    assert_eq!(f.get("/readyz").await.code, 500);
    assert_eq!(f.get("/version").await.body["minor"], "34");
    assert_eq!(f.get("/api").await.body["versions"], json!(["v1"]));
    assert!(
        f.get("/apis").await.body["groups"]
            .as_array()
            .is_some_and(|g| g.len() >= 4)
    );
    assert_eq!(
        f.get("/apis/apps").await.body["preferredVersion"]["groupVersion"],
        "apps/v1"
    );
    for kind in resources::kinds() {
        let path = if kind.group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let list = f.get(&path).await.body;
        assert!(
            list["resources"]
                .as_array()
                .expect("resources")
                .iter()
                .any(|r| r["name"] == kind.plural),
            "{path}"
        );
    }
    assert_eq!(
        fields(
            resources::find("", "v1", "pods").expect("a kind"),
            &json!({"metadata": {"name": "x"}})
        )[0]
        .1,
        "x"
    );
}

#[tokio::test]
async fn a_start_after_a_kill_finds_everything_in_its_place() {
    let first = Fixture::new().await;
    first.call("POST", MAPS, map("a")).await;
    let uris = [
        "/api/v1/namespaces/default/services/kubernetes".to_owned(),
        format!("{MAPS}/a"),
    ];
    // What a process that is killed leaves: the file as it is, not closed.
    let left = tempfile::tempdir().expect("a directory");
    std::fs::copy(first.dir.path().join("store"), left.path().join("store")).expect("a copy");
    let second = Fixture::start(left).await;
    for uri in &uris {
        assert_eq!(second.get(uri).await.body, first.get(uri).await.body);
    }
    let again = json!({"metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(second.call("POST", services, again).await.code, 422);
}

#[tokio::test]
async fn a_second_start_finds_what_the_first_one_made() {
    let f = Fixture::new().await;
    let uri = "/api/v1/namespaces/default/services/kubernetes";
    let before = f.get(uri).await.body;
    assert_eq!(before["spec"]["clusterIP"], "10.96.0.1");
    let service_ip = Ipv4Addr::new(10, 96, 0, 1).into();
    let moved = "127.0.0.2:7443".parse().expect("an address");
    bootstrap::ensure(&f.api.registry, service_ip, moved)
        .await
        .expect("the system's objects");
    let after = f.get(uri).await.body;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"]["ports"][0]["targetPort"], 7443);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = f.get(slices).await.body;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["127.0.0.2"]));
}

#[tokio::test]
async fn what_somebody_deletes_of_the_systems_is_made_again_and_the_rest_is_not_written() {
    let f = Fixture::new().await;
    let (service_ip, address) = (
        Ipv4Addr::new(10, 96, 0, 1).into(),
        "127.0.0.1:6443".parse().expect("an address"),
    );
    let namespaces = "/api/v1/namespaces";
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let before = f.get(namespaces).await.body;
    f.call("DELETE", service, Value::Null).await;
    assert_eq!(f.get(service).await.code, 404);
    bootstrap::ensure(&f.api.registry, service_ip, address)
        .await
        .expect("the system's objects");
    assert_eq!(f.get(service).await.body["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(f.get(namespaces).await.body["items"], before["items"]);
}
