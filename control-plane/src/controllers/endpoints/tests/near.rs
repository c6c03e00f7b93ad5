//! Families of addresses, and hints to who is near.

use serde_json::{Value, json};

use super::*;

fn dual() -> Service {
    let mut service = service();
    let spec = service.spec.as_mut().unwrap();
    spec.ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
    service
}

#[test]
fn each_family_has_slices_of_its_own() {
    let pods = pods(vec![
        web("a", "10.0.0.1").and_ip("fd00::1").ready_at(1),
        web("b", "10.0.0.2").ready_at(1),
    ]);
    let mut store = Store::default();
    store.reconcile(&dual(), &pods);
    let mut slices: Vec<(&str, Vec<&str>)> = store
        .slices
        .values()
        .map(|slice| {
            let endpoints = slice.endpoints.iter().map(|it| &*it.addresses[0]);
            (&*slice.address_type, endpoints.collect())
        })
        .collect();
    slices.sort_unstable();
    assert_eq!(
        slices,
        [
            ("IPv4", vec!["10.0.0.1", "10.0.0.2"]),
            ("IPv6", vec!["fd00::1"])
        ],
        "a pod without an address of a family is no endpoint there"
    );
    let quiet = store.reconcile(&dual(), &pods);
    assert!(quiet.create.is_empty() && quiet.update.is_empty() && quiet.delete.is_empty());

    // The older object knows one family only: the first.
    let backends = &found(&dual(), &pods)[0].1;
    let endpoints = legacy::desired(&dual(), backends, None);
    let addresses = &endpoints.subsets.as_ref().unwrap()[0].addresses;
    assert_eq!(addresses.as_ref().unwrap()[0].ip, "fd00::1");

    // The second family goes, and its slices with it.
    let mut single = dual();
    single.spec.as_mut().unwrap().ip_families = Some(vec!["IPv6".into()]);
    store.reconcile(&single, &pods);
    assert_eq!(store.addresses(), ["fd00::1"]);
}

#[test]
fn hints_follow_what_the_service_prefers() {
    let pods = pods(vec![
        web("a", "10.0.0.1").ready_at(1),
        web("b", "10.0.0.2").phase("Running"),
    ]);
    let zones = json!([{ "name": "zone-of-n1" }]);
    for (preference, wanted) in [
        (None, Value::Null),
        (Some("PreferSameZone"), json!({ "forZones": zones })),
        (Some("PreferClose"), json!({ "forZones": zones })),
        (
            Some("PreferSameNode"),
            json!({ "forNodes": [{ "name": "n1" }], "forZones": zones }),
        ),
    ] {
        let mut service = service();
        service.spec.as_mut().unwrap().traffic_distribution = preference.map(Into::into);
        let mut store = Store::default();
        store.reconcile(&service, &pods);
        let slice = store.slices.values().next().unwrap();
        let hints = serde_json::to_value(&slice.endpoints[0].hints).unwrap();
        assert_eq!(hints, wanted, "{preference:?}");
        assert_eq!(slice.endpoints[1].hints, None, "for who is ready only");
    }
}
