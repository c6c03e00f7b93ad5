//! RBAC on a whole server: grants take effect, nobody gives away what it has not, the defaults come back.

use super::*;
use crate::api::default_roles;

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const CLUSTER_BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

fn role(name: &str, verbs: &[&str], what: &str) -> Value {
    let rule = json!({"verbs": verbs, "apiGroups": ["", "rbac.authorization.k8s.io"], "resources": [what]});
    json!({"metadata": {"name": name}, "rules": [rule]})
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "roleRef": {"kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": user}],
    })
}

impl Fixture {
    async fn call_by(&self, user: &str, method: &str, uri: &str, body: &Value) -> Answer {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let user = User::authenticated(user, []);
        self.call_as(user, method, uri, "application/json", &text)
            .await
    }

    /// Waits until the user gets this code: what is granted takes effect a moment later.
    async fn becomes(&self, user: &str, method: &str, uri: &str, code: u16) {
        self.becomes_with(user, (method, uri), &Value::Null, code)
            .await;
    }

    async fn becomes_with(&self, user: &str, (method, uri): (&str, &str), body: &Value, code: u16) {
        for _ in 0..500 {
            if self.call_by(user, method, uri, body).await.code == code {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{user} {method} {uri}: never {code}");
    }
}

#[tokio::test]
async fn a_binding_grants_and_its_removal_takes_back() {
    let f = Fixture::new().await;
    let made = f
        .call("POST", ROLES, role("read", &["get", "list"], "configmaps"))
        .await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert_eq!(f.call_by("jo", "GET", MAPS, &Value::Null).await.code, 403);
    let made = f
        .call("POST", BINDINGS, binding("jo", "Role", "read", "jo"))
        .await;
    assert_eq!(made.code, 201, "{}", made.message());
    f.becomes("jo", "GET", MAPS, 200).await;
    assert_eq!(f.call_by("jo", "GET", PODS, &Value::Null).await.code, 403);
    assert_eq!(
        f.call_by("jo", "GET", "/api/v1/configmaps", &Value::Null)
            .await
            .code,
        403
    );
    // Its role stays what it is.
    let other = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}});
    let merge = "application/merge-patch+json";
    let changed = f
        .call_as(
            admin(),
            "PATCH",
            &format!("{BINDINGS}/jo"),
            merge,
            &other.to_string(),
        )
        .await;
    assert_eq!(changed.code, 422);
    assert!(
        changed.message().contains("cannot change roleRef"),
        "{}",
        changed.message()
    );
    f.call("DELETE", &format!("{BINDINGS}/jo"), Value::Null)
        .await;
    f.becomes("jo", "GET", MAPS, 403).await;
}

#[tokio::test]
async fn nobody_gives_away_what_it_does_not_have() {
    let f = Fixture::new().await;
    // May write roles and bindings here, and read ConfigMaps.
    for (name, verbs, what) in [
        ("writer", &["*"][..], "roles"),
        ("binder", &["*"], "rolebindings"),
        ("reader", &["get"], "configmaps"),
    ] {
        assert_eq!(
            f.call("POST", ROLES, role(name, verbs, what)).await.code,
            201
        );
        assert_eq!(
            f.call("POST", BINDINGS, binding(name, "Role", name, "jo"))
                .await
                .code,
            201
        );
    }
    f.call("POST", ROLES, role("mighty", &["*"], "secrets"))
        .await;
    let one = format!("{MAPS}/none");
    f.becomes("jo", "GET", &one, 404).await;
    f.becomes("jo", "GET", &format!("{ROLES}/none"), 404).await;

    let allowed = f
        .call_by(
            "jo",
            "POST",
            ROLES,
            &role("as-mine", &["get"], "configmaps"),
        )
        .await;
    // Verb `*` on roles includes escalate, so this one shows nothing; with plain verbs it is refused.
    assert_eq!(allowed.code, 201, "{}", allowed.message());
    let plain = role("writer", &["create", "get", "update", "patch"], "roles");
    assert_eq!(
        f.call("PUT", &format!("{ROLES}/writer"), plain).await.code,
        200
    );
    f.becomes("jo", "DELETE", &format!("{ROLES}/as-mine"), 403)
        .await;
    let refused = f
        .call_by(
            "jo",
            "POST",
            ROLES,
            &role("more", &["get", "list"], "secrets"),
        )
        .await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message(),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jo\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}\n\
         {APIGroups:[\"rbac.authorization.k8s.io\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
    );
    // The same by changing one.
    let grown = f
        .call_by(
            "jo",
            "PUT",
            &format!("{ROLES}/reader"),
            &role("reader", &["get"], "secrets"),
        )
        .await;
    assert_eq!(grown.code, 403, "{}", grown.message());

    // And for bindings, without the verb bind.
    let plain = role("binder", &["create", "get"], "rolebindings");
    assert_eq!(
        f.call("PUT", &format!("{ROLES}/binder"), plain).await.code,
        200
    );
    f.becomes("jo", "DELETE", &format!("{BINDINGS}/none"), 403)
        .await;
    let refused = f
        .call_by(
            "jo",
            "POST",
            BINDINGS,
            &binding("b1", "Role", "mighty", "jo"),
        )
        .await;
    assert_eq!(refused.code, 403, "{}", refused.message());
    let refused = f
        .call_by(
            "jo",
            "POST",
            BINDINGS,
            &binding("b2", "ClusterRole", "cluster-admin", "jo"),
        )
        .await;
    assert_eq!(refused.code, 403, "{}", refused.message());
    let lost = f
        .call_by(
            "jo",
            "POST",
            BINDINGS,
            &binding("b3", "Role", "nowhere", "jo"),
        )
        .await;
    assert_eq!(
        (lost.code, lost.message()),
        (404, "roles.rbac.authorization.k8s.io \"nowhere\" not found")
    );
    let held = f
        .call_by(
            "jo",
            "POST",
            BINDINGS,
            &binding("b4", "Role", "reader", "al"),
        )
        .await;
    assert_eq!(held.code, 201, "{}", held.message());
}

#[tokio::test]
async fn the_defaults_are_there_and_come_back_at_a_start() {
    let f = Fixture::new().await;
    for (list, name) in [
        (CLUSTER_ROLES, "cluster-admin"),
        (CLUSTER_ROLES, "view"),
        (CLUSTER_BINDINGS, "system:discovery"),
    ] {
        assert_eq!(f.get(&format!("{list}/{name}")).await.code, 200, "{name}");
    }
    let discovery = format!("{CLUSTER_BINDINGS}/system:discovery");
    assert_eq!(f.call_by("x", "GET", "/apis", &Value::Null).await.code, 200);
    assert_eq!(f.call("DELETE", &discovery, Value::Null).await.code, 200);
    f.becomes("x", "GET", "/apis", 403).await;
    let kept = format!("{CLUSTER_ROLES}/system:basic-user");
    let off = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": []});
    let off = f
        .call_as(
            admin(),
            "PATCH",
            &kept,
            "application/merge-patch+json",
            &off.to_string(),
        )
        .await;
    assert_eq!(off.code, 200, "{}", off.message());

    default_roles::ensure(&f.api.registry).await.expect("roles");
    f.becomes("x", "GET", "/apis", 200).await;
    assert_eq!(f.get(&kept).await.body["rules"], json!([]));
}

#[tokio::test]
async fn who_may_patch_makes_nothing_by_applying() {
    let f = Fixture::new().await;
    let made = f
        .call("POST", ROLES, role("p", &["get", "patch"], "configmaps"))
        .await;
    assert_eq!(made.code, 201, "{}", made.message());
    let granted = f
        .call("POST", BINDINGS, binding("jo", "Role", "p", "jo"))
        .await;
    assert_eq!(granted.code, 201, "{}", granted.message());
    let url = format!("{MAPS}/a");
    f.becomes("jo", "GET", &url, 404).await;
    let apply = async || {
        f.call_as(
            User::authenticated("jo", []),
            "PATCH",
            &format!("{url}?fieldManager=jo&force=true"),
            "application/apply-patch+yaml",
            &map("a").to_string(),
        )
        .await
    };
    let refused = apply().await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            403,
            "configmaps \"a\" is forbidden: User \"jo\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""
        )
    );
    assert_eq!(f.get(&url).await.code, 404);
    assert_eq!(f.call("POST", MAPS, map("a")).await.code, 201);
    assert_eq!(apply().await.code, 200);
}

#[tokio::test]
async fn a_certificate_is_approved_and_signed_by_who_may_for_its_signer() {
    const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let f = Fixture::new().await;
    let request = json!({
        "metadata": {"name": "r"},
        "spec": {"request": "LS0tLS1CRUdJTg==", "signerName": "example.com/one", "usages": ["client auth"]},
    });
    let made = f.call("POST", REQUESTS, request).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let grant = async |name: &str, rules: Value| {
        let role = json!({"metadata": {"name": name}, "rules": rules});
        assert_eq!(f.call("POST", CLUSTER_ROLES, role).await.code, 201);
        let bound = binding(name, "ClusterRole", name, "jo");
        assert_eq!(f.call("POST", CLUSTER_BINDINGS, bound).await.code, 201);
    };
    let signers = |verb: &str, name: &str| json!([{"verbs": [verb], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [name]}]);
    let written =
        ["", "/status", "/approval"].map(|part| format!("certificatesigningrequests{part}"));
    let rules = json!([{"verbs": ["get", "update"], "apiGroups": ["certificates.k8s.io"], "resources": written}]);
    grant("writer", rules).await;
    let one = format!("{REQUESTS}/r");
    f.becomes("jo", "GET", &one, 200).await;

    let with = |mut object: Value, kind: &str| {
        object["status"]["conditions"] = json!([{"type": kind, "status": "True", "reason": "r"}]);
        object
    };
    let approved = with(made.body.clone(), "Approved");
    let (approval, status) = (format!("{one}/approval"), format!("{one}/status"));
    let refused = f.call_by("jo", "PUT", &approval, &approved).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            403,
            "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to approve requests with signerName \"example.com/one\""
        )
    );
    let mut signed = made.body.clone();
    signed["status"]["certificate"] = json!("YQ==");
    for wanted in [&signed, &with(made.body.clone(), "Failed")] {
        let refused = f.call_by("jo", "PUT", &status, wanted).await;
        assert_eq!(
            (refused.code, refused.message()),
            (
                403,
                "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to sign requests with signerName \"example.com/one\""
            )
        );
    }
    // Not even who may all decides through the status.
    for kind in ["Approved", "Denied"] {
        let refused = f.call("PUT", &status, with(made.body.clone(), kind)).await;
        assert_eq!(
            (refused.code, refused.message()),
            (
                422,
                &*format!(
                    "CertificateSigningRequest.certificates.k8s.io \"r\" is invalid: status.conditions: Forbidden: updates may not add a condition of type {kind:?}"
                )
            )
        );
    }

    grant("approver", signers("approve", "example.com/*")).await;
    f.becomes_with("jo", ("PUT", &approval), &approved, 200)
        .await;
    let mut signed = f.get(&one).await.body;
    signed["status"]["certificate"] = json!("YQ==");
    assert_eq!(f.call_by("jo", "PUT", &status, &signed).await.code, 403);
    grant("signer", signers("sign", "example.com/one")).await;
    f.becomes_with("jo", ("PUT", &status), &signed, 200).await;
}
