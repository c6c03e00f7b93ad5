//! Requests that mean no good, or mean well and ask for too much.

use std::cell::Cell;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::auth::SAME_MACHINE;

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn node() -> User {
    User::authenticated("system:node:n1", [NODES.to_owned()])
}

async fn bound_pod(f: &Fixture, name: &str) -> String {
    assert_eq!(f.call("POST", PODS, pod(name)).await.code, 201);
    let binding = json!({"metadata": {"name": name}, "target": {"name": "n1"}});
    let uri = format!("{PODS}/{name}");
    f.call("POST", &format!("{uri}/binding"), binding).await;
    uri
}

/// A time that cannot be read would break every list and watch that the pod is in.
#[tokio::test]
async fn an_endless_grace_leaves_a_pod_that_can_be_read() {
    let f = Fixture::new().await;
    let uri = bound_pod(&f, "a").await;
    for grace in ["300000000000", "9223372036854775807", "2147483647"] {
        let marked = f
            .call(
                "DELETE",
                &format!("{uri}?gracePeriodSeconds={grace}"),
                Value::Null,
            )
            .await;
        assert_eq!(marked.code, 200, "{}", marked.message());
        let read: Pod = serde_json::from_value(f.get(&uri).await.body).expect("a pod");
        assert!(read.metadata.deletion_timestamp.is_some());
    }
    let mut endless = pod("b");
    endless["spec"]["terminationGracePeriodSeconds"] = json!(1_000_000_000_000_i64);
    assert_eq!(f.call("POST", PODS, endless).await.code, 422);
}

#[tokio::test]
async fn a_node_moves_no_pod_into_a_service() {
    let f = Fixture::new().await;
    let uri = format!("{}/status", bound_pod(&f, "a").await);
    let patch = "application/merge-patch+json";
    let report = json!({"status": {"phase": "Running"}}).to_string();
    let answer = f.call_as(node(), "PATCH", &uri, patch, &report).await;
    assert_eq!(answer.code, 200, "{}", answer.message());
    let labels = json!({"metadata": {"labels": {"app": "db"}}}).to_string();
    let answer = f.call_as(node(), "PATCH", &uri, patch, &labels).await;
    assert_eq!(answer.code, 403);
    assert!(
        answer
            .message()
            .ends_with("node \"n1\" cannot update labels through pod status"),
        "{}",
        answer.message()
    );
}

#[tokio::test]
async fn an_object_that_etcd_would_refuse_is_refused() {
    let f = Fixture::new().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let of_size = |bytes: usize| json!({"metadata": {"name": "a"}, "spec": {"holderIdentity": "x".repeat(bytes)}});
    let refused = f.call("POST", leases, of_size(2 << 20)).await;
    assert_eq!(
        (refused.code, refused.message()),
        (413, "Request entity too large: limit is 1568768")
    );
    assert_eq!(refused.body["reason"], "RequestEntityTooLarge");
    let fits = f.call("POST", leases, of_size(1_500_000)).await;
    assert_eq!(fits.code, 201, "{}", fits.message());
    let mut grown = fits.body;
    grown["spec"]["holderIdentity"] = json!("x".repeat(1_600_000));
    let grown = f.call("PUT", &format!("{leases}/a"), grown).await;
    assert_eq!(grown.code, 413, "{}", grown.message());
}

#[tokio::test]
async fn so_many_wrong_things_are_not_all_named() {
    let f = Fixture::new().await;
    let node = json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": vec![""; 40_000]}});
    let refused = f.call("POST", "/api/v1/nodes", node).await;
    assert_eq!(refused.code, 422);
    assert!(refused.message().ends_with("and 39900 more]"));
    assert_eq!(
        refused.body["details"]["causes"].as_array().map(Vec::len),
        Some(100)
    );
    let node = json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": vec![""; 400_000]}});
    assert_eq!(f.call("POST", "/api/v1/nodes", node).await.code, 413);
}

/// There is one thread here for all short tasks.
#[tokio::test]
async fn a_large_body_holds_up_nobody() {
    let f = Fixture::new().await;
    let mut large = pod("a");
    large["spec"]["containers"] = json!(vec![json!({}); 10_000]);
    let work = async {
        let refused = f.call("POST", PODS, large).await;
        assert_eq!(refused.code, 422, "{}", refused.message());
    };
    let beats = Cell::new(0);
    let others = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            beats.set(beats.get() + 1);
        }
    };
    tokio::select! {
        () = work => {}
        () = others => unreachable!("it goes on for ever"),
    }
    assert!(beats.get() > 20, "others had {} turns", beats.get());
}

#[tokio::test]
async fn a_verdict_on_a_certificate_request_stays() {
    let f = Fixture::new().await;
    let csr = json!({"metadata": {"name": "a"}, "spec": {
        "request": "LS0tLS1CRUdJTg==", "signerName": "example.com/x", "usages": ["client auth"],
        "extra": {SAME_MACHINE: ["true"]},
    }});
    let made = f.call("POST", CSRS, csr.clone()).await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert!(
        made.body["spec"]["extra"].is_null(),
        "only the server knows"
    );
    let mut approved = made.body.clone();
    approved["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "x", "message": "y"}]);
    let uri = format!("{CSRS}/a/approval");
    let approved = f.call("PUT", &uri, approved).await;
    assert_eq!(approved.code, 200, "{}", approved.message());
    let mut withdrawn = approved.body.clone();
    withdrawn["status"]["conditions"] = json!([]);
    let refused = f.call("PUT", &uri, withdrawn).await;
    assert_eq!(refused.code, 422);
    assert!(
        refused
            .message()
            .contains("updates may not remove a condition"),
        "{}",
        refused.message()
    );

    let mut beside = admin();
    beside.same_machine = true;
    let mut csr = csr;
    csr["metadata"]["name"] = json!("b");
    let made = f
        .call_as(beside, "POST", CSRS, "application/json", &csr.to_string())
        .await;
    assert_eq!(made.body["spec"]["extra"][SAME_MACHINE], json!(["true"]));
}

#[tokio::test]
async fn a_large_collection_is_deleted_at_once() {
    let f = Fixture::new().await;
    for n in 0..200 {
        assert_eq!(f.call("POST", MAPS, map(&format!("m{n}"))).await.code, 201);
    }
    let deleted = f.call("DELETE", MAPS, Value::Null).await;
    assert_eq!(deleted.code, 200, "{}", deleted.message());
    assert!(deleted.body["items"].as_array().map(Vec::len) >= Some(200));
    let left = f.get(MAPS).await;
    assert_eq!(left.body["items"], json!([]));
}

/// A client that goes away while its Service is being stored must not free the address.
#[tokio::test]
async fn an_address_is_not_free_while_a_stored_service_has_it() {
    let f = Fixture::new().await;
    let service = |name: &str, ip: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    for n in 0..40_u64 {
        let ip = format!("10.96.7.{}", n + 1);
        let create = f.call("POST", SERVICES, service(&format!("a{n}"), &ip));
        let _ = tokio::time::timeout(Duration::from_micros(100 * n), create).await;
        // A moment in which a write under way ends; the pools hear of it later still.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let again = f
            .call("POST", SERVICES, service(&format!("b{n}"), &ip))
            .await;
        let first = f.get(&format!("{SERVICES}/a{n}")).await;
        assert!(
            first.code == 404 || again.code == 422,
            "{ip} was given twice"
        );
    }
}

#[tokio::test]
async fn one_object_is_given_as_it_is_whether_or_not_it_is_to_be_watched() {
    let f = Fixture::new().await;
    assert_eq!(f.call("POST", MAPS, map("a")).await.code, 201);
    let read = f.get(&format!("{MAPS}/%61?watch=true")).await;
    assert_eq!((read.code, &read.body["kind"]), (200, &json!("ConfigMap")));
}
