//! Clients that ask for too much, and those who must be served all the same.

use std::future::pending;

use bytes::Bytes;
use futures::stream;

use super::*;
use crate::api::meta;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

fn node(number: usize) -> User {
    User::authenticated(format!("system:node:n{number}"), [NODES.to_owned()])
}

fn lease(name: &str) -> String {
    json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}}).to_string()
}

/// A service account that may do everything.
async fn runaway(f: &Fixture) -> User {
    let binding = json!({
        "metadata": {"name": "runaway"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "runaway"}],
    });
    let uri = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(f.call("POST", uri, binding).await.code, 201);
    let user = User::authenticated("runaway", []);
    for _ in 0..500 {
        let asked = f.call_as(user.clone(), "GET", MAPS, "", "");
        if asked.await.code == 200 {
            return user;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the binding is not heard of");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runaway_client_starves_no_node() {
    let f = Arc::new(Fixture::new().await);
    let user = runaway(&f).await;
    // It begins hundreds of requests and never ends their bodies.
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (f, user) = (f.clone(), user.clone());
        asked.spawn(async move {
            let endless = stream::once(pending::<Result<Bytes, std::io::Error>>());
            let request = Request::builder()
                .method("POST")
                .uri(MAPS)
                .header(header::CONTENT_TYPE, "application/json");
            let response = f.send(user, request, Body::from_stream(endless)).await;
            let wait = response.headers().get(header::RETRY_AFTER).cloned();
            (response.status().as_u16(), wait.is_some())
        });
    }
    // Those above its share are told to come again later; the rest goes on waiting.
    for _ in 0..200 {
        let refused = asked.join_next().await.expect("one of them");
        assert_eq!(refused.expect("an answer"), (429, true));
    }
    assert_eq!(asked.len(), 100);
    let more = f.call_as(user.clone(), "GET", MAPS, "", "").await;
    assert_eq!(
        (more.code, &more.body["reason"]),
        (429, &json!("TooManyRequests"))
    );

    for number in 0..20 {
        let (user, name) = (node(number), format!("n{number}"));
        let body = lease(&name);
        let made = f.call_as(user.clone(), "POST", LEASES, "application/json", &body);
        assert_eq!(made.await.code, 201);
        let uri = format!("{LEASES}/{name}");
        let renewed = f
            .call_as(user, "PUT", &uri, "application/json", &body)
            .await;
        assert_eq!(renewed.code, 200, "{}", renewed.body);
    }
    let other = User::authenticated("system:kube-scheduler", []);
    assert_eq!(f.call_as(other, "GET", PODS, "", "").await.code, 200);
    asked.shutdown().await;
    let again = f.call_as(user, "GET", MAPS, "", "").await;
    assert_eq!(again.code, 200, "what is over counts no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_is_ended_and_goes_on_from_where_it_was() {
    let f = Fixture::new().await;
    assert_eq!(f.call("POST", MAPS, map("a")).await.code, 201);
    let start = f.get(&format!("{MAPS}/a")).await.body["metadata"]["resourceVersion"].clone();
    let start = start.as_str().expect("a version").to_owned();
    let uri = format!("{MAPS}?watch=true&resourceVersion={start}");
    let slow = f
        .send(admin(), Request::builder().uri(&uri), Body::empty())
        .await;
    let patch = "application/merge-patch+json";
    let mut last = String::new();
    for n in 0..1_200 {
        let body = json!({"data": {"k": n.to_string()}}).to_string();
        let changed = f
            .call_as(admin(), "PATCH", &format!("{MAPS}/a"), patch, &body)
            .await;
        assert_eq!(changed.code, 200);
        last = meta::text(&changed.body, "resourceVersion").to_owned();
    }
    let body = slow
        .into_body()
        .collect()
        .await
        .expect("it ends")
        .to_bytes();
    let versions = |text: &[u8]| -> Vec<String> {
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let events = lines.map(|line| serde_json::from_slice::<Value>(line).expect("JSON"));
        events
            .map(|event| meta::text(&event["object"], "resourceVersion").to_owned())
            .collect()
    };
    let seen = versions(&body);
    assert!(seen.len() < 1_200, "it was sent {}", seen.len());
    let rest = 1_200 - seen.len();
    let from = seen.last().expect("some");
    let events = f
        .events(&format!("{MAPS}?watch=true&resourceVersion={from}"), rest)
        .await;
    let heard = events
        .last()
        .map(|event| meta::text(&event["object"], "resourceVersion").to_owned());
    assert_eq!((events.len(), heard), (rest, Some(last)));
}

#[tokio::test]
async fn a_body_that_is_too_deep_or_too_large_is_refused() {
    let f = Fixture::new().await;
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    for (kind, body) in [
        (
            "application/json",
            format!("{{\"metadata\": {}}}", nested(100_000)),
        ),
        ("application/yaml", format!("metadata: {}", nested(100_000))),
        ("application/yaml", "- ".repeat(100_000)),
    ] {
        let refused = f.call_as(admin(), "POST", MAPS, kind, &body).await;
        assert_eq!(refused.code, 400, "{kind}: {}", refused.body);
    }
    let patches = [
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    assert_eq!(f.call("POST", MAPS, map("a")).await.code, 201);
    for kind in patches {
        let body = format!("{{\"data\": {}}}", nested(100_000));
        let refused = f
            .call_as(admin(), "PATCH", &format!("{MAPS}/a"), kind, &body)
            .await;
        assert_eq!(refused.code, 400, "{kind}: {}", refused.body);
    }
    let large = json!({"metadata": {"name": "b"}, "data": {"k": "x".repeat(4 << 20)}});
    let refused = f.call("POST", MAPS, large).await;
    assert_eq!(
        (refused.code, &refused.body["reason"]),
        (413, &json!("RequestEntityTooLarge"))
    );
}
