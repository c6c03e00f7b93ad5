//! Where connections go is what each Service says, seen through the kernel of three nodes in two zones.

use std::collections::BTreeMap;
use std::fs;

use kernelet_tests::Spec;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::{Value, json};

use crate::application::{Pod, REPAIR, call, pods};

const CALLS: u64 = 300;

/// What each Service says, beside that its backends are those of the application.
fn services() -> [(&'static str, Value); 9] {
    let annotated = |locality: &str| json!({"annotations": {"kernelet.io/locality": locality}});
    let spread = || annotated("cluster");
    [
        ("plain", json!({})),
        (
            "node-only",
            json!({"spec": {"internalTrafficPolicy": "Local"}}),
        ),
        (
            "same-node",
            json!({"spec": {"trafficDistribution": "PreferSameNode"}}),
        ),
        (
            "same-zone",
            json!({"spec": {"trafficDistribution": "PreferSameZone"}}),
        ),
        ("zone", json!({"metadata": annotated("zone")})),
        ("cluster", json!({"metadata": spread()})),
        (
            "sticky",
            json!({"metadata": spread(), "spec": {"sessionAffinity": "ClientIP"}}),
        ),
        ("by-hand", json!({"spec": {"selector": null}})),
        (
            "not-ours",
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}}),
        ),
    ]
}

fn service(name: &str, says: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": "backend"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    for (part, fields) in says.as_object().into_iter().flatten() {
        for (field, value) in fields.as_object().into_iter().flatten() {
            service[part][field] = value.clone();
        }
    }
    service
}

pub fn pod(app: &str, name: &str, node: &str, endpoint: &str) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": app, "image": format!("{app}:v0.0.1"),
                "env": [
                    {"name": "BACKEND_ENDPOINT", "value": endpoint},
                    {"name": "POD_NAME", "valueFrom": field("metadata.name")},
                    {"name": "NODE_NAME", "valueFrom": field("spec.nodeName")},
                ],
            }],
        },
    })
}

pub fn apply(scenario: &Scenario, objects: &[Value]) {
    let file = scenario.spec.directory.join("policies.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(&file, list.to_string()).unwrap();
    scenario.kubectl(&format!("apply -f {}", file.display()));
}

pub fn backend(number: u8) -> Value {
    let node = format!("worker-{number}");
    pod("backend", &format!("backend-{number}"), &node, "")
}

/// The pod of that name, once it is Ready.
pub fn ready(scenario: &Scenario, name: &str) -> Pod {
    eventually(&format!("{name} is Ready"), REPAIR, || {
        let all = pods(scenario);
        let found = all.iter().find(|pod| pod.name == name && pod.ready);
        found.cloned().ok_or_else(|| format!("{all:?}"))
    })
}

/// How many calls of the client of one service each node answered.
fn seen(scenario: &Scenario, name: &str) -> Result<BTreeMap<String, u64>, String> {
    let client = ready(scenario, &format!("client-{name}"));
    let calls = call(scenario, &client, CALLS)?;
    match calls.failures {
        0 => Ok(calls
            .answers
            .into_iter()
            .map(|one| (one.backend.node, one.count))
            .collect()),
        _ => Err(format!("{calls:?}")),
    }
}

/// Waits until the calls go where `wanted` says.
fn await_seen(scenario: &Scenario, name: &str, wanted: impl Fn(&BTreeMap<String, u64>) -> bool) {
    eventually(&format!("calls to {name} go where it says"), REPAIR, || {
        let seen = seen(scenario, name)?;
        wanted(&seen)
            .then_some(())
            .ok_or_else(|| format!("{seen:?}"))
    });
}

fn only(nodes: &[u8]) -> impl Fn(&BTreeMap<String, u64>) -> bool {
    let wanted: Vec<String> = nodes.iter().map(|n| format!("worker-{n}")).collect();
    // Even shares vary; a third of an even share does not happen by chance.
    let least = CALLS / nodes.len() as u64 / 3;
    move |seen| {
        let at: Vec<&String> = seen.keys().collect();
        at == wanted.iter().collect::<Vec<_>>() && seen.values().all(|count| *count >= least)
    }
}

#[test]
fn connections_go_where_each_service_says() {
    let mut spec = Spec::scenario("ksp", 111, 3);
    spec.control_plane_args = vec![
        "--service-cidr".to_owned(),
        "10.96.0.0/12,fd00:10:96::/108".to_owned(),
    ];
    let Some(scenario) = Scenario::begin(spec) else {
        return;
    };
    for (node, zone) in [("worker-1", "za"), ("worker-2", "za"), ("worker-3", "zb")] {
        scenario.kubectl(&format!(
            "label node {node} topology.kubernetes.io/zone={zone}"
        ));
    }
    let mut objects: Vec<Value> = (1..=3).map(backend).collect();
    for (name, says) in services() {
        objects.push(service(name, says));
        let url = format!("http://{name}");
        objects.push(pod("frontend", &format!("client-{name}"), "worker-1", &url));
    }
    apply(&scenario, &objects);
    let far = ready(&scenario, "backend-3");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "by-hand-1", "labels": {"kubernetes.io/service-name": "by-hand"}},
        "endpoints": [{"addresses": [far.address]}], "ports": [{"name": "http", "port": 8080}],
    });
    apply(&scenario, &[slice]);

    await_seen(&scenario, "plain", |seen| {
        seen.get("worker-1").is_some_and(|n| *n >= CALLS * 9 / 10)
    });
    await_seen(&scenario, "node-only", only(&[1]));
    await_seen(&scenario, "same-node", only(&[1]));
    await_seen(&scenario, "same-zone", only(&[1, 2]));
    await_seen(&scenario, "zone", only(&[1, 2]));
    await_seen(&scenario, "cluster", only(&[1, 2, 3]));
    await_seen(&scenario, "sticky", |seen| seen.len() == 1);
    await_seen(&scenario, "by-hand", only(&[3]));
    let theirs = call(&scenario, &ready(&scenario, "client-not-ours"), 1).unwrap();
    assert_eq!(theirs.failures, 1, "another proxy's service: {theirs:?}");

    // The near ones go: who prefers them spills, who insists is refused.
    scenario.kubectl("delete pod backend-1 --wait");
    await_seen(&scenario, "same-node", only(&[2]));
    await_seen(&scenario, "same-zone", only(&[2]));
    eventually("calls to node-only are refused", REPAIR, || {
        let calls = call(&scenario, &ready(&scenario, "client-node-only"), 10)?;
        let refused = calls.failures == 10
            && calls
                .first_failure
                .as_ref()
                .is_some_and(|why| why.to_lowercase().contains("refused"));
        refused.then_some(()).ok_or_else(|| format!("{calls:?}"))
    });
    scenario.kubectl("delete pod backend-2 --wait");
    await_seen(&scenario, "same-node", only(&[3]));
    await_seen(&scenario, "zone", only(&[3]));
    apply(&scenario, &[backend(1), backend(2)]);
    await_seen(&scenario, "same-node", only(&[1]));
    await_seen(&scenario, "node-only", only(&[1]));
    await_seen(&scenario, "cluster", only(&[1, 2, 3]));
}

#[test]
fn two_families_have_two_addresses_and_nonsense_has_a_reason() {
    let mut spec = Spec::scenario("ksd", 112, 1);
    spec.control_plane_args = vec![
        "--service-cidr".to_owned(),
        "10.96.0.0/12,fd00:10:96::/108".to_owned(),
    ];
    let Some(scenario) = Scenario::begin(spec) else {
        return;
    };
    let dual = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let odd = json!({
        "metadata": {"annotations": {"kernelet.io/locality": "planet"}},
        "spec": {"ports": [{"name": "sig", "port": 9, "protocol": "SCTP"}]},
    });
    apply(&scenario, &[service("dual", dual), service("odd", odd)]);
    let ips = scenario.get("service dual")["spec"]["clusterIPs"].clone();
    let addresses: Vec<String> = serde_json::from_value(ips).unwrap();
    assert!(addresses[0].starts_with("10.") && addresses[1].starts_with("fd00:10:96::"));
    eventually("the node has both addresses", REPAIR, || {
        let shown = scenario.try_kernelet("worker-1", "service show dual")?;
        let text = shown.to_string();
        let has = |address: &String| text.contains(address.as_str());
        addresses.iter().all(has).then_some(()).ok_or(text)
    });
    eventually("the slices are of both families", REPAIR, || {
        let slices = scenario.list("endpointslices -l kubernetes.io/service-name=dual");
        let kinds: Vec<&str> = slices
            .iter()
            .filter_map(|slice| slice["addressType"].as_str())
            .collect();
        let both = kinds.contains(&"IPv4") && kinds.contains(&"IPv6");
        both.then_some(()).ok_or_else(|| format!("{kinds:?}"))
    });
    eventually("the service's events say what is wrong", REPAIR, || {
        let events = scenario.list("events");
        let has = |reason: &str| {
            events.iter().any(|event| {
                event["reason"] == reason
                    && event["type"] == "Warning"
                    && event["involvedObject"]["name"] == "odd"
            })
        };
        (has("UnsupportedProtocol") && has("InvalidLocality"))
            .then_some(())
            .ok_or_else(|| format!("{events:?}"))
    });
    let described = scenario.kubectl("describe service odd");
    assert!(
        described.contains("neither node, zone nor cluster: planet"),
        "{described}"
    );
}
