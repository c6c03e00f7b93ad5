use super::*;
use crate::cluster::ignored::Ignored;
use serde_json::json;

#[test]
fn a_service_keeps_what_the_node_uses() {
    let object: core::Service = serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "web", "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kernelet.io/locality": "cluster"},
            "labels": {"service.kubernetes.io/service-proxy-name": "other"}},
        "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                      {"name": "dns", "port": 53, "protocol": "UDP"},
                      {"name": "sig", "port": 9, "protocol": "SCTP"}]}
    }))
    .unwrap();
    let mut names = Names::default();
    assert_eq!(
        key(&object.metadata, &mut names),
        Some(ObjectKey::new("shop", "web"))
    );
    let service = service(&object, &mut names);
    assert_eq!(
        service.cluster_ips,
        [
            "10.96.0.7".parse::<std::net::IpAddr>().unwrap(),
            "fd00::7".parse().unwrap()
        ]
    );
    assert_eq!(service.affinity_timeout_s, Some(10_800));
    assert!(service.internal_local && !service.headless && !service.publish_not_ready);
    assert_eq!(service.traffic_distribution.as_deref(), Some("PreferClose"));
    assert_eq!(service.locality, Some(Locality::Cluster));
    assert_eq!(service.proxy_name.as_deref(), Some("other"));
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port, p.node_port))
        .collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 80, Some(30080)),
            ("dns", Protocol::Udp, 53, None),
            ("sig", Protocol::Sctp, 9, None)
        ]
    );
}

#[test]
fn headless_and_external_services_have_no_address() {
    let headless =
        serde_json::from_value(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}))
            .unwrap();
    let headless = service(&headless, &mut Names::default());
    assert!(headless.headless && headless.cluster_ips.is_empty());

    let external = json!({"spec": {"type": "ExternalName", "externalName": "db.example.com"}});
    let external = service(
        &serde_json::from_value(external).unwrap(),
        &mut Names::default(),
    );
    assert_eq!(external.external_name.as_deref(), Some("db.example.com"));
    assert!(external.cluster_ips.is_empty() && !external.headless);
}

#[test]
fn absent_conditions_mean_ready() {
    let object = serde_json::from_value(json!({
        "addressType": "IPv4",
        "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 8080}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.244.1.5"], "nodeName": "a", "zone": "z",
             "targetRef": {"kind": "Pod", "name": "web-1"}},
            {"addresses": ["10.244.1.6"], "conditions": {"ready": false, "terminating": true, "serving": true}},
            {"addresses": ["web.example.com"], "conditions": {"ready": false}},
        ]
    }))
    .unwrap();
    let slice = slice(&object, &mut Names::default()).unwrap();
    assert_eq!(&*slice.service, "web");
    assert_eq!(
        slice.ports.len(),
        1,
        "a port that means every port is left out"
    );
    let states: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.ready, e.serving, e.terminating))
        .collect();
    assert_eq!(
        states,
        [
            (true, true, false),
            (false, true, true),
            (false, false, false)
        ]
    );
    assert_eq!(slice.endpoints[0].pod.as_deref(), Some("web-1"));
    assert!(slice.endpoints[2].addresses.is_empty());
}

#[test]
fn a_slice_without_a_service_is_nobodys() {
    let object = serde_json::from_value(json!({"addressType": "IPv4", "endpoints": []})).unwrap();
    assert_eq!(slice(&object, &mut Names::default()), None);
}

#[test]
fn a_node_tells_its_ranges_addresses_and_zone() {
    let object = serde_json::from_value(json!({
        "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}]}
    }))
    .unwrap();
    let node = node(&object, &mut Names::default());
    assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    assert_eq!(
        node.internal_ips,
        ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(node.zone.as_deref(), Some("z1"));
}

#[test]
fn names_are_shared_and_forgotten() {
    let mut names = Names::default();
    let first = names.get("default");
    assert!(Name::ptr_eq(&first, &names.get("default")));
    for n in 0..10_000 {
        names.get(&format!("gone-{n}"));
    }
    assert!(names.0.len() < 100, "{}", names.0.len());
}

fn reasons(ignored: &[Ignored]) -> Vec<String> {
    ignored.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_of_nonsense_keeps_what_makes_sense() {
    let object = json!({
        "metadata": {"uid": "2f1c4a60-7d2e-4c39-9f0a-1b9e2d3c4f5a", "creationTimestamp": "1970-01-01T00:01:00Z",
            "annotations": {"kernelet.io/locality": "planet"},
            "labels": {"service.kubernetes.io/headless": ""}},
        "spec": {
            "clusterIPs": ["127.0.0.1", "::ffff:10.96.0.1", "fe80::1", "x", "10.96.0.7", "10.96.0.7"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}},
            "ports": [{"port": 0}, {"port": 70_000}, {"port": 80}, {"port": 80}, {"port": 80, "protocol": "UDP"},
                      {"port": 81, "protocol": "IPX"}]}
    });
    let service = service(
        &serde_json::from_value(object).unwrap(),
        &mut Names::default(),
    );
    assert_eq!(
        service.cluster_ips,
        ["10.96.0.7".parse::<IpAddr>().unwrap()]
    );
    let ports: Vec<_> = service.ports.iter().map(|p| (p.port, p.protocol)).collect();
    assert_eq!(ports, [(80, Protocol::Tcp), (80, Protocol::Udp)]);
    assert_eq!(service.affinity_timeout_s, Some(10_800));
    assert!(service.not_for_proxies && service.uid.is_some());
    assert_eq!((service.created, service.locality), (60, None));
    assert_eq!(
        reasons(&service.ignored),
        [
            "only TCP and UDP are translated: IPX",
            "a port is not between 1 and 65535: 0 and 1 more",
            "two ports have one number and protocol, and the first counts: 80/TCP",
            "a service cannot have this address: 127.0.0.1 and 3 more",
            "kernelet.io/locality is neither node, zone nor cluster: planet",
        ]
    );
}

#[test]
fn affinity_lasts_as_long_as_the_api_allows() {
    let timeout = |affinity: &str, seconds: serde_json::Value| {
        let config = json!({"clientIP": {"timeoutSeconds": seconds}});
        let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config});
        let object = serde_json::from_value(json!({ "spec": spec })).unwrap();
        service(&object, &mut Names::default()).affinity_timeout_s
    };
    for (seconds, kept) in [
        (json!(1), 1),
        (json!(86_400), 86_400),
        (json!(null), 10_800),
        (json!(0), 10_800),
        (json!(-1), 10_800),
        (json!(86_401), 10_800),
    ] {
        assert_eq!(
            timeout("ClientIP", seconds.clone()),
            Some(kept),
            "{seconds}"
        );
    }
    assert_eq!(timeout("None", json!(5)), None);
    assert_eq!(timeout("Cookie", json!(5)), None);
}

fn slice_of(value: serde_json::Value) -> Slice {
    let mut value = value;
    value["metadata"]["labels"]["kubernetes.io/service-name"] = json!("web");
    let object = serde_json::from_value(value).unwrap();
    slice(&object, &mut Names::default()).unwrap()
}

#[test]
fn endpoints_are_where_others_reach_them_and_of_their_slices_family() {
    let slice = slice_of(json!({
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": ["fd00::1"], "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "a"}]}},
            {"addresses": ["10.0.0.1"]}, {"addresses": ["::ffff:10.0.0.1"]}, {"addresses": ["::1"]}, {"addresses": []},
        ],
        "ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 0}, {"name": "c"}],
    }));
    let addresses: Vec<usize> = slice.endpoints.iter().map(|e| e.addresses.len()).collect();
    assert_eq!(addresses, [1, 0, 0, 0, 0]);
    let hints = slice.endpoints[0].hints.as_ref().unwrap();
    assert_eq!((&*hints.zones[0], &*hints.nodes[0]), ("z1", "a"));
    assert_eq!((slice.ports.len(), slice.ports[0].port), (1, 80));
    assert_eq!(
        reasons(&slice.ignored),
        [
            "two ports have one number and protocol, and the first counts: 81/TCP",
            "an endpoint cannot have this address: 10.0.0.1 and 2 more",
            "an endpoint's port is not between 1 and 65535: 0",
        ]
    );
    let names =
        slice_of(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["web.example.com"]}]}));
    assert!(names.endpoints[0].addresses.is_empty() && names.ignored.is_empty());
}

#[test]
fn a_slice_has_a_thousand_endpoints_whatever_it_says() {
    let endpoints: Vec<_> = (0..5000)
        .map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 250, n % 250)]}))
        .collect();
    let slice = slice_of(json!({"addressType": "IPv4", "endpoints": endpoints}));
    assert_eq!(slice.endpoints.len(), 1000);
    assert_eq!(
        reasons(&slice.ignored),
        ["a slice has more than 1000 endpoints, and the first count: 5000"]
    );
}

#[test]
fn labels_say_which_slices_are_not_for_this_proxy() {
    for (label, not) in [
        ("service.kubernetes.io/headless", true),
        ("service.kubernetes.io/service-proxy-name", true),
        ("team", false),
    ] {
        let slice = slice_of(
            json!({"addressType": "IPv4", "metadata": {"labels": {label: ""}}, "endpoints": []}),
        );
        assert_eq!(slice.not_for_proxies, not, "{label}");
    }
}
