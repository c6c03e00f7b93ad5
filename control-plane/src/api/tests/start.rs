//! What a server has when it starts, and says about itself.

use std::net::IpAddr;

use super::*;
use crate::admission::service_ip::{Ranges, ServiceAddresses};
use crate::api::{bootstrap, fields};
use crate::resources;

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
async fn parts_of_the_control_plane_can_only_be_read() {
    let f = Fixture::new().await;
    let uri = "/api/v1/componentstatuses";
    let list = f.get(uri).await;
    assert_eq!(list.body["kind"], "ComponentStatusList");
    assert_eq!(list.body["items"][1]["metadata"]["name"], "etcd-0");
    assert_eq!(list.warnings.len(), 1, "{:?}", list.warnings);
    let one = f.get(&format!("{uri}/scheduler")).await.body;
    assert_eq!(one["conditions"][0]["status"], "True");
    // Where a leader is elected, there has to be one.
    f.api.health.set_elects();
    let one = f.get(&format!("{uri}/scheduler")).await.body;
    assert_eq!(one["conditions"][0]["status"], "False");
    assert_eq!(f.get(&format!("{uri}/nobody")).await.code, 404);
    for method in ["PUT", "PATCH", "DELETE"] {
        let answer = f.call(method, &format!("{uri}/scheduler"), json!({})).await;
        assert_eq!(answer.code, 405, "{method}");
    }
    assert_eq!(f.get(&format!("{uri}?watch=1")).await.code, 405);
}

#[tokio::test]
async fn checks_of_health_can_be_asked_one_by_one_and_excluded() {
    let f = Fixture::new().await;
    assert_eq!(f.get("/livez/etcd").await.body, "ok");
    assert_eq!(f.get("/livez/nonsense").await.code, 404);
    assert_eq!(
        f.get("/readyz?exclude=etcd").await.code,
        500,
        "it has not begun"
    );
    let all = f.get("/readyz?verbose&exclude=etcd&exclude=start").await;
    assert_eq!(
        (all.code, all.body.as_str()),
        (
            200,
            Some(
                "[+]ping ok\n[+]etcd excluded: ok\n[+]start excluded: ok\n[+]shutdown ok\nreadyz check passed\n"
            )
        )
    );
}

/// What a process that is killed leaves: the file as it is, not closed.
fn left_by(first: &Fixture) -> tempfile::TempDir {
    let left = tempfile::tempdir().expect("a directory");
    std::fs::copy(first.dir.path().join("store"), left.path().join("store")).expect("a copy");
    left
}

#[tokio::test]
async fn a_start_after_a_kill_finds_everything_in_its_place() {
    let first = Fixture::new().await;
    first.call("POST", MAPS, map("a")).await;
    let uris = [
        "/api/v1/namespaces/default/services/kubernetes".to_owned(),
        format!("{MAPS}/a"),
    ];
    let second = Fixture::start(left_by(&first)).await;
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
    let ranges = testing::SERVICES.parse().expect("a range");
    let moved = "192.0.2.2:7443".parse().expect("an address");
    bootstrap::ensure(&f.api.registry, &ranges, &[moved].into())
        .await
        .expect("the system's objects");
    let after = f.get(uri).await.body;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"]["ports"][0]["targetPort"], 7443);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = f.get(slices).await.body;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.2"]));

    let six = "[2001:db8::2]:6443".parse().expect("an address");
    bootstrap::ensure(&f.api.registry, &ranges, &[six].into())
        .await
        .expect("the system's objects");
    let slice = f.get(slices).await.body;
    assert_eq!(slice["addressType"], "IPv6");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["2001:db8::2"]));

    // Nobody else reaches a loopback address: it is no endpoint, and the server runs all the same.
    let alone = "127.0.0.1:6443".parse().expect("an address");
    bootstrap::ensure(&f.api.registry, &ranges, &[alone].into())
        .await
        .expect("the system's objects");
    assert_eq!(f.get(slices).await.body["endpoints"], json!([]));
    let endpoints = f.get("/api/v1/namespaces/default/endpoints/kubernetes");
    assert_eq!(endpoints.await.body["subsets"], json!([]));
}

#[tokio::test]
async fn what_somebody_deletes_of_the_systems_is_made_again_and_the_rest_is_not_written() {
    let f = Fixture::new().await;
    let (ranges, address) = (
        testing::SERVICES.parse().expect("a range"),
        "127.0.0.1:6443".parse().expect("an address"),
    );
    let namespaces = "/api/v1/namespaces";
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let before = f.get(namespaces).await.body;
    f.call("DELETE", service, Value::Null).await;
    assert_eq!(f.get(service).await.code, 404);
    bootstrap::ensure(&f.api.registry, &ranges, &[address].into())
        .await
        .expect("the system's objects");
    assert_eq!(f.get(service).await.body["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(f.get(namespaces).await.body["items"], before["items"]);
}

#[tokio::test]
async fn a_start_with_other_ranges_keeps_the_service_and_moves_its_endpoint() {
    let first = Fixture::new().await;
    let uri = "/api/v1/namespaces/default/services/kubernetes";
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let before = first.get(uri).await.body;
    for (ranges, advertised, warnings) in [
        ("10.200.0.0/16", "192.0.2.2:6443", 0),
        ("10.96.0.0/12,fd00::/108", "192.0.2.2:6443", 0),
        ("fd00::/108,10.96.0.0/12", "[2001:db8::2]:6443", 1),
        ("fd00::/108", "[2001:db8::2]:6443", 2),
    ] {
        let f = Fixture::start_with(left_by(&first), ranges).await;
        let ranges: Ranges = ranges.parse().expect("ranges");
        let advertised: std::net::SocketAddr = advertised.parse().expect("an address");
        bootstrap::ensure(&f.api.registry, &ranges, &[advertised].into())
            .await
            .unwrap_or_else(|error| panic!("{ranges:?}: {}", error.message));
        let after = f.get(uri).await.body;
        for field in ["clusterIP", "clusterIPs", "ipFamilies"] {
            assert_eq!(after["spec"][field], before["spec"][field], "{ranges:?}");
        }
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
        let slice = f.get(slices).await.body;
        let address = advertised.ip().to_string();
        assert_eq!(slice["endpoints"][0]["addresses"], json!([address]));

        let stored = bootstrap::stored_addresses(&f.api.registry).await;
        let stored = stored.unwrap_or_else(|error| panic!("{ranges:?}: {}", error.message));
        let kept: IpAddr = [10, 96, 0, 1].into();
        assert_eq!(stored, [kept].into());
        let said = bootstrap::leftovers(&stored, &ranges, advertised.ip());
        assert_eq!(said.len(), warnings, "{said:?}");

        let addresses = ServiceAddresses::new(ranges.clone());
        let followed = addresses.follow(&f.api.registry.cache).await;
        followed.expect("the services");
        let reserved = addresses.reserved();
        assert!(
            reserved.iter().any(|range| range.contains(&kept)),
            "{reserved:?}"
        );
        assert!(reserved.len() <= 2, "no address twice: {reserved:?}");
    }
}
