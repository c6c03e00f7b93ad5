//! Whatever an API server sends: nothing panics, and no service gets more than it claims.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::policy::{Class, desired};
use super::state::LbState;
use super::testing::NODE;
use crate::cluster::{Locality, Names, Node, ObjectKey, View, slim_service, slim_slice};

const ADDRESSES: [&str; 20] = [
    "10.96.0.1",
    "10.96.0.2",
    "fd00::1",
    "fd00::2",
    "10.244.0.1",
    "10.244.0.2",
    "fd00:244::1",
    "192.0.2.1",
    "127.0.0.1",
    "169.254.1.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "ff02::1",
    "::ffff:10.96.0.1",
    "None",
    "",
];
const NAMES: [&str; 4] = ["", "a", "b", "\u{7}\n…"];

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => select(&ADDRESSES[..]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn name() -> impl Strategy<Value = &'static str> {
    select(&NAMES[..])
}

fn protocol() -> impl Strategy<Value = Option<&'static str>> {
    option::of(select(&["TCP", "UDP", "SCTP", "", "tcp"][..]))
}

fn port() -> impl Strategy<Value = i32> {
    prop_oneof![select(&[80, 81, 0, -1, 65_535, 65_536][..]), any::<i32>()]
}

fn service() -> impl Strategy<Value = Value> {
    let ports = vec((name(), protocol(), port()), 0..5);
    let texts = (
        option::of(select(&["ClientIP", "None", "x"][..])),
        option::of(select(&["Local", "Cluster", "x"][..])),
        option::of(select(
            &["PreferSameNode", "PreferSameZone", "PreferClose", "x"][..],
        )),
        option::of(select(&["node", "zone", "cluster", "x"][..])),
        option::of(select(&["ClusterIP", "ExternalName", "x"][..])),
    );
    let affinity = any::<i32>();
    (vec(address(), 0..4), option::of(address()), ports, texts, affinity, any::<bool>()).prop_map(
        |(ips, ip, ports, (session, policy, distribution, locality, kind), seconds, publish)| {
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
                .collect();
            let mut object = json!({
                "metadata": {"annotations": {}},
                "spec": {
                    "type": kind, "clusterIP": ip, "clusterIPs": ips, "ports": ports,
                    "sessionAffinity": session, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
                    "internalTrafficPolicy": policy, "trafficDistribution": distribution,
                    "publishNotReadyAddresses": publish,
                },
            });
            if let Some(locality) = locality {
                object["metadata"]["annotations"]["kernelet.io/locality"] = json!(locality);
            }
            object
        },
    )
}

fn slice() -> impl Strategy<Value = Value> {
    let place = || option::of(select(&["a", "b", "z1", ""][..]));
    let endpoint = (
        vec(address(), 0..3),
        [
            option::of(any::<bool>()),
            option::of(any::<bool>()),
            option::of(any::<bool>()),
        ],
        place(),
        place(),
        vec(select(&["a", "b", "z1", ""][..]), 0..3),
    );
    let endpoint = endpoint.prop_map(
        |(addresses, [ready, serving, terminating], node, zone, hints)| {
            let hints: Vec<Value> = hints
                .into_iter()
                .map(|name| json!({"name": name}))
                .collect();
            json!({
                "addresses": addresses, "nodeName": node, "zone": zone,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "hints": {"forNodes": hints.clone(), "forZones": hints},
            })
        },
    );
    let ports = vec((name(), protocol(), option::of(port())), 0..4);
    let kind = select(&["IPv4", "IPv6", "FQDN", "", "IP"][..]);
    (kind, vec(endpoint, 0..5), ports).prop_map(|(kind, endpoints, ports)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
            .collect();
        json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "addressType": kind, "endpoints": endpoints, "ports": ports,
        })
    })
}

/// The addresses that a Service names, as they are written.
fn claimed(service: &Value) -> BTreeSet<IpAddr> {
    let texts = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten();
    texts
        .chain([&service["spec"]["clusterIP"]])
        .filter_map(|text| text.as_str()?.parse().ok())
        .collect()
}

fn is_sane(ip: IpAddr) -> bool {
    let is_mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(is_mapped || is_link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

proptest! {
    #[test]
    fn nonsense_never_panics_and_never_takes_what_nobody_claims(
        first in service(), second in service(), slices in vec(slice(), 0..4), knows_node in any::<bool>(),
    ) {
        let (mut view, mut names) = (View::default(), Names::default());
        let node = Node {
            zone: Some("z1".into()),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap(), "fd00:244::/64".parse().unwrap()],
            internal_ips: vec!["192.0.2.1".parse().unwrap()],
        };
        view.set_node(NODE.into(), knows_node.then_some(node));
        let web = ObjectKey::new("ns", "web");
        let other = ObjectKey::new("ns", "other");
        for (key, object) in [(&web, &first), (&other, &second)] {
            let object = serde_json::from_value(object.clone()).unwrap();
            view.set_service(key.clone(), Some(slim_service(&object, &mut names)));
        }
        for (n, object) in slices.iter().enumerate() {
            let object = serde_json::from_value(object.clone()).unwrap();
            let key = ObjectKey::new("ns", format!("web-{n}"));
            view.set_slice(key, slim_slice(&object, &mut names));
        }

        let mut state = LbState::new();
        state.set_synced();
        for (key, object) in [(&web, &first), (&other, &second)] {
            let (frontends, ignored) = desired(&view, NODE, Locality::Zone, key);
            let keys: BTreeSet<_> = frontends.iter().map(|frontend| frontend.key).collect();
            prop_assert_eq!(keys.len(), frontends.len(), "each key once");
            for frontend in &frontends {
                let ip = frontend.key.address.to_ip();
                prop_assert!(claimed(object).contains(&ip), "{ip} was not asked for");
                prop_assert!(is_sane(ip), "{ip}");
                if knows_node {
                    let pods = ["10.244.0.", "fd00:244::"];
                    let text = ip.to_string();
                    prop_assert!(text != "192.0.2.1" && !pods.iter().any(|it| text.starts_with(it)), "{ip}");
                }
                let number = u16::from_be_bytes(frontend.key.port);
                let ports = object["spec"]["ports"].as_array().unwrap();
                prop_assert!(number != 0 && ports.iter().any(|port| port["port"] == number));
                prop_assert!(frontend.affinity_timeout_s <= 86_400);
                for backend in &frontend.backends {
                    let target = backend.target.address.to_ip();
                    prop_assert!(is_sane(target) && target.is_ipv4() == ip.is_ipv4(), "{target}");
                    prop_assert!(backend.target.port != [0, 0]);
                    prop_assert_eq!(backend.target.protocol, frontend.key.protocol);
                }
                let sorted = frontend.backends.is_sorted_by(|a, b| a < b);
                prop_assert!(sorted, "{:?}", frontend.backends);
                let local_only = frontend.preference == super::Preference::LocalOnly;
                let crosses = |class| local_only && matches!(class, Class::Zone | Class::Rest);
                prop_assert!(!frontend.backends.iter().any(|it| crosses(it.class)));
            }
            let mut whys: Vec<_> = ignored.iter().map(|it| it.why).collect();
            whys.dedup();
            prop_assert_eq!(whys.len(), ignored.len(), "one line for each reason");
            for frontend in state.assign(key, frontends, ignored) {
                if let Some(flip) = state.plan(key, &frontend) {
                    state.settle(flip, true);
                }
            }
        }
        // Whoever came first has it.
        for (key, live) in state.frontends() {
            let (mine, _) = desired(&view, NODE, Locality::Zone, &web);
            let wanted = mine.iter().any(|frontend| frontend.key == *key);
            prop_assert_eq!(live.owner.as_ref() == Some(&web), wanted);
        }
    }
}
