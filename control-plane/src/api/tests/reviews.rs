//! Questions about access and identity, and acting as somebody else.

use super::*;

const SUBJECT: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const LOCAL: &str = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
const OWN: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RULES: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
const ME: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const TOKEN: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn about(user: &str, groups: &[&str], verb: &str, resource: &str) -> Value {
    json!({"spec": {
        "user": user, "groups": groups,
        "resourceAttributes": {"verb": verb, "resource": resource, "namespace": "default"},
    }})
}

impl Fixture {
    async fn asked_by(&self, user: User, uri: &str, body: Value) -> Answer {
        self.call_as(user, "POST", uri, "application/json", &body.to_string())
            .await
    }
}

#[tokio::test]
async fn who_may_do_what_is_said_with_its_reason() {
    let f = Fixture::new().await;
    let scheduler = about("system:kube-scheduler", &[], "list", "pods");
    let answer = f.call("POST", SUBJECT, scheduler.clone()).await;
    assert_eq!(answer.code, 201, "{}", answer.message());
    assert_eq!(
        answer.body["status"],
        json!({
            "allowed": true,
            "reason": "RBAC: allowed by ClusterRoleBinding \"system:kube-scheduler\" of ClusterRole \"system:kube-scheduler\" to User \"system:kube-scheduler\"",
        })
    );
    assert_eq!(answer.body["spec"], scheduler["spec"]);
    let answer = f
        .call("POST", SUBJECT, about("jo", &[], "list", "pods"))
        .await;
    assert_eq!(answer.body["status"], json!({"allowed": false}));
    // Nothing is added to the groups that the question names.
    let discovery = |groups: &[&str]| json!({"spec": {"user": "jo", "groups": groups, "nonResourceAttributes": {"path": "/apis", "verb": "get"}}});
    let allowed =
        async |body: Value| f.call("POST", SUBJECT, body).await.body["status"]["allowed"].clone();
    assert_eq!(allowed(discovery(&[])).await, false);
    assert_eq!(allowed(discovery(&["system:authenticated"])).await, true);
    // A node is told why not.
    let node = about("system:node:n1", &[NODES], "get", "secrets");
    let answer = f.call("POST", SUBJECT, node).await;
    assert_eq!(
        answer.body["status"]["reason"],
        "no pod on this node refers to it"
    );
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused() {
    let f = Fixture::new().await;
    let both =
        json!({"spec": {"user": "a", "resourceAttributes": {}, "nonResourceAttributes": {}}});
    for (uri, body, code, message) in [
        (
            SUBJECT,
            both,
            422,
            "cannot be specified in combination with resourceAttributes",
        ),
        (
            SUBJECT,
            json!({"spec": {"user": "a"}}),
            422,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (
            SUBJECT,
            json!({"spec": {"resourceAttributes": {}}}),
            422,
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ),
        (LOCAL, about("a", &[], "get", "pods"), 201, ""),
        (
            LOCAL,
            json!({"spec": {"user": "a", "resourceAttributes": {"namespace": "x"}}}),
            400,
            "spec.resourceAttributes.namespace must match namespace: default",
        ),
        (RULES, json!({"spec": {}}), 400, "no namespace on request"),
        (TOKEN, json!({"spec": {}}), 400, "token is required"),
        (SUBJECT, json!({"kind": "Pod"}), 400, "does not match"),
    ] {
        let answer = f.call("POST", uri, body).await;
        assert_eq!(answer.code, code, "{}", answer.body);
        assert!(answer.message().contains(message), "{}", answer.message());
    }
    assert_eq!(f.get(SUBJECT).await.code, 405);
    // kubectl asks for these before it sends a question from a file.
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(f.get(definitions).await.body["items"], json!([]));
    // Only who may ask about others may ask about others.
    let jo = || User::authenticated("jo", []);
    assert_eq!(
        f.asked_by(jo(), SUBJECT, about("a", &[], "get", "pods"))
            .await
            .code,
        403
    );
}

#[tokio::test]
async fn everybody_may_ask_about_itself() {
    let f = Fixture::new().await;
    let mut jo = User::authenticated("jo", ["a".to_owned()]);
    jo.uid = "7".into();
    jo.extra.insert("k".into(), vec!["v".into()]);
    let pods = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}});
    let answer = f.asked_by(jo.clone(), OWN, pods.clone()).await;
    assert_eq!(
        (answer.code, &answer.body["status"]["allowed"]),
        (201, &json!(false))
    );
    assert_eq!(
        f.asked_by(admin(), OWN, pods).await.body["status"]["allowed"],
        true
    );
    let me = f.asked_by(jo.clone(), ME, json!({})).await;
    assert_eq!(
        me.body["status"]["userInfo"],
        json!({"username": "jo", "uid": "7", "groups": ["a", "system:authenticated"], "extra": {"k": ["v"]}})
    );
    let rules = f
        .asked_by(jo, RULES, json!({"spec": {"namespace": "default"}}))
        .await;
    let status = &rules.body["status"];
    assert_eq!(status["incomplete"], false);
    let mine = status["resourceRules"].as_array().expect("rules").iter();
    assert!(
        mine.clone()
            .any(|rule| rule["resources"] == json!(["selfsubjectreviews"])),
        "{status}"
    );
    assert!(
        status["nonResourceRules"]
            .to_string()
            .contains("/openapi/*")
    );
    let node = User::authenticated("system:node:n1", [NODES.to_owned()]);
    let rules = f
        .asked_by(node, RULES, json!({"spec": {"namespace": "default"}}))
        .await;
    assert_eq!(rules.body["status"]["incomplete"], true);
}

#[tokio::test]
async fn a_token_nobody_knows_is_nobodys() {
    let f = Fixture::new().await;
    let answer = f.call("POST", TOKEN, json!({"spec": {"token": "x"}})).await;
    assert_eq!(answer.code, 201);
    assert_eq!(answer.body["status"]["authenticated"], Value::Null);
    assert_ne!(answer.body["status"]["error"], Value::Null);
}

#[tokio::test]
async fn who_may_act_as_somebody_else() {
    let f = Fixture::new().await;
    let as_jo = |user: User, headers: &'static [(&'static str, &'static str)]| {
        let mut request = Request::builder().method("POST").uri(ME);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        f.send(
            user,
            request.header(header::CONTENT_TYPE, "application/json"),
            "{}",
        )
    };
    let read = async |response: http::Response<Body>| {
        let code = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        (code, serde_json::from_slice::<Value>(&bytes).expect("JSON"))
    };
    let (code, body) = read(
        as_jo(
            admin(),
            &[("Impersonate-User", "jo"), ("Impersonate-Group", "g")],
        )
        .await,
    )
    .await;
    assert_eq!(code, 201, "{body}");
    assert_eq!(
        body["status"]["userInfo"],
        json!({"username": "jo", "groups": ["g", "system:authenticated"]})
    );
    let al = || User::authenticated("al", []);
    let (code, body) = read(as_jo(al(), &[("Impersonate-User", "jo")]).await).await;
    assert_eq!(code, 403);
    assert_eq!(
        body["message"],
        "users \"jo\" is forbidden: User \"al\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    let (code, _) = read(as_jo(admin(), &[("Impersonate-Group", "g")]).await).await;
    assert_eq!(code, 500);
    let account = &[("Impersonate-User", "system:serviceaccount:default:x")];
    let (code, body) = read(as_jo(al(), account).await).await;
    assert_eq!(code, 403);
    assert!(
        body["message"]
            .as_str()
            .expect("text")
            .contains("\"serviceaccounts\" in API group \"\" in the namespace \"default\""),
        "{body}"
    );
}

#[tokio::test]
async fn discovery_tells_of_questions() {
    let f = Fixture::new().await;
    let list = f.get("/apis/authorization.k8s.io/v1").await.body;
    let names: Vec<_> = list["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert!(names.contains(&&json!("subjectaccessreviews")), "{list}");
    assert!(
        f.get("/apis")
            .await
            .body
            .to_string()
            .contains("authentication.k8s.io/v1")
    );
}
