//! Node ports and host ports, dialled on a worker and by its pods; and the health check that load balancers ask.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use kernelet_tests::command::output;
use kernelet_tests::host::{cgroup2_mount, netns_path};
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Node, Program, Spec};
use serde_json::{Value, json};

use crate::application::{Pod, REPAIR, call};
use crate::policies::{apply, backend, pod, ready};

const NODE_PORT: u16 = 30_080;
const HOST_PORT: u16 = 8081;
/// Of datagrams.
const HOST_PORT_UDP: u16 = 8082;
const HEALTH_CHECK: u16 = 31_999;

fn services() -> [Value; 2] {
    let ports = |node_port: Value| json!([{"name": "http", "port": 80, "targetPort": 8080, "nodePort": node_port}]);
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
            "spec": {"type": "NodePort", "selector": {"app": "backend"}, "ports": ports(json!(NODE_PORT))},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced"},
            "spec": {
                "type": "LoadBalancer", "selector": {"app": "backend"}, "ports": ports(Value::Null),
                "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH_CHECK,
            },
        }),
    ]
}

/// What a process on the worker gets from an address: in the worker's network namespace, and its cgroup, as all of its are.
fn fetch(worker: &Node, address: &str, port: u16) -> Result<String, String> {
    let cgroup = cgroup2_mount().map_err(|error| error.to_string())?;
    let script = r#"echo $$ > "$0/cgroup.procs" && exec nsenter --net="$1" bash -c '
        exec 3<>"/dev/tcp/$0/$1" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' "$2" "$3""#;
    let mut command = Command::new("bash");
    command
        .args(["-c", script])
        .arg(cgroup.join(&worker.cgroup).join("system"))
        .arg(netns_path(&worker.netns))
        .args([address, &port.to_string()]);
    output(&mut command).map_err(|error| error.to_string())
}

/// What a load balancer hears of a worker.
fn health(worker: &Node) -> Result<(i32, Value), String> {
    let url = format!("http://{}:{HEALTH_CHECK}/", worker.address);
    let asked = worker.inside(|| minreq::get(&url).with_timeout(10).send());
    let answer = asked.map_err(|error| error.to_string())?;
    let answer = answer.map_err(|error| error.to_string())?;
    let body = answer.as_str().map_err(|error| error.to_string())?;
    let body = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
    Ok((answer.status_code, body))
}

fn await_health(scenario: &Scenario, worker: &str, code: i32, local: u64) {
    let worker = scenario.node(worker).unwrap();
    eventually("the health check says what is there", REPAIR, || {
        let said = health(worker)?;
        let wanted = json!({
            "service": {"namespace": "default", "name": "balanced"},
            "localEndpoints": local, "serviceProxyHealthy": true,
        });
        match said == (code, wanted) {
            true => Ok(()),
            false => Err(format!("{said:?}")),
        }
    });
}

/// Waits until a client's calls are answered, by its own node's backend.
fn near_answers(scenario: &Scenario, what: &str, client: &Pod) {
    eventually(&format!("the service answers: {what}"), REPAIR, || {
        let calls = call(scenario, client, 100)?;
        let near = calls.answers.iter();
        let near = near.filter(|one| one.backend.node == client.node);
        match (calls.failures, near.map(|one| one.count).sum()) {
            (0, 90..) => Ok(()),
            _ => Err(format!("{calls:?}")),
        }
    });
}

#[test]
fn a_node_port_answers_on_a_worker_and_from_its_pods() {
    let Some(scenario) = Scenario::begin(Spec::scenario("kso", 113, 2)) else {
        return;
    };
    let worker = scenario.node("worker-1").unwrap();
    let endpoint = format!("http://{}:{NODE_PORT}", worker.address);
    let client = pod("frontend", "client", "worker-1", &endpoint);
    let [outside, balanced] = services();
    let at_node = |name: &str, endpoint: &str| {
        let mut pod = pod("frontend", name, "worker-1", endpoint);
        pod["spec"]["hostNetwork"] = true.into();
        pod["spec"]["dnsPolicy"] = "ClusterFirstWithHostNet".into();
        pod
    };
    let host_client = at_node("host-client", "http://outside");
    apply(
        &scenario,
        &[
            backend(1),
            backend(2),
            client,
            host_client,
            outside,
            balanced,
        ],
    );
    let client = ready(&scenario, "client");
    for name in ["backend-1", "backend-2"] {
        ready(&scenario, name);
    }

    let addresses = [worker.address.to_string(), "127.0.0.1".to_owned()];
    for address in &addresses {
        eventually("the node port answers on the worker", REPAIR, || {
            let answer = fetch(worker, address, NODE_PORT)?;
            answer
                .contains("backend-1")
                .then_some(())
                .ok_or_else(|| format!("another than the worker's own: {answer}"))
        });
    }
    let service = scenario.get("service outside");
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap();
    let answer = fetch(worker, cluster_ip, 80).unwrap();
    assert!(answer.contains("backend-1"), "to a process: {answer}");
    near_answers(&scenario, "a node port, a pod", &client);
    near_answers(
        &scenario,
        "a cluster IP, a pod of the node's network",
        &ready(&scenario, "host-client"),
    );
    // Of the node's network there is one port 3000.
    scenario.kubectl("delete pod host-client");
    apply(&scenario, &[at_node("host-dialler", &endpoint)]);
    near_answers(
        &scenario,
        "a node port, a pod of the node's network",
        &ready(&scenario, "host-dialler"),
    );
    let traced = scenario.kernelet(
        "worker-1",
        &format!("trace {}:{NODE_PORT} --from client", worker.address),
    );
    assert_eq!(
        traced["traces"][0]["service"], "default/outside",
        "{traced}"
    );
    let shown = scenario.kernelet("worker-1", "service list");
    let kinds = shown["services"].as_array().unwrap().iter();
    let mut kinds = kinds.filter(|it| it["name"] == "outside");
    assert!(kinds.any(|it| it["kind"] == "NodePort"), "{shown}");

    for worker in ["worker-1", "worker-2"] {
        await_health(&scenario, worker, 200, 1);
    }
    scenario.kubectl("delete pod backend-2");
    await_health(&scenario, "worker-2", 503, 0);
    await_health(&scenario, "worker-1", 200, 1);
}

/// A backend with a host port, wherever the scheduler or `node` puts it.
fn exposed(name: &str, node: Option<&str>) -> Value {
    let mut pod = backend(1);
    pod["metadata"]["name"] = name.into();
    pod["spec"]["containers"][0]["ports"] = json!([
        {"containerPort": 8080, "hostPort": HOST_PORT},
        {"containerPort": 9091, "hostPort": HOST_PORT_UDP, "protocol": "UDP"},
    ]);
    pod["spec"]["nodeName"] = node.into();
    pod
}

/// By the host port of datagrams, to a pod that sees who asks.
fn datagrams_come(scenario: &Scenario, pod: &Pod, client: &Node, worker: &Node) {
    let found = scenario.get(&format!("pod {}", pod.name));
    let uid = found["metadata"]["uid"].as_str().unwrap();
    let own = worker.inside_pod(uid, || UdpSocket::bind("0.0.0.0:9091").unwrap());
    let connect = || {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.connect((worker.address, HOST_PORT_UDP)).unwrap();
        client
    };
    let (own, client) = (own.unwrap(), client.inside(connect).unwrap());
    for socket in [&own, &client] {
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
    }
    client.send(b"?").unwrap();
    let (_, from) = own.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    own.send_to(b"!", from).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 1);
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_and_goes_with_it() {
    let Some(mut scenario) = Scenario::begin(Spec::scenario("kvh", 151, 2)) else {
        return;
    };
    // Two pods of one host port never meet on a node.
    apply(&scenario, &[exposed("one", None), exposed("two", None)]);
    let [one, two] = ["one", "two"].map(|name| ready(&scenario, name));
    assert_ne!(one.node, two.node);

    // Nor where nobody asks the scheduler: the node refuses it, in upstream's words.
    apply(&scenario, &[exposed("third", Some(&one.node))]);
    eventually("the third is refused", REPAIR, || {
        let status = scenario.get("pod third")["status"].clone();
        let said = [&status["phase"], &status["reason"], &status["message"]];
        match said
            == [
                "Failed",
                "NodePorts",
                "Pod was rejected: Predicate NodePorts failed",
            ] {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });

    let worker = scenario.node(&one.node).unwrap().clone();
    let other = scenario.node(&two.node).unwrap().clone();
    let address = worker.address.to_string();
    let answers = |from: &Node, address: &str| {
        eventually("the host port answers", REPAIR, || {
            let answer = fetch(from, address, HOST_PORT)?;
            answer.contains("\"one\"").then_some(()).ok_or(answer)
        });
    };
    answers(&worker, "127.0.0.1");
    answers(&worker, &address);
    answers(&other, &address);
    // Not in the cgroup of any node: no socket of it is translated.
    let server = scenario.nodes[0].clone();
    let outside = || {
        let url = format!("http://{address}:{HOST_PORT}/");
        let ask = || minreq::get(url).with_timeout(10).send();
        let asked = server.inside(ask).map_err(|error| error.to_string())?;
        let asked = asked.map_err(|error| error.to_string())?;
        let text = asked.as_str().map_err(|error| error.to_string())?;
        match text.contains("\"one\"") {
            true => Ok(()),
            false => Err(text.to_owned()),
        }
    };
    eventually("a client outside is answered", REPAIR, outside);

    datagrams_come(&scenario, &one, &server, &worker);

    let listed = scenario.kernelet(&one.node, "service list");
    let listed = listed["services"].as_array().unwrap().iter();
    let mut own = listed.filter(|it| it["name"] == "pod/one" && it["kind"] == "HostPort");
    assert!(own.next().is_some());
    let line = format!("trace {address}:{HOST_PORT} --from one");
    let traced = scenario.kernelet(&one.node, &line)["traces"][0].clone();
    assert_eq!(
        traced["choices"][0]["backend"]["pod"], "default/one",
        "{traced}"
    );

    // A new agent takes it over without a gap.
    let signal = rustix::process::Signal::KILL;
    scenario.kill(&one.node, Program::Agent, signal).unwrap();
    outside().unwrap();
    scenario.restart(&one.node, Program::Agent).unwrap();
    eventually("the agent knows its pods", REPAIR, || {
        outside()?;
        let node = scenario
            .node(&one.node)
            .map_err(|error| error.to_string())?;
        let mut show = kernelet_tests::Cluster::kernelet(&scenario, node);
        show.args(["service", "show", "pod/one", "-o", "json"]);
        let shown = output(&mut show).map_err(|error| error.to_string())?;
        let shown: Value = serde_json::from_str(&shown).map_err(|error| error.to_string())?;
        let notes = shown["notes"].as_array().is_none_or(Vec::is_empty);
        let ports = shown["ports"].as_array().map_or(0, Vec::len);
        match (notes, ports) {
            (true, 2..) => Ok(()),
            _ => Err(shown.to_string()),
        }
    });
    outside().unwrap();

    scenario.kubectl("delete pod one");
    eventually("it goes with its pod", REPAIR, || match outside() {
        Err(error) if error.contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
