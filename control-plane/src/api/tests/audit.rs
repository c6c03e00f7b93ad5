//! What the audit log says of requests.

use super::*;
use crate::api::audit::{Config, Log, Policy};
use crate::store::Store;
use crate::store::embedded::Embedded;

/// A server that audits, by a policy if one is given.
async fn audited(policy: Option<&str>) -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let policy = policy.map(|text| {
        let path = dir.path().join("policy");
        std::fs::write(&path, text).expect("a file");
        path
    });
    let log = Log::open(Config {
        path: dir.path().join("audit.log"),
        policy,
        size: 1 << 20,
        backups: 0,
    });
    let log = log.expect("an audit log");
    let store = Embedded::open(&dir.path().join("store")).expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let (api, _) = testing::start_audited(store, dir.path(), testing::SERVICES, Some(log)).await;
    Fixture::of(api, dir)
}

impl Fixture {
    /// The events so far, when there are so many: a thread of its own writes them.
    async fn audit(&self, count: usize) -> Vec<Value> {
        for _ in 0..1_000 {
            let text = std::fs::read_to_string(self.dir.path().join("audit.log")).expect("a log");
            let lines = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            let events: Vec<Value> = lines
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            if events.len() >= count {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("there are not {count} events");
    }
}

#[tokio::test]
async fn requests_leave_events_and_nothing_of_secrets() {
    let f = audited(None).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "open sesame"}});
    assert_eq!(f.call("POST", secrets, secret).await.code, 201);
    let stranger = User::authenticated("jane", ["devs".to_owned()]);
    let uri = format!("{secrets}/s");
    assert_eq!(f.call_as(stranger, "GET", &uri, "", "").await.code, 403);
    assert_eq!(
        f.get(&format!("{MAPS}?watch=1&timeoutSeconds=1"))
            .await
            .code,
        200
    );
    assert_eq!(f.get("/version").await.code, 200);
    let [made, refused, watched, version] = &f.audit(4).await[..] else {
        panic!("not as many as were asked");
    };
    assert_eq!(made["kind"], "Event");
    assert_eq!(made["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(made["level"], "Metadata");
    assert_eq!(made["stage"], "ResponseComplete");
    assert_eq!(
        (&made["verb"], &made["requestURI"]),
        (&json!("create"), &json!(secrets))
    );
    let object = json!({"resource": "secrets", "namespace": "default", "apiVersion": "v1"});
    assert_eq!(made["objectRef"], object);
    assert_eq!(made["responseStatus"]["code"], 201);
    assert_eq!(
        made["annotations"]["authorization.k8s.io/decision"],
        "allow"
    );

    assert_eq!(refused["user"]["username"], "jane");
    assert_eq!(refused["objectRef"]["name"], "s");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert_eq!(
        refused["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );
    assert_eq!(watched["stage"], "ResponseStarted");
    assert_eq!(
        (&version["verb"], version.get("objectRef")),
        (&json!("get"), None)
    );
    let text = std::fs::read_to_string(f.dir.path().join("audit.log")).expect("a log");
    assert!(!text.contains("sesame"), "{text}");
}

#[tokio::test]
async fn who_acts_as_somebody_else_is_named_too() {
    let f = audited(None).await;
    let request = Request::builder()
        .uri(MAPS)
        .header("impersonate-user", "jane");
    let response = f.send(admin(), request, Body::empty()).await;
    assert_eq!(response.status(), 403);
    let event = &f.audit(1).await[0];
    assert_eq!(event["user"]["username"], "admin");
    assert_eq!(event["impersonatedUser"]["username"], "jane");
}

#[tokio::test]
async fn what_pod_security_audits_is_an_annotation() {
    let f = audited(None).await;
    let labels = json!({"pod-security.kubernetes.io/audit": "restricted"});
    let labels = json!({"metadata": {"labels": labels}}).to_string();
    let namespace = "/api/v1/namespaces/default";
    let merge = "application/merge-patch+json";
    let labelled = f.call_as(admin(), "PATCH", namespace, merge, &labels);
    assert_eq!(labelled.await.code, 200);
    assert_eq!(f.call("POST", PODS, pod("a")).await.code, 201);
    let events = f.audit(2).await;
    let annotations = &events[1]["annotations"];
    let found = annotations["pod-security.kubernetes.io/audit-violations"].as_str();
    let begins =
        "would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false";
    assert!(
        found.is_some_and(|text| text.starts_with(begins)),
        "{annotations}"
    );
    assert_eq!(
        annotations["pod-security.kubernetes.io/enforce-policy"],
        "privileged:latest"
    );
}

#[tokio::test]
async fn the_first_rule_that_fits_decides() {
    let f = audited(Some(
        "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  resources: [{group: '', resources: [secrets], resourceNames: [s]}]
- level: None
  verbs: [get, list, watch]
- level: None
  userGroups: ['system:nodes']
- level: Metadata
  namespaces: [default]
  resources: [{group: '', resources: [configmaps, 'pods/*']}, {group: apps}]
- level: None
  nonResourceURLs: ['/healthz*', /version]
",
    ))
    .await;
    let secrets = "/api/v1/namespaces/default/secrets";
    f.get(&format!("{secrets}/s")).await;
    f.get(&format!("{secrets}/t")).await;
    f.get("/version").await;
    f.call("POST", secrets, json!({})).await;
    f.call("POST", MAPS, json!({})).await;
    f.call("POST", "/api/v1/namespaces/other/configmaps", json!({}))
        .await;
    f.call("POST", &format!("{PODS}/p/eviction"), json!({}))
        .await;
    f.call(
        "POST",
        "/apis/apps/v1/namespaces/default/deployments",
        json!({}),
    )
    .await;
    let events = f.audit(4).await;
    let resources: Vec<_> = events
        .iter()
        .map(|event| &event["objectRef"]["resource"])
        .collect();
    assert_eq!(resources, ["secrets", "configmaps", "pods", "deployments"]);
}

#[test]
fn what_a_policy_cannot_have_here_is_said() {
    let refused = |rules: &str| {
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: {rules}\n");
        Policy::parse(&text).expect_err(rules).to_string()
    };
    let level = refused("[{level: None}, {level: RequestResponse}]");
    assert_eq!(
        level,
        "rules[1].level: bodies are not recorded here; say None or Metadata"
    );
    assert!(refused("[{level: All}]").contains("All"));
    assert!(refused("[{level: None, nonsense: 1}]").contains("nonsense"));
    let other = Policy::parse("apiVersion: v1\nkind: Pod\n").expect_err("a pod");
    assert!(other.to_string().contains("Pod of v1"));
}
