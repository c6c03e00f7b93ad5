//! Addresses and node ports: given once, given back.

use super::*;
use crate::admission::Operation;
use crate::auth::User;
use crate::resources;
use crate::store::Revision;
use crate::store::cache::Object;

fn admit(
    addresses: &ServiceAddresses,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Held, String> {
    let user = User::anonymous();
    let warnings = crate::admission::Warnings::default();
    let review = Review {
        user: &user,
        kind: resources::find("", "v1", "services").expect("a kind"),
        namespace: "default",
        operation: if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        },
        subresource: "",
        dry_run: false,
        warnings: &warnings,
    };
    addresses
        .admit(&review, service, old)
        .map_err(|e| e.message)
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

#[test]
fn addresses_are_unique_until_the_range_is_full() {
    // Five usable after the network's and the broadcast address; one more than the six hosts must fail.
    let addresses = ServiceAddresses::new("10.96.0.0/29".parse().expect("a range"));
    let mut seen = std::collections::HashSet::new();
    for at in 0..6 {
        let mut s = service(&format!("s{at}"), json!({"type": "ClusterIP"}));
        admit(&addresses, &mut s, None).expect("an address").keep();
        assert!(seen.insert(s["spec"]["clusterIP"].to_string()));
        assert_eq!(s["spec"]["clusterIPs"][0], s["spec"]["clusterIP"]);
    }
    let mut one_more = service("x", json!({"type": "ClusterIP"}));
    assert!(
        admit(&addresses, &mut one_more, None)
            .err()
            .expect("full")
            .contains("range is full")
    );
}

#[test]
fn what_a_failed_request_took_comes_back() {
    let addresses = ServiceAddresses::new("10.96.0.0/30".parse().expect("a range"));
    for _ in 0..5 {
        let mut s = service("s", json!({"type": "NodePort", "ports": [{"port": 80}]}));
        drop(admit(&addresses, &mut s, None).expect("an address"));
    }
    assert!(lock(&addresses.pools).addresses.holders.is_empty());
    assert!(lock(&addresses.pools).ports.holders.is_empty());
}

#[test]
fn asked_addresses_must_be_in_range_and_free() {
    let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
    let mut first = service("a", json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}));
    admit(&addresses, &mut first, None).expect("free").keep();
    for (ip, why) in [
        ("10.96.0.10", "already allocated"),
        ("192.168.0.1", "not in the valid range"),
        ("x", "valid IP"),
    ] {
        let mut s = service("b", json!({"type": "ClusterIP", "clusterIP": ip}));
        assert!(
            admit(&addresses, &mut s, None)
                .err()
                .expect("refused")
                .contains(why),
            "{ip}"
        );
    }
}

#[test]
fn headless_and_external_services_get_nothing() {
    let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
    let mut headless = service("a", json!({"type": "ClusterIP", "clusterIP": "None"}));
    admit(&addresses, &mut headless, None)
        .expect("admitted")
        .keep();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let mut external = service("b", json!({"type": "ExternalName", "externalName": "x.y"}));
    admit(&addresses, &mut external, None)
        .expect("admitted")
        .keep();
    assert!(external["spec"].get("clusterIP").is_none());
}

#[test]
fn an_update_keeps_node_ports() {
    let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
    let mut old = service(
        "a",
        json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
    );
    admit(&addresses, &mut old, None).expect("admitted").keep();
    assert_eq!(
        old["spec"]["ports"][0]["nodePort"],
        old["spec"]["ports"][1]["nodePort"]
    );
    let mut new = service(
        "a",
        json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP"}]}),
    );
    admit(&addresses, &mut new, Some(&old))
        .expect("admitted")
        .keep();
    assert_eq!(
        new["spec"]["ports"][0]["nodePort"],
        old["spec"]["ports"][1]["nodePort"]
    );
    let mut plain = service(
        "a",
        json!({"type": "ClusterIP", "ports": [{"port": 53, "protocol": "UDP"}]}),
    );
    admit(&addresses, &mut plain, Some(&new))
        .expect("admitted")
        .keep();
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
}

#[test]
fn a_service_whose_health_is_asked_has_a_port_for_that_and_keeps_it() {
    let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
    let balanced = |more: Value| {
        let mut service = service(
            "a",
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
        );
        for (field, value) in more.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        service
    };
    let mut old = balanced(json!({}));
    let held = admit(&addresses, &mut old, None).expect("admitted");
    let given = old["spec"]["healthCheckNodePort"].clone();
    assert!((30_000..=32_767).contains(&given.as_u64().expect("a port")));
    assert_ne!(given, old["spec"]["ports"][0]["nodePort"]);
    held.keep();

    let mut new = balanced(json!({}));
    admit(&addresses, &mut new, Some(&old))
        .expect("admitted")
        .keep();
    assert_eq!(new["spec"]["healthCheckNodePort"], given);

    let node_port = old["spec"]["ports"][0]["nodePort"].clone();
    for (asked, why) in [
        (json!(1), "not in the valid range"),
        (given, "already allocated"),
        (node_port, "already allocated"),
    ] {
        let mut other = balanced(json!({"healthCheckNodePort": asked}));
        other["metadata"]["name"] = json!("b");
        let refused = admit(&addresses, &mut other, None).err().expect("refused");
        assert!(refused.contains(why), "{refused}");
    }
    let mut twice = balanced(json!({
        "healthCheckNodePort": 30_500, "ports": [{"port": 80, "nodePort": 30_500}],
    }));
    twice["metadata"]["name"] = json!("c");
    assert!(admit(&addresses, &mut twice, None).is_err());

    for other in ["NodePort", "ClusterIP"] {
        let mut plain = service("d", json!({"type": other, "ports": [{"port": 80}]}));
        admit(&addresses, &mut plain, None)
            .expect("admitted")
            .keep();
        assert!(plain["spec"].get("healthCheckNodePort").is_none());
    }
}

#[tokio::test]
async fn what_went_unseen_is_free_again() {
    use crate::store::embedded::Embedded;
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Embedded::open(&dir.path().join("store")).expect("a store"));
    let cache = Cache::start(store, crate::api::index)
        .await
        .expect("a cache");
    let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
    let ask = |name| {
        let mut s = service(name, json!({"type": "NodePort", "ports": [{"port": 80}]}));
        admit(&addresses, &mut s, None).expect("an address")
    };
    ask("gone").keep();
    let running = ask("running");
    addresses.adopt(&cache).await.expect("the services");
    let holders = |pools: &Pools| {
        let all = pools.addresses.holders.values().cloned();
        all.chain(pools.ports.holders.values().cloned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        holders(&lock(&addresses.pools)),
        ["default/running", "default/running"]
    );
    // Stored or not, what was kept is only for the next look to decide.
    running.keep();
    addresses.adopt(&cache).await.expect("the services");
    assert!(holders(&lock(&addresses.pools)).is_empty());
}

#[test]
fn a_service_of_two_families_has_two_addresses_and_gives_both_back() {
    let ranges = "10.96.0.0/30,fd00::/126".parse().expect("ranges");
    let addresses = ServiceAddresses::new(ranges);
    let spec = json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"});
    let mut dual = service("a", spec.clone());
    let held = admit(&addresses, &mut dual, None).expect("two addresses");
    assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(dual["spec"]["clusterIPs"][0], dual["spec"]["clusterIP"]);
    let second = dual["spec"]["clusterIPs"][1].as_str().expect("an address");
    assert!(second.starts_with("fd00::"), "{second}");
    drop(held);
    assert!(lock(&addresses.pools).addresses.holders.is_empty());

    // Only the second one is full: the first is given back.
    for at in 0..3 {
        let spec = json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]});
        let mut six = service(&format!("s{at}"), spec);
        admit(&addresses, &mut six, None).expect("room").keep();
    }
    let refused = admit(&addresses, &mut service("b", spec), None);
    assert!(refused.err().expect("full").contains("range is full"));
    assert_eq!(lock(&addresses.pools).addresses.holders.len(), 3);
}

#[test]
fn a_second_family_comes_and_goes() {
    let ranges = "10.96.0.0/12,fd00::/108".parse().expect("ranges");
    let addresses = ServiceAddresses::new(ranges);
    let mut single = service("a", json!({"type": "ClusterIP"}));
    admit(&addresses, &mut single, None).expect("one").keep();
    let mut dual = single.clone();
    dual["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    admit(&addresses, &mut dual, Some(&single))
        .expect("two")
        .keep();
    assert_eq!(dual["spec"]["clusterIP"], single["spec"]["clusterIP"]);
    assert_eq!(dual["spec"]["clusterIPs"].as_array().map(Vec::len), Some(2));

    let mut back = dual.clone();
    back["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    admit(&addresses, &mut back, Some(&dual))
        .expect("one")
        .keep();
    assert_eq!(back["spec"]["clusterIPs"], single["spec"]["clusterIPs"]);
    // What the update left is free once it is stored.
    let stored = |service: &Value| {
        Arc::new(Object {
            key: format!("{PREFIX}default/a"),
            created: Revision(1),
            revision: Revision(2),
            json: service.to_string().into(),
            labels: Vec::new(),
            fields: Vec::new(),
        })
    };
    addresses.note(&Change::Put {
        object: stored(&back),
        previous: Some(stored(&dual)),
    });
    assert_eq!(lock(&addresses.pools).addresses.holders.len(), 1);
    addresses.note(&Change::Delete {
        object: stored(&back),
        previous: stored(&back),
    });
    assert!(lock(&addresses.pools).addresses.holders.is_empty());
}
