//! Server-side apply through subresources: who owns what then, and who is in whose way.

use super::*;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const REQUEST: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests/new-node";

impl Fixture {
    async fn applied(&self, uri: &str, manager: &str, config: Value) -> Answer {
        let uri = format!("{uri}?fieldManager={manager}");
        let kind = "application/apply-patch+yaml";
        let body = config.to_string();
        self.call_as(admin(), "PATCH", &uri, kind, &body).await
    }

    /// The managers of an object that own something below a field, each with the subresource that it went through.
    async fn owners(&self, uri: &str, path: &str) -> Vec<(String, String)> {
        let object = self.get(uri).await.body;
        let entries = object["metadata"]["managedFields"].as_array();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let entries = entries.into_iter().flatten();
        entries
            .filter(|entry| entry["fieldsV1"].pointer(path).is_some())
            .map(|entry| (text(&entry["manager"]), text(&entry["subresource"])))
            .collect()
    }
}

fn deployment(replicas: Option<i64>) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    })
}

fn scale(replicas: i64) -> Value {
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": replicas}})
}

#[tokio::test]
async fn who_applies_a_scale_owns_the_replicas_of_the_object() {
    let f = Fixture::new().await;
    let path = "/f:spec/f:replicas";
    let url = format!("{DEPLOYMENT}/scale");
    let nothing_there = f.applied(&url, "scaler", scale(3)).await;
    assert_eq!(nothing_there.code, 404, "a scale makes no object");
    let made = f.applied(DEPLOYMENT, "owner", deployment(Some(2))).await;
    assert_eq!(made.code, 201, "{}", made.message());

    let refused = f.applied(&url, "scaler", scale(3)).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            409,
            "Apply failed with 1 conflict: conflict with \"owner\" using apps/v1: .spec.replicas"
        )
    );
    let taken = f.applied(&url, "scaler&force=true", scale(3)).await;
    assert_eq!((taken.code, &taken.body["kind"]), (200, &json!("Scale")));
    assert_eq!(taken.body["spec"], json!({"replicas": 3}));
    let scaler = ("scaler".to_owned(), "scale".to_owned());
    assert_eq!(
        f.owners(DEPLOYMENT, path).await,
        std::slice::from_ref(&scaler)
    );
    let object = f.get(DEPLOYMENT).await.body;
    assert_eq!(object["spec"]["replicas"], 3);
    assert_eq!(object["metadata"]["generation"], 2);

    // The same again changes nothing; without the field its first owner has no say in it.
    let again = f.applied(&url, "scaler", scale(3)).await;
    assert_eq!(
        again.body["metadata"]["resourceVersion"],
        object["metadata"]["resourceVersion"]
    );
    let without = f.applied(DEPLOYMENT, "owner", deployment(None)).await;
    assert_eq!(without.body["spec"]["replicas"], 3);
    let refused = f.applied(DEPLOYMENT, "owner", deployment(Some(4))).await;
    assert!(
        refused
            .message()
            .contains("\"scaler\" with subresource \"scale\""),
        "{}",
        refused.message()
    );
    // An update through the same subresource takes the field from whoever applied it.
    let put = f.call("PUT", &url, scale(5)).await;
    assert_eq!(put.code, 200, "{}", put.message());
    let unknown = ("unknown".to_owned(), "scale".to_owned());
    assert_eq!(f.owners(DEPLOYMENT, path).await, [unknown]);
}

#[tokio::test]
async fn a_scale_that_is_none_is_refused() {
    let f = Fixture::new().await;
    f.applied(DEPLOYMENT, "owner", deployment(None)).await;
    let url = format!("{DEPLOYMENT}/scale");
    let of = |field: &str, value: Value| {
        let mut scale = scale(1);
        scale[field] = value;
        scale
    };
    for (wrong, code) in [
        (deployment(Some(1)), 400),
        (of("spec", json!({"replicas": -1})), 422),
        (of("spec", json!({"replicas": "1"})), 400),
        (of("spec", json!({"replica": 1})), 400),
        (of("metadata", json!({"name": "other"})), 400),
        (of("metadata", json!({"managedFields": [{}]})), 400),
        (of("metadata", json!({"resourceVersion": "1"})), 409),
    ] {
        let answer = f.applied(&url, "scaler", wrong.clone()).await;
        assert_eq!(answer.code, code, "{wrong}: {}", answer.message());
    }
}

#[tokio::test]
async fn status_approval_and_ephemeral_containers_are_applied_too() {
    let f = Fixture::new().await;
    f.call("POST", PODS, pod("a")).await;
    let uri = format!("{PODS}/a/ephemeralcontainers");
    let config = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"ephemeralContainers": [{"name": "look", "image": "i"}]},
    });
    let added = f.applied(&uri, "looker", config).await;
    assert_eq!(added.code, 200, "{}", added.message());
    let there = &added.body["spec"]["ephemeralContainers"];
    assert_eq!(there[0]["name"], "look");
    assert_eq!(
        f.owners(&format!("{PODS}/a"), "/f:spec/f:ephemeralContainers")
            .await,
        [("looker".to_owned(), "ephemeralcontainers".to_owned())]
    );

    let made = testing_request(&f).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let config = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "new-node"},
        "status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Known"}]},
    });
    let approved = f
        .applied(&format!("{REQUEST}/approval"), "approver", config)
        .await;
    assert_eq!(approved.code, 200, "{}", approved.message());
    let condition = &approved.body["status"]["conditions"][0];
    assert_eq!(condition["type"], "Approved");
    assert_eq!(
        f.owners(REQUEST, "/f:status/f:conditions").await,
        [("approver".to_owned(), "approval".to_owned())]
    );
}

async fn testing_request(f: &Fixture) -> Answer {
    use base64::Engine;
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::default();
    let name = &mut parameters.distinguished_name;
    name.push(rcgen::DnType::CommonName, "system:node:n");
    name.push(rcgen::DnType::OrganizationName, "system:nodes");
    let request = parameters.serialize_request(&key).expect("a request");
    let pem = request.pem().expect("PEM");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pem);
    let body = json!({
        "metadata": {"name": "new-node"},
        "spec": {
            "request": encoded, "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["digital signature", "client auth"],
        },
    });
    let (collection, _) = REQUEST.rsplit_once('/').expect("a name");
    f.call("POST", collection, body).await
}
