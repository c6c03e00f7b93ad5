//! NetworkPolicy as its users know it: the classic policies, with stock kubectl, on two nodes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use kernelet_tests::Spec;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::{Value, json};

/// How long the cluster may take to do what it is told before a scenario calls it broken.
const REPAIR: Duration = Duration::from_secs(60);
/// For a connection that should come about.
const PATIENCE: Duration = Duration::from_secs(5);
/// For one that should not: what policies refuse is dropped, so nothing comes back.
const QUIET: Duration = Duration::from_millis(500);
/// Where the sample backend listens.
const PORT: u16 = 8080;

/// A pod that has been seen Ready.
struct Pod {
    node: String,
    address: String,
    uid: String,
}

fn pod(namespace: &str, name: &str, app: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": "backend:v0.0.1",
                "ports": [{"name": "web", "containerPort": PORT}],
                "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                "env": [
                    {"name": "POD_NAME", "value": name},
                    {"name": "NODE_NAME", "value": node},
                ],
            }],
        },
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

fn apply(scenario: &Scenario, objects: &[Value]) {
    let file: PathBuf = scenario.spec.directory.join("policy.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(&file, list.to_string()).expect("the scenario's directory is there");
    scenario.kubectl(&format!("apply -f {}", file.display()));
}

fn ready(scenario: &Scenario, namespace: &str, name: &str) -> Pod {
    eventually(&format!("{name} is Ready"), REPAIR, || {
        let found = scenario.get(&format!("-n {namespace} pod {name}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let conditions = found["status"]["conditions"].as_array();
        let is_ready = conditions.into_iter().flatten();
        let is_ready = is_ready
            .into_iter()
            .any(|it| it["type"] == "Ready" && it["status"] == "True");
        is_ready
            .then(|| Pod {
                node: text(&found["spec"]["nodeName"]),
                address: text(&found["status"]["podIP"]),
                uid: text(&found["metadata"]["uid"]),
            })
            .ok_or_else(|| found["status"].to_string())
    })
}

/// Whether a connection from within a pod comes about.
fn reaches(scenario: &Scenario, from: &Pod, to: &str, port: u16, patience: Duration) -> bool {
    let node = scenario.node(&from.node).expect("the pod's node");
    let to = SocketAddr::new(to.parse().expect("an address"), port);
    let dial = || TcpStream::connect_timeout(&to, patience);
    match node
        .inside_pod(&from.uid, dial)
        .expect("the pod's namespace")
    {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => false,
        Err(error) => panic!("{to}: {error}"),
    }
}

/// Waits until that is so.
fn await_reached(scenario: &Scenario, what: &str, from: &Pod, to: &Pod) {
    eventually(what, REPAIR, || {
        match reaches(scenario, from, &to.address, PORT, PATIENCE) {
            true => Ok(()),
            false => Err("it is not reached".to_owned()),
        }
    });
}

/// Waits until that is not so, and looks again.
fn await_refused(scenario: &Scenario, what: &str, from: &Pod, to: &Pod) {
    eventually(what, REPAIR, || {
        match reaches(scenario, from, &to.address, PORT, QUIET) {
            false => Ok(()),
            true => Err("it is reached".to_owned()),
        }
    });
    assert!(!reaches(scenario, from, &to.address, PORT, QUIET), "{what}");
}

/// All addresses but one pod's, at some ports, of TCP and of datagrams.
fn blocks_and_ranges_of_ports(scenario: &Scenario, backend: &Pod, near: &Pod, far: &Pod) {
    let but_near =
        json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("{}/32", near.address)]}}]);
    let blocks = json!({
        "podSelector": app("backend"),
        "ingress": [{"from": but_near, "ports": [
            {"port": 8000, "endPort": PORT},
            {"port": 9000, "endPort": 9010, "protocol": "UDP"},
        ]}],
    });
    apply(scenario, &[policy("blocks", blocks)]);
    await_refused(scenario, "an address that is excepted", near, backend);
    await_reached(scenario, "the others of the block", far, backend);

    let node = scenario.node(&backend.node).expect("the pod's node");
    let inside = |work: &(dyn Fn() -> UdpSocket + Sync)| {
        node.inside_pod(&backend.uid, work)
            .expect("the pod's namespace")
    };
    let beyond = node.inside_pod(&backend.uid, || TcpListener::bind(("0.0.0.0", PORT + 1)));
    let _beyond = beyond
        .expect("the pod's namespace")
        .expect("the port is free");
    let is_heard = reaches(scenario, far, &backend.address, PORT + 1, QUIET);
    assert!(!is_heard, "behind the last of the ports");

    let bind = |port: u16| move || UdpSocket::bind(("0.0.0.0", port)).expect("the port is free");
    let [within, without] = [9005, 9011].map(|port| inside(&bind(port)));
    within
        .set_read_timeout(Some(PATIENCE))
        .expect("it is not zero");
    without
        .set_read_timeout(Some(QUIET))
        .expect("it is not zero");
    let send = |from: &Pod, port: u16, what: u8| {
        let node = scenario.node(&from.node).expect("the pod's node");
        let sent = node.inside_pod(&from.uid, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&[what], (backend.address.as_str(), port))
        });
        sent.expect("the pod's namespace").expect("it is sent");
    };
    // Those that must not come are sent first.
    send(near, 9005, 1);
    send(far, 9011, 2);
    send(far, 9005, 3);
    let mut got = [0];
    within.recv(&mut got).expect("one of the block's comes");
    assert_eq!(got, [3]);
    assert!(
        without.recv(&mut got).is_err(),
        "behind the last of the ports"
    );
    scenario.kubectl("delete netpol blocks");
    await_reached(
        scenario,
        "policies that are gone refuse nothing",
        near,
        backend,
    );
}

#[test]
fn the_classic_policies_hold_on_every_node() {
    let Some(scenario) = Scenario::begin(Spec::scenario("knp", 113, 2)) else {
        return;
    };
    scenario.kubectl("create namespace ops");
    apply(
        &scenario,
        &[
            pod("default", "backend", "backend", "worker-1"),
            pod("default", "frontend-1", "frontend", "worker-1"),
            pod("default", "frontend-2", "frontend", "worker-2"),
            pod("default", "other", "other", "worker-2"),
            pod("ops", "monitor", "monitor", "worker-2"),
        ],
    );
    let default = |name| ready(&scenario, "default", name);
    let (backend, near, far) = (
        default("backend"),
        default("frontend-1"),
        default("frontend-2"),
    );
    let (other, monitor) = (default("other"), ready(&scenario, "ops", "monitor"));
    let everybody = [&near, &far, &other, &monitor];
    for peer in everybody {
        await_reached(
            &scenario,
            "without policies everybody is heard",
            peer,
            &backend,
        );
    }

    // Deny all.
    apply(
        &scenario,
        &[policy(
            "deny-all",
            json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        )],
    );
    for peer in everybody {
        await_refused(&scenario, "deny all", peer, &backend);
    }
    let listed = scenario.kubectl("get netpol");
    assert!(
        listed.contains("deny-all") && listed.contains("POD-SELECTOR"),
        "{listed}"
    );

    // A pod that comes now is never heard of before its policies are, and the node's probes reach it all the same.
    apply(&scenario, &[pod("default", "late", "late", "worker-1")]);
    let late = eventually("the late pod has an address", REPAIR, || {
        let found = scenario.get("pod late");
        let address = found["status"]["podIP"].as_str().map(ToOwned::to_owned);
        address.ok_or_else(|| found["status"].to_string())
    });
    let heard = thread::scope(|scope| {
        let tries = || (0..8).any(|_| reaches(&scenario, &far, &late, PORT, QUIET));
        scope.spawn(tries).join().unwrap()
    });
    assert!(!heard, "a new pod was open");
    default("late");

    // Frontends to the backend, by the port's name.
    let frontends = json!({
        "podSelector": app("backend"),
        "ingress": [{"from": [{"podSelector": app("frontend")}], "ports": [{"port": "web"}]}],
    });
    apply(&scenario, &[policy("frontends", frontends)]);
    for peer in [&near, &far] {
        await_reached(&scenario, "frontends are let in", peer, &backend);
    }
    for peer in [&other, &monitor] {
        await_refused(&scenario, "others are not", peer, &backend);
    }
    let shown = scenario.kernelet("worker-1", "policy show backend");
    assert_eq!(shown["ingress"]["state"], "isolated", "{shown}");
    assert_eq!(shown["egress"]["state"], "open", "{shown}");
    let rules = shown["ingress"]["rules"].as_array().unwrap();
    let named = |rule: &&Value| rule["policy"] == "default/frontends" && rule["number"] == 1;
    assert!(rules.iter().any(|rule| named(&rule)), "{shown}");
    let dialled = format!("{}:{PORT}", backend.address);
    let trace = |from: &str| {
        let reply = scenario.kernelet("worker-1", &format!("trace --from {from} {dialled}"));
        reply["traces"][0]["steps"].to_string()
    };
    assert!(
        trace("frontend-1").contains("allowed by default/frontends"),
        "{}",
        trace("frontend-1")
    );
    assert!(
        trace("late").contains("refused; isolated by default/deny-all"),
        "{}",
        trace("late")
    );

    // From a namespace, once it has the label.
    let team = json!({
        "podSelector": app("backend"),
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]}],
    });
    apply(&scenario, &[policy("ops", team)]);
    await_refused(
        &scenario,
        "its namespace has no label yet",
        &monitor,
        &backend,
    );
    scenario.kubectl("label namespace ops team=ops");
    await_reached(
        &scenario,
        "pods of a namespace are let in",
        &monitor,
        &backend,
    );
    await_refused(&scenario, "others are still not", &other, &backend);

    // Nothing leaves the other pod but questions to DNS; its own node is always reached.
    let dns = json!({
        "podSelector": app("other"), "policyTypes": ["Egress"],
        "egress": [{
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
        }],
    });
    scenario.kubectl("delete netpol deny-all ops frontends");
    await_reached(
        &scenario,
        "policies that are gone refuse nothing",
        &other,
        &backend,
    );
    apply(&scenario, &[policy("dns-only", dns)]);
    await_refused(&scenario, "egress is closed", &other, &backend);
    await_reached(&scenario, "ingress is not", &near, &other);
    let gateway = gateway_of(&other.address);
    assert!(
        reaches(&scenario, &other, &gateway, 53, PATIENCE),
        "DNS answers"
    );

    scenario.kubectl("delete netpol --all");
    await_reached(&scenario, "all is as before", &other, &backend);
    blocks_and_ranges_of_ports(&scenario, &backend, &near, &far);
}

/// The address of DNS for a pod: the first of its node's range, which has 24 bits.
fn gateway_of(address: &str) -> String {
    let (range, _) = address.rsplit_once('.').expect("an IPv4 address");
    format!("{range}.1")
}
