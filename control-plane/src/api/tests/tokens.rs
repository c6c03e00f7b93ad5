//! Service accounts' tokens: asked for, shown, and good only as long as what they are bound to is there.

use super::*;
use crate::api::server::strangers::Stranger;

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const ME: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEW: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

impl Fixture {
    /// A new token of the account `me`, asked for as kubectl does, with a status that says nothing.
    async fn token(&self, spec: Value) -> Answer {
        let status = json!({"token": "", "expirationTimestamp": null});
        self.call(
            "POST",
            &format!("{ACCOUNTS}/me/token"),
            json!({"spec": spec, "status": status}),
        )
        .await
    }

    /// Who the bearer is; the code if nobody.
    async fn bearer(&self, token: &str) -> Result<Value, u16> {
        let request = Request::builder()
            .method("POST")
            .uri(ME)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::from("{}"))
            .expect("a request");
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("an answer");
        let code = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        match code {
            201 => {
                let body: Value = serde_json::from_slice(&bytes).expect("JSON");
                Ok(body["status"]["userInfo"].clone())
            }
            code => Err(code),
        }
    }

    async fn with_account() -> Self {
        let f = Self::new().await;
        let made = f
            .call("POST", ACCOUNTS, json!({"metadata": {"name": "me"}}))
            .await;
        assert_eq!(made.code, 201, "{}", made.message());
        f
    }

    /// A pod of the account, on that node.
    async fn pod_of(&self, name: &str, account: &str, node: &str) -> Value {
        let mut pod = pod(name);
        pod["spec"]["serviceAccountName"] = json!(account);
        pod["spec"]["nodeName"] = json!(node);
        let made = self.call("POST", PODS, pod).await;
        assert_eq!(made.code, 201, "{}", made.message());
        made.body
    }
}

fn text(answer: &Answer) -> String {
    assert_eq!(answer.code, 201, "{}", answer.message());
    answer.body["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned()
}

#[tokio::test]
async fn a_token_is_its_account_until_that_goes() {
    let f = Fixture::with_account().await;
    let answer = f.token(json!({})).await;
    let token = text(&answer);
    assert_eq!(answer.body["spec"]["expirationSeconds"], 3600);
    let me = f.bearer(&token).await.expect("somebody");
    assert_eq!(me["username"], "system:serviceaccount:default:me");
    assert_eq!(
        me["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    let id = &me["extra"]["authentication.kubernetes.io/credential-id"][0];
    assert!(id.as_str().expect("an id").starts_with("JTI="), "{me}");
    assert_eq!(f.bearer(&format!("{token}x")).await, Err(401));
    // Another account of the same name is another account.
    let uri = format!("{ACCOUNTS}/me");
    f.call("DELETE", &uri, Value::Null).await;
    // A token is checked by what the cache has; a read waits until it has this.
    assert_eq!(f.call("GET", &uri, Value::Null).await.code, 404);
    assert_eq!(f.bearer(&token).await, Err(401));
    f.call("POST", ACCOUNTS, json!({"metadata": {"name": "me"}}))
        .await;
    assert_eq!(f.call("GET", &uri, Value::Null).await.code, 200);
    assert_eq!(f.bearer(&token).await, Err(401));
}

#[tokio::test]
async fn a_token_is_for_its_audiences() {
    let f = Fixture::with_account().await;
    let token = text(&f.token(json!({"audiences": ["vault"]})).await);
    assert_eq!(f.bearer(&token).await, Err(401));
    let review = async |audiences: &[&str]| {
        let spec = json!({"token": token, "audiences": audiences});
        f.call("POST", REVIEW, json!({"spec": spec})).await.body["status"].clone()
    };
    let for_vault = review(&["vault", "other"]).await;
    assert_eq!(
        (&for_vault["authenticated"], &for_vault["audiences"]),
        (&json!(true), &json!(["vault"]))
    );
    assert_eq!(
        for_vault["user"]["username"],
        "system:serviceaccount:default:me"
    );
    assert_eq!(review(&[]).await["authenticated"], Value::Null);
}

#[tokio::test]
async fn a_token_is_bound_to_a_pod() {
    let f = Fixture::with_account().await;
    let other = json!({"metadata": {"name": "other"}});
    assert_eq!(f.call("POST", ACCOUNTS, other).await.code, 201);
    let pod = f.pod_of("p", "me", "n1").await;
    f.pod_of("q", "other", "n1").await;
    let bound = |name: &str, uid: &str| json!({"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}});
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let token = text(&f.token(bound("p", uid)).await);
    let me = f.bearer(&token).await.expect("somebody");
    assert_eq!(
        me["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    assert_eq!(
        me["extra"]["authentication.kubernetes.io/pod-uid"],
        json!([uid])
    );
    assert_eq!(
        me["extra"]["authentication.kubernetes.io/node-name"],
        json!(["n1"])
    );
    for (name, uid, code) in [("p", "other", 409), ("q", "", 400), ("gone", "", 404)] {
        assert_eq!(f.token(bound(name, uid)).await.code, code, "{name}");
    }
    f.call(
        "DELETE",
        &format!("{PODS}/p"),
        json!({"gracePeriodSeconds": 0}),
    )
    .await;
    f.get(PODS).await;
    assert_eq!(f.bearer(&token).await, Err(401));
}

#[tokio::test]
async fn what_no_token_can_be_is_refused() {
    let f = Fixture::with_account().await;
    for (spec, code, message) in [
        (
            json!({"expirationSeconds": 599}),
            422,
            "may not specify a duration less than 10 minutes",
        ),
        (
            json!({"expirationSeconds": 1_i64 << 33}),
            422,
            "may not specify a duration larger than 2^32 seconds",
        ),
        (
            json!({"boundObjectRef": {"kind": "Service", "apiVersion": "v1", "name": "x"}}),
            400,
            "cannot bind token to object of type v1, Kind=Service",
        ),
        (json!({"audiences": 3}), 400, "spec"),
    ] {
        let answer = f.token(spec).await;
        assert_eq!(answer.code, code, "{}", answer.message());
        assert!(answer.message().contains(message), "{}", answer.message());
    }
    let nobody = f
        .call("POST", &format!("{ACCOUNTS}/nobody/token"), json!({}))
        .await;
    assert_eq!(
        (nobody.code, nobody.message()),
        (404, "serviceaccounts \"nobody\" not found")
    );
}

#[tokio::test]
async fn a_node_gets_tokens_of_its_own_pods_only() {
    let f = Fixture::with_account().await;
    let ask = async |node: &str, spec: Value| {
        let user = User::authenticated(format!("system:node:{node}"), [NODES.to_owned()]);
        let body = json!({"spec": spec}).to_string();
        let answer = f
            .call_as(
                user,
                "POST",
                &format!("{ACCOUNTS}/me/token"),
                "application/json",
                &body,
            )
            .await;
        (answer.code, answer.message().to_owned())
    };
    let of = |pod: &Value| json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}});
    // Nothing of an account that no pod of the node has.
    let (code, message) = ask("n1", json!({})).await;
    assert_eq!(code, 403);
    assert!(
        message.ends_with("no pod on this node uses it"),
        "{message}"
    );
    let (mine, theirs) = (
        f.pod_of("mine", "me", "n1").await,
        f.pod_of("theirs", "me", "n2").await,
    );
    f.get(PODS).await;
    let (code, message) = ask("n1", of(&mine)).await;
    assert_eq!(code, 201, "{message}");
    let mut without = of(&mine);
    without["boundObjectRef"]["uid"] = json!("");
    for (spec, why) in [
        (json!({}), "node requested token not bound to a pod"),
        (
            of(&theirs),
            "node requested token bound to a pod scheduled on a different node",
        ),
        (
            without,
            "node requested token with a pod binding without a uid",
        ),
    ] {
        let (code, message) = ask("n1", spec).await;
        assert_eq!(
            (code, message),
            (403, format!("serviceaccounts \"me\" is forbidden: {why}"))
        );
    }

    // And for the audiences that the pod has them for.
    let mut vault = pod("vault");
    vault["spec"]["serviceAccountName"] = json!("me");
    vault["spec"]["nodeName"] = json!("n1");
    vault["spec"]["automountServiceAccountToken"] = json!(false);
    let source = json!({"serviceAccountToken": {"audience": "vault", "path": "t"}});
    vault["spec"]["volumes"] = json!([{"name": "t", "projected": {"sources": [source]}}]);
    let vault = f.call("POST", PODS, vault).await;
    assert_eq!(vault.code, 201, "{}", vault.message());
    let own = testing::ISSUER;
    let not_found = |audience| {
        format!(
            "audience {audience:?} not found in pod spec volume, system:node:n1 is not authorized to request tokens for this audience"
        )
    };
    for (pod, audiences, refusal) in [
        (&mine, json!([own]), None),
        (&mine, json!(["vault"]), Some(not_found("vault"))),
        (&vault.body, json!(["vault"]), None),
        (&vault.body, json!([]), Some(not_found(own))),
        (
            &vault.body,
            json!(["vault", "other"]),
            Some("node may only request 0 or 1 audiences".to_owned()),
        ),
    ] {
        let mut spec = of(pod);
        spec["audiences"] = audiences.clone();
        let (code, message) = ask("n1", spec).await;
        match refusal {
            None => assert_eq!(code, 201, "{audiences}: {message}"),
            Some(why) => assert_eq!(
                (code, message),
                (403, format!("serviceaccounts \"me\" is forbidden: {why}"))
            ),
        }
    }
}

#[tokio::test]
async fn relying_parties_find_the_keys() {
    let f = Fixture::with_account().await;
    let account = User::service_account("default", "me", "u");
    for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        assert_eq!(
            f.call_as(account.clone(), "GET", path, "", "").await.code,
            200,
            "{path}"
        );
        assert_eq!(
            f.call_as(User::anonymous(), "GET", path, "", "").await.code,
            403,
            "{path}"
        );
    }
    let keys = f.get("/openid/v1/jwks").await.body;
    let token = text(&f.token(json!({})).await);
    let header = token.split('.').next().expect("a header");
    use base64::Engine;
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(header)
        .expect("base64");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    assert_eq!(header["kid"], keys["keys"][0]["kid"]);
}

#[tokio::test]
async fn bootstrap_tokens_are_those_of_secrets() {
    let f = Fixture::new().await;
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let token = "abcdef.0123456789abcdef";
    assert_eq!(f.bearer(token).await, Err(401));
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:workers",
        },
    });
    let made = f.call("POST", secrets, secret).await;
    assert_eq!(made.code, 201, "{}", made.message());
    // Until the cache has it.
    f.get(secrets).await;
    let user = f.bearer(token).await.expect("a bearer");
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    let groups = user["groups"].as_array().expect("groups");
    assert!(groups.contains(&json!("system:bootstrappers:workers")));
    assert_eq!(f.bearer("abcdef.0123456789abcdeg").await, Err(401));

    let over = json!({"stringData": {"expiration": "2020-01-01T00:00:00Z"}});
    let url = format!("{secrets}/bootstrap-token-abcdef");
    let merge = "application/merge-patch+json";
    let patched = f
        .call_as(admin(), "PATCH", &url, merge, &over.to_string())
        .await;
    assert_eq!(patched.code, 200, "{}", patched.message());
    assert_eq!(f.bearer(token).await, Err(401));
}

#[tokio::test]
async fn who_shows_a_good_token_is_no_stranger() {
    let f = Fixture::with_account().await;
    let token = text(&f.token(json!({})).await);
    let (stranger, places) = Stranger::alone();
    for (shown, free) in [
        (None, 0),
        (Some("abc".to_owned()), 0),
        (Some(token.clone()), 1),
        (Some(token), 1),
    ] {
        let mut request = Request::builder().uri("/version");
        if let Some(token) = &shown {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut request = request.body(Body::empty()).expect("a request");
        request.extensions_mut().insert(stranger.clone());
        let answered = f.router.clone().oneshot(request).await;
        answered.expect("an answer");
        assert_eq!(places.available_permits(), free, "{shown:?}");
    }
}
