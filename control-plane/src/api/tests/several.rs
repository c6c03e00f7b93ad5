//! Several API servers on one store: what one does not know of another yet, and must not give twice.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use super::*;
use crate::api::peers::Peers;
use crate::api::{bootstrap, meta};
use crate::store::StoreError;

/// 14 addresses, of which `kubernetes` has one.
const SMALL: &str = "10.96.0.0/28";
const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn two() -> [Fixture; 2] {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Fixture::start_with(dir, SMALL).await;
    let second = Fixture::beside(&first, SMALL).await;
    [first, second]
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (field, value) in spec.as_object().expect("an object") {
        service["spec"][field] = value.clone();
    }
    service
}

async fn reserved(f: &Fixture) -> BTreeSet<String> {
    let store = &f.api.registry.store;
    let range = store
        .range("/registry/kernelet/reserved/", None, 0, None)
        .await;
    let entries = range.expect("a range").entries.into_iter();
    entries.map(|entry| entry.key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_or_port_is_given_twice_by_two_servers() {
    let servers = two().await;
    let created = (0..20).map(|n| {
        let service = service(&format!("s{n}"), json!({"type": "NodePort"}));
        servers[n % 2].call("POST", SERVICES, service)
    });
    let (mut addresses, mut ports, mut full) = (BTreeSet::new(), BTreeSet::new(), 0);
    let mut name = String::new();
    for answer in futures::future::join_all(created).await {
        if answer.code == 422 {
            assert!(
                answer.message().contains("range is full"),
                "{}",
                answer.body
            );
            full += 1;
            continue;
        }
        assert_eq!(answer.code, 201, "{}", answer.body);
        name = meta::text(&answer.body, "name").to_owned();
        let spec = &answer.body["spec"];
        assert!(
            addresses.insert(spec["clusterIP"].to_string()),
            "{spec} has another's"
        );
        assert!(
            ports.insert(spec["ports"][0]["nodePort"].to_string()),
            "{spec} has another's"
        );
    }
    assert_eq!((addresses.len(), full), (13, 7), "all are given, each once");

    // What goes at one server is free at the other, as soon as that has heard of it.
    assert_eq!(reserved(&servers[0]).await.len(), 14 + 13);
    let gone = format!("{SERVICES}/{name}");
    let deleted = servers[0].call("DELETE", &gone, Value::Null).await;
    assert_eq!(deleted.code, 200, "{}", deleted.body);
    let again = service("again", json!({}));
    let mut code = 0;
    for _ in 0..500 {
        code = servers[1].call("POST", SERVICES, again.clone()).await.code;
        if code == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_ask_for_one_address_one_gets_it() {
    let servers = two().await;
    for round in 0..10 {
        let asked = json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30123}]});
        let made = servers.iter().zip(["a", "b"]).map(|(server, name)| {
            server.call(
                "POST",
                SERVICES,
                service(&format!("{name}{round}"), asked.clone()),
            )
        });
        let answers = futures::future::join_all(made).await;
        let mut codes: Vec<_> = answers.iter().map(|answer| answer.code).collect();
        codes.sort_unstable();
        assert_eq!(codes, [201, 422], "{round}");
        let refused = answers
            .iter()
            .find(|answer| answer.code == 422)
            .expect("one");
        assert!(
            refused.message().contains("already allocated"),
            "{}",
            refused.body
        );
        let winner = answers
            .iter()
            .find(|answer| answer.code == 201)
            .expect("one");
        let name = winner.body["metadata"]["name"].as_str().expect("a name");
        let gone = format!("{SERVICES}/{name}");
        let deleted = servers[round % 2].call("DELETE", &gone, Value::Null);
        assert_eq!(deleted.await.code, 200);
        // Until both have heard of it.
        for server in &servers {
            let revision = server
                .api
                .registry
                .store
                .revision()
                .await
                .expect("a revision");
            server
                .api
                .registry
                .cache
                .wait(revision)
                .await
                .expect("it arrives");
            for _ in 0..200 {
                let probe = service("probe", asked.clone());
                let dry = server
                    .call("POST", &format!("{SERVICES}?dryRun=All"), probe)
                    .await;
                if dry.code == 201 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_gives_back_what_it_no_longer_needs() {
    let [first, second] = two().await;
    let made = service(
        "web",
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}),
    );
    assert_eq!(first.call("POST", SERVICES, made).await.code, 201);
    let port = "/registry/kernelet/reserved/node-ports/TCP/30001";
    assert!(reserved(&first).await.contains(port));
    let uri = format!("{SERVICES}/web");
    let patch = |body: &'static str| {
        second.call_as(admin(), "PATCH", &uri, "application/merge-patch+json", body)
    };
    let answer = patch(r#"{"spec": {"type": "ClusterIP", "ports": [{"port": 80}]}}"#).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert!(!reserved(&first).await.contains(port));
    let answer = patch(r#"{"spec": {"type": "ExternalName", "externalName": "x.example", "clusterIP": null, "clusterIPs": null}}"#).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(
        reserved(&first).await.len(),
        1,
        "only that of kubernetes is left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_nodes_get_one_range() {
    let [first, second] = two().await;
    for name in ["a", "b"] {
        let node = json!({"metadata": {"name": name}});
        assert_eq!(first.call("POST", "/api/v1/nodes", node).await.code, 201);
    }
    let give = async |server: &Fixture, node: &str| {
        let body = r#"{"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}}"#;
        let uri = format!("/api/v1/nodes/{node}");
        server
            .call_as(admin(), "PATCH", &uri, "application/merge-patch+json", body)
            .await
    };
    let (a, b) = futures::join!(give(&first, "a"), give(&second, "b"));
    let mut codes = [a.code, b.code];
    codes.sort_unstable();
    assert_eq!(codes, [200, 409], "{} {}", a.body, b.body);
    let (winner, loser) = if a.code == 200 {
        ("a", "b")
    } else {
        ("b", "a")
    };
    let refused = if a.code == 200 { &b } else { &a };
    let why = "the pod range 10.244.1.0/24 is another node's";
    assert!(refused.message().ends_with(why), "{}", refused.body);
    let gone = second
        .call("DELETE", &format!("/api/v1/nodes/{winner}"), Value::Null)
        .await;
    assert_eq!(gone.code, 200);
    assert_eq!(give(&second, loser).await.code, 200);
}

#[tokio::test]
async fn what_an_older_version_stored_is_reserved_at_the_next_start() {
    let f = Fixture::start_with(tempfile::tempdir().expect("a directory"), SMALL).await;
    let store = &f.api.registry.store;
    let before = reserved(&f).await;
    assert_eq!(before.len(), 1);
    for key in &before {
        let (entry, _) = store.get(key).await.expect("an entry");
        let modified = entry.expect("it is there").modified;
        store.delete(key, modified).await.expect("it goes");
    }
    let leftover = store.put(
        "/registry/kernelet/reserved/addresses/10.96.0.9",
        "gone/web".into(),
        crate::store::Expect::Absent,
    );
    leftover.await.expect("it is written");
    crate::admission::reservations::repair(&**store)
        .await
        .expect("it is repaired");
    assert_eq!(reserved(&f).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_kubernetes_leads_to_all_servers_that_live() {
    let [first, second] = two().await;
    let ranges = SMALL.parse().expect("ranges");
    let addresses: [SocketAddr; 2] =
        ["192.0.2.1:6443", "192.0.2.2:6443"].map(|text| text.parse().expect("an address"));
    let mut one = Peers::new("one", addresses[0]);
    let mut two = Peers::new("two", addresses[1]);
    let endpoints = async |server: &Fixture| {
        let uri = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
        let slice = server.get(uri).await.body;
        let named = slice["endpoints"].as_array().cloned().unwrap_or_default();
        let named: Vec<String> = named
            .iter()
            .map(|e| e["addresses"][0].as_str().unwrap_or_default().to_owned())
            .collect();
        let uri = "/api/v1/namespaces/default/endpoints/kubernetes";
        let subsets = server.get(uri).await.body["subsets"].clone();
        let old = subsets[0]["addresses"].as_array().map_or(0, Vec::len);
        assert_eq!(old, named.len(), "{subsets}");
        named.join(" ")
    };
    let (a, b) = (&first.api.registry, &second.api.registry);
    let look = async |registry, mine, peers: &mut Peers| {
        let looked = bootstrap::keep_once(registry, &ranges, mine, Some(peers)).await;
        looked.unwrap_or_else(|error| panic!("{}", error.message));
    };
    look(a, addresses[0], &mut one).await;
    look(b, addresses[1], &mut two).await;
    assert_eq!(endpoints(&first).await, "192.0.2.1 192.0.2.2");
    look(a, addresses[0], &mut one).await;
    assert_eq!(endpoints(&second).await, "192.0.2.1 192.0.2.2");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=apiserver.kubernetes.io/identity=kube-apiserver";
    assert_eq!(
        first.get(leases).await.body["items"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );

    // One stands still for so long that the other takes it for gone. When it goes on it is there again.
    let later = Instant::now() + Duration::from_secs(60);
    let alive = one
        .look(a, later)
        .await
        .unwrap_or_else(|error| panic!("{}", error.message));
    assert_eq!(alive, [addresses[0]].into());
    bootstrap::ensure(a, &ranges, &alive)
        .await
        .unwrap_or_else(|error| panic!("{}", error.message));
    assert_eq!(endpoints(&second).await, "192.0.2.1");
    look(b, addresses[1], &mut two).await;
    assert_eq!(endpoints(&first).await, "192.0.2.1 192.0.2.2");

    // One that is stopped takes its leave.
    bootstrap::leave(b, &ranges, two)
        .await
        .unwrap_or_else(|error| panic!("{}", error.message));
    assert_eq!(endpoints(&first).await, "192.0.2.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_start_at_the_same_time_do_not_stumble() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = crate::store::embedded::Embedded::open(&dir.path().join("store")).expect("a store");
    let store: Arc<dyn crate::store::Store> = Arc::new(store);
    let starts = (0..3).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let dir = tempfile::tempdir().expect("a directory");
            testing::start_on(store, dir.path(), SMALL).await.0
        })
    });
    for started in futures::future::join_all(starts).await {
        started.expect("it starts");
    }
    let conflict = store
        .put(
            "/registry/services/default/kubernetes",
            "{}".into(),
            crate::store::Expect::Absent,
        )
        .await;
    assert!(
        matches!(conflict, Err(StoreError::Conflict { .. })),
        "{conflict:?}"
    );
}
