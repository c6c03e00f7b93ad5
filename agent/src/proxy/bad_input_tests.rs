//! Services and EndpointSlices that make no sense: what does is served, nothing is taken from others, and an Event says why.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::claims_tests::listener;
use super::handle::ProxyHandle;
use super::metrics::Metrics;
use super::reconcile::{Settings, Worker};
use super::state::LbState;
use super::testing::{Blind, NODE};
use crate::cluster::{Cluster, Locality, Names, ObjectKey, slim_service, slim_slice};
use crate::dataplane::fake::FakeMaps;
use crate::events::Events;

/// A Service's object, its slices' and what its Events say: reason and message.
struct Case {
    name: &'static str,
    address: &'static str,
    ports: Value,
    slices: Vec<Value>,
    told: &'static [(&'static str, &'static str)],
    /// How many backends its address has; `None`: it has no address.
    backends: Option<usize>,
}

fn slice(kind: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({"addressType": kind, "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]})
}

fn many(third: std::ops::Range<u8>) -> Vec<String> {
    third
        .flat_map(|third| (0..250).map(move |last| format!("10.244.{third}.{last}")))
        .collect()
}

fn cases() -> Vec<Case> {
    let http = || json!([{"name": "http", "port": 80}]);
    let texts = |all: &[&str]| all.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
    let one = || vec![slice("IPv4", &texts(&["10.244.0.1"]))];
    vec![
        Case {
            name: "port-zero",
            address: "10.96.0.1",
            ports: json!([{"name": "zero", "port": 0}, {"name": "http", "port": 80}]),
            slices: one(),
            told: &[("InvalidPort", "a port is not between 1 and 65535: 0")],
            backends: Some(1),
        },
        Case {
            name: "port-twice",
            address: "10.96.0.2",
            ports: json!([{"name": "http", "port": 80}, {"name": "other", "port": 80}]),
            slices: one(),
            told: &[(
                "InvalidPort",
                "two ports have one number and protocol, and the first counts: 80/TCP",
            )],
            backends: Some(1),
        },
        Case {
            name: "own-loopback",
            address: "127.0.0.1",
            ports: http(),
            slices: one(),
            told: &[(
                "InvalidAddress",
                "a service cannot have this address: 127.0.0.1",
            )],
            backends: None,
        },
        Case {
            name: "loopback",
            address: "10.96.0.4",
            ports: http(),
            slices: vec![slice(
                "IPv4",
                &texts(&["127.0.0.1", "10.244.0.1", "127.9.9.9"]),
            )],
            told: &[(
                "InvalidEndpoint",
                "an endpoint cannot have this address: 127.0.0.1 and 1 more",
            )],
            backends: Some(1),
        },
        Case {
            name: "link-local",
            address: "10.96.0.5",
            ports: http(),
            slices: vec![
                slice("IPv4", &texts(&["169.254.169.254"])),
                slice("IPv6", &texts(&["fe80::1", "::1"])),
            ],
            told: &[(
                "InvalidEndpoint",
                "an endpoint cannot have this address: 169.254.169.254 and 2 more",
            )],
            backends: Some(0),
        },
        Case {
            name: "endpoint-port-zero",
            address: "10.96.0.6",
            ports: http(),
            slices: vec![json!({
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.0.1"]}],
                "ports": [{"name": "http", "port": 0}],
            })],
            told: &[(
                "InvalidEndpoint",
                "an endpoint's port is not between 1 and 65535: 0",
            )],
            backends: Some(0),
        },
        Case {
            name: "too-many",
            address: "10.96.0.7",
            ports: http(),
            slices: vec![slice("IPv4", &many(0..20))],
            told: &[(
                "InvalidEndpoint",
                "a slice has more than 1000 endpoints, and the first count: 5000",
            )],
            backends: Some(1000),
        },
        // As many, in as many slices as it takes: nothing is wrong with that.
        Case {
            name: "many",
            address: "10.96.0.8",
            ports: http(),
            slices: (0..5)
                .map(|n| slice("IPv4", &many(n * 4..n * 4 + 4)))
                .collect(),
            told: &[],
            backends: Some(5000),
        },
        Case {
            name: "thief",
            address: "10.96.0.8",
            ports: http(),
            slices: one(),
            told: &[(
                "AddressTaken",
                "another service has the address: 10.96.0.8 port 80 by ns/many",
            )],
            backends: Some(5000),
        },
    ]
}

#[tokio::test]
async fn what_makes_no_sense_is_left_out_and_an_event_says_why() {
    let (client, mut told) = listener();
    let cluster = Cluster::default();
    let mut names = Names::default();
    for case in cases() {
        let object = json!({"spec": {"clusterIP": case.address, "ports": case.ports}});
        let service = slim_service(&serde_json::from_value(object).unwrap(), &mut names);
        let slices = case.slices.into_iter().map(|mut object| {
            object["metadata"]["labels"]["kubernetes.io/service-name"] = case.name.into();
            slim_slice(&serde_json::from_value(object).unwrap(), &mut names)
        });
        let slices: Vec<_> = slices.collect();
        cluster.update(|view| {
            let key = |name: String| ObjectKey::new("ns", name);
            view.set_service(key(case.name.to_owned()), Some(service));
            for (n, slice) in slices.into_iter().enumerate() {
                view.set_slice(key(format!("{}-{n}", case.name)), slice);
            }
            Vec::new()
        });
    }
    cluster.set_synced();
    let settings = Settings {
        node: NODE.into(),
        locality: Locality::Node,
        events: Some(Events::start(client, "kernelet", NODE.into())),
    };
    let (proxy, mut changes) = (ProxyHandle::new(LbState::new()), cluster.subscribe());
    let metrics = Metrics::new(&mut Registry::default());
    let maps = FakeMaps::default();
    let mut worker = Worker::new(cluster, settings, proxy, metrics, maps, Blind);
    worker.changed(changes.next().await).await;

    let expected: BTreeMap<&str, BTreeSet<(String, String)>> = cases()
        .iter()
        .filter(|case| !case.told.is_empty())
        .map(|case| {
            let told = case.told.iter();
            let told = told.map(|&(reason, message)| (reason.to_owned(), message.to_owned()));
            (case.name, told.collect())
        })
        .collect();
    let mut seen: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for _ in expected.values().flatten() {
        let event = told.recv().await.unwrap();
        assert_eq!(event["type"], "Warning");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let said = (text(&event["reason"]), text(&event["message"]));
        let name = text(&event["involvedObject"]["name"]);
        seen.entry(name).or_default().insert(said);
    }
    let seen: BTreeMap<&str, _> = seen
        .iter()
        .map(|(name, it)| (&**name, it.clone()))
        .collect();
    assert_eq!(seen, expected);
    assert!(told.try_recv().is_err(), "and no more");

    let state = &worker.maps.state;
    let found: BTreeMap<String, usize> = state
        .services
        .iter()
        .map(|(key, entry)| {
            assert_eq!(key.port, [0, 80], "{key:?}");
            (key.address.to_ip().to_string(), entry.ready as usize)
        })
        .collect();
    let wanted: BTreeMap<String, usize> = cases()
        .iter()
        .filter_map(|case| Some((case.address.to_owned(), case.backends?)))
        .collect();
    assert_eq!(found, wanted);
    let pods: ipnet::IpNet = "10.244.0.0/16".parse().unwrap();
    let strange = state
        .backends
        .values()
        .find(|row| !pods.contains(&row.address.to_ip()));
    assert_eq!(strange, None);
}
