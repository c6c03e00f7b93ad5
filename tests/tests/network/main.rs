//! A cluster of both families on two links: what goes directly, what goes by the tunnel, and services over IPv6.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use frontend_backend::{Calls, Identity};
use kernelet_tests::command::output;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Families, Program, Spec, host};
use rustix::process::Signal;
use serde_json::Value;

/// How long pods may take to become Ready.
const START: Duration = Duration::from_secs(90);
/// How long something else may take before the scenario calls it broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod as the API tells of it.
struct Pod {
    name: String,
    node: String,
    addresses: Vec<IpAddr>,
    /// The pin of its network namespace.
    netns: PathBuf,
}

fn pod(scenario: &Scenario, name: &str) -> Pod {
    let pod = scenario.get(&format!("pod {name}"));
    let node = pod["spec"]["nodeName"].as_str().unwrap();
    let run = scenario.node(node).unwrap().agent_run_directory();
    let addresses = texts(&pod["status"]["podIPs"], "ip");
    assert_eq!(pod["status"]["podIP"], addresses[0].as_str());
    let hosts = texts(&pod["status"]["hostIPs"], "ip");
    assert_eq!(hosts.len(), addresses.len());
    Pod {
        name: name.to_owned(),
        node: node.to_owned(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        netns: run
            .join("netns")
            .join(pod["metadata"]["uid"].as_str().unwrap()),
    }
}

/// Waits until every pod is Ready.
fn await_pods(scenario: &Scenario) {
    eventually("all pods are Ready", START, || {
        let pods = scenario.list("pods");
        let ready = pods
            .iter()
            .filter(|pod| condition(pod, "Ready")["status"] == "True");
        match ready.count() == pods.len() {
            true => Ok(()),
            false => Err(scenario.kubectl("get pods,events -o wide")),
        }
    });
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|it| it["type"] == kind);
    found.cloned().unwrap_or_default()
}

/// One field of each item of a list.
fn texts(list: &Value, field: &str) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items
        .map(|item| item[field].as_str().unwrap().to_owned())
        .collect()
}

/// The body of what answers at an address that is asked from a namespace.
fn get(from: &Pod, address: IpAddr, port: u16, path: &str) -> std::io::Result<String> {
    let ask = || {
        let to = SocketAddr::new(address, port);
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        Ok(body.to_owned())
    };
    host::in_netns(&from.netns, ask).unwrap()
}

/// Has a client call its service so often; which pods answered.
fn call(client: &Pod, count: usize) -> Calls {
    let body = get(
        client,
        [127, 0, 0, 1].into(),
        3000,
        &format!("/calls?count={count}"),
    );
    serde_json::from_str(&body.unwrap()).unwrap()
}

/// How a node's pods are reached from another, by range.
fn paths(scenario: &Scenario, from: &str, to: &str) -> Result<Vec<String>, String> {
    let status = scenario.try_kernelet(from, "status")?;
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let of_peer = peers.iter().filter(|peer| peer["node"] == to);
    Ok(of_peer
        .map(|peer| peer["path"].as_str().unwrap().to_owned())
        .collect())
}

/// The index of the tunnel's link on a node.
fn tunnel(scenario: &Scenario, node: &str) -> Option<String> {
    let node = scenario.node(node).unwrap();
    let output = node
        .command("ip")
        .args(["-o", "link", "show", "kn-vxlan"])
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    Some(text.split_once(':')?.0.to_owned())
}

#[test]
fn pods_of_both_families_talk_on_one_link_and_across_a_router() {
    let Some(mut scenario) = Scenario::begin(Spec {
        families: Families::Dual,
        far: 1,
        ..Spec::scenario("knd", 144, 3)
    }) else {
        return;
    };
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/network/manifest.yaml");
    scenario.kubectl(&format!("apply -f {manifest}"));
    await_pods(&scenario);

    for node in scenario.list("nodes") {
        let ranges = node["spec"]["podCIDRs"].as_array().unwrap().len();
        let addresses = node["status"]["addresses"].as_array().unwrap();
        let internal = addresses.iter().filter(|it| it["type"] == "InternalIP");
        assert_eq!((ranges, internal.count()), (2, 2), "{node}");
    }
    eventually(
        "each node says that it reaches the others' pods",
        PATIENCE,
        || {
            let nodes = scenario.list("nodes");
            let said = nodes
                .iter()
                .map(|node| condition(node, "NetworkUnavailable"));
            let cut_off: Vec<Value> = said.filter(|it| it["status"] != "False").collect();
            match cut_off.is_empty() {
                true => Ok(()),
                false => Err(format!("{cut_off:?}")),
            }
        },
    );
    for (from, to, path) in [
        ("worker-1", "worker-2", "direct"),
        ("worker-2", "worker-1", "direct"),
        ("worker-1", "worker-3", "vxlan"),
        ("worker-3", "worker-2", "vxlan"),
    ] {
        let known = paths(&scenario, from, to).unwrap();
        assert_eq!(known, [path, path], "{from} to {to}");
    }

    let names = [
        "server-1",
        "server-2",
        "server-3",
        "client-six",
        "client-both",
    ];
    let [one, two, three, six, both] = names.map(|name| pod(&scenario, name));
    assert!(one.addresses[0].is_ipv4() && one.addresses[1].is_ipv6());
    let all_reach_all = || {
        for from in [&one, &two, &three, &six, &both] {
            for to in [&one, &two, &three] {
                for address in &to.addresses {
                    let what = format!("{} asks {} at {address}", from.name, to.name);
                    let body = get(from, *address, 8080, "/").expect(&what);
                    let answer: Identity = serde_json::from_str(&body).expect(&what);
                    assert_eq!(answer.pod, to.name, "{what}");
                }
            }
        }
    };
    all_reach_all();

    // By the service's name, of which one has an address of IPv6 only: to all backends, near and far.
    for client in [&six, &both] {
        let calls = call(client, 120);
        let answered: BTreeSet<&str> = calls.answers.iter().map(|it| &*it.backend.pod).collect();
        assert_eq!(
            calls.failures, 0,
            "{}: {:?}",
            client.name, calls.first_failure
        );
        assert_eq!(
            answered,
            ["server-1", "server-2", "server-3"].into(),
            "{}",
            client.name
        );
    }
    let slices = scenario.list("endpointslices -l kubernetes.io/service-name=six");
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["addressType"], "IPv6");

    // Answers of many packets' length, from beyond the router.
    for address in &both.addresses {
        let body = get(&one, *address, 3000, "/calls?count=3000").unwrap();
        let calls: Calls = serde_json::from_str(&body).unwrap();
        assert_eq!(calls.times_us.len(), 3000, "{:?}", calls.first_failure);
    }

    the_world_sees_the_nodes(&scenario, &[&one, &three]);
    other_pods_see_the_pod(&one, &[&two, &three]);
    policies_tell_addresses_of_both_families_apart(&scenario, [&one, &two, &three]);
    all_reach_all();
    the_api_servers_machine_reaches_pods(&scenario, &one);
    refused_ranges_are_told(&scenario);

    // A new agent adopts the tunnel as it is, and pods keep both addresses.
    let before = tunnel(&scenario, "worker-3");
    assert!(before.is_some());
    scenario
        .kill("worker-3", Program::Agent, Signal::KILL)
        .unwrap();
    all_reach_all();
    scenario.restart("worker-3", Program::Agent).unwrap();
    eventually("the agent knows its peers", PATIENCE, || {
        match paths(&scenario, "worker-3", "worker-1")? {
            known if known.len() == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(tunnel(&scenario, "worker-3"), before);
    assert_eq!(pod(&scenario, "server-3").addresses, three.addresses);
    all_reach_all();

    // A node that goes is unrouted, and with the last one beyond the router the tunnel.
    scenario
        .kill("worker-3", Program::Agent, Signal::TERM)
        .unwrap();
    scenario.kubectl("delete node worker-3");
    for node in ["worker-1", "worker-2"] {
        eventually("the node is unrouted", PATIENCE, || {
            let routed = paths(&scenario, node, "worker-3")?;
            match (routed.is_empty(), tunnel(&scenario, node)) {
                (true, None) => Ok(()),
                (_, link) => Err(format!("{routed:?} {link:?}")),
            }
        });
    }
    let error = get(&one, three.addresses[1], 8080, "/");
    assert!(
        error.is_err(),
        "nothing leads to the pods of a node that is gone"
    );
    assert_eq!(
        get(&one, two.addresses[1], 8080, "/healthz").unwrap(),
        "ok\n"
    );
}

/// A server outside sees pods' nodes, by TCP and by datagrams, and its answers come back.
fn the_world_sees_the_nodes(scenario: &Scenario, pods: &[&Pod]) {
    let machine = &scenario.nodes[0];
    let families: [IpAddr; 2] = [machine.address.into(), machine.address_v6.unwrap().into()];
    for pod in pods {
        let node = scenario.node(&pod.node).unwrap();
        let own: [IpAddr; 2] = [node.address.into(), node.address_v6.unwrap().into()];
        for (server, own) in families.into_iter().zip(own) {
            let seen = machine.inside(|| TcpListener::bind((server, 0)).unwrap());
            assert_eq!(seen_by(&seen.unwrap(), pod), own, "{}", pod.name);
            let socket = machine.inside(|| UdpSocket::bind((server, 0)).unwrap());
            let socket = socket.unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let to = socket.local_addr().unwrap();
            let client = host::in_netns(&pod.netns, || {
                let client = UdpSocket::bind((pod.addresses[usize::from(to.is_ipv6())], 0))?;
                client.set_read_timeout(Some(PATIENCE))?;
                client.send_to(b"?", to)?;
                std::io::Result::Ok(client)
            });
            let client = client.unwrap().unwrap();
            let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(from.ip(), own, "a datagram of {}", pod.name);
            socket.send_to(b"!", from).unwrap();
            assert_eq!(client.recv_from(&mut [0; 8]).unwrap(), (1, to));
        }
    }
}

/// Between pods nothing is masqueraded.
fn other_pods_see_the_pod(pod: &Pod, others: &[&Pod]) {
    for other in others {
        for (address, own) in other.addresses.iter().zip(&pod.addresses) {
            let listener = host::in_netns(&other.netns, || TcpListener::bind((*address, 0)));
            assert_eq!(
                seen_by(&listener.unwrap().unwrap(), pod),
                *own,
                "{}",
                other.name
            );
        }
    }
}

/// The address with which a pod connects there.
fn seen_by(listener: &TcpListener, pod: &Pod) -> IpAddr {
    let to = listener.local_addr().unwrap();
    let dial = || TcpStream::connect_timeout(&to, PATIENCE);
    let stream = host::in_netns(&pod.netns, dial).unwrap();
    let _stream = stream.unwrap_or_else(|error| panic!("{} dials {to}: {error}", pod.name));
    listener.accept().unwrap().1.ip()
}

/// Servers take from one of them over IPv6 alone.
fn policies_tell_addresses_of_both_families_apart(
    scenario: &Scenario,
    [one, two, three]: [&Pod; 3],
) {
    let policy = format!(
        r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {{"name": "six"}},
            "spec": {{"podSelector": {{"matchLabels": {{"app": "server"}}}}, "ingress": [{{"from": [
                {{"ipBlock": {{"cidr": "{}/128"}}}}]}}]}}}}"#,
        one.addresses[1]
    );
    let path = scenario.spec.directory.join("six.json");
    host::write(&path, policy).unwrap();
    scenario.kubectl(&format!("create -f {}", path.display()));
    let reaches = |from: &Pod, to: &Pod, family: usize| {
        let to = SocketAddr::new(to.addresses[family], 8080);
        let dial = || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
        host::in_netns(&from.netns, dial).unwrap()
    };
    let asked = [(one, two), (one, three), (three, two), (two, three)];
    eventually("who is not named is refused", PATIENCE, || {
        let heard = asked.map(|(from, to)| [0, 1].map(|family| reaches(from, to, family)));
        match heard {
            [[false, true], [false, true], [false, false], [false, false]] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    scenario.kubectl("delete netpol six");
    eventually("all are heard again", PATIENCE, || {
        let heard = asked.map(|(from, to)| [0, 1].map(|family| reaches(from, to, family)));
        match heard == [[true; 2]; 4] {
            true => Ok(()),
            false => Err(format!("{heard:?}")),
        }
    });
}

/// A machine that is no node, but has a route, dials a pod at the pod's own addresses, which answer it themselves.
fn the_api_servers_machine_reaches_pods(scenario: &Scenario, pod: &Pod) {
    let machine = &scenario.nodes[0];
    let worker = scenario.node("worker-1").unwrap();
    let routers = [worker.address.into(), worker.address_v6.unwrap().into()];
    for (address, router) in pod.addresses.iter().zip::<[IpAddr; 2]>(routers) {
        let (address, router) = (address.to_string(), router.to_string());
        let mut route = machine.command("ip");
        output(route.args(["route", "add", &address, "via", &router])).unwrap();
    }
    for address in &pod.addresses {
        let to = SocketAddr::new(*address, 8080);
        let connected = machine.inside(|| TcpStream::connect_timeout(&to, PATIENCE));
        let connected = connected.unwrap();
        assert!(connected.is_ok(), "{to}: {connected:?}");
    }
}

/// A node whose range is part of the machines' link gets no route, and is no reason for others to get none.
fn refused_ranges_are_told(scenario: &Scenario) {
    let subnet = scenario.spec.subnet;
    let node = format!(
        r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "odd"}},
            "spec": {{"podCIDRs": ["172.30.{subnet}.128/25"]}}}}"#
    );
    let path = scenario.spec.directory.join("odd.json");
    host::write(&path, node).unwrap();
    scenario.kubectl(&format!("create -f {}", path.display()));
    eventually("the refusal is seen", PATIENCE, || {
        match paths(scenario, "worker-1", "odd")? {
            told if told == ["none"] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(
        paths(scenario, "worker-1", "worker-2").unwrap(),
        ["direct", "direct"]
    );
    eventually("the refusal is told", PATIENCE, || {
        let selector = "involvedObject.kind=Node,involvedObject.name=worker-1,reason=NoRouteToPods";
        let events = scenario.kubectl(&format!("get events --field-selector {selector}"));
        match events.contains("overlaps") {
            true => Ok(()),
            false => Err(events),
        }
    });
    scenario.kubectl("delete node odd");
}

#[test]
fn a_node_whose_range_or_mtu_cannot_be_says_so_and_joins_anew() {
    let Some(mut scenario) = Scenario::begin(Spec {
        images: Vec::new(),
        ..Spec::scenario("kno", 146, 1)
    }) else {
        return;
    };
    scenario
        .kill("worker-1", Program::Agent, Signal::TERM)
        .unwrap();
    scenario.kubectl("delete node worker-1");
    let output = |line: &str| {
        let mut command = scenario.node("worker-1").unwrap().command("ip");
        assert!(
            command.args(line.split(' ')).status().unwrap().success(),
            "{line}"
        );
    };
    // What the agent before has set up is gone, as after a reboot.
    output("route flush proto 75");
    let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"},
        "spec": {"podCIDRs": ["172.30.146.0/24"]}}"#;
    let path = scenario.spec.directory.join("worker-1.json");
    host::write(&path, node).unwrap();
    scenario.kubectl(&format!("create -f {}", path.display()));
    scenario.restart("worker-1", Program::Agent).unwrap();
    // While it is not registered it is in no list.
    let ready = |scenario: &Scenario| {
        let nodes = scenario.list("nodes");
        nodes
            .first()
            .map(|node| condition(node, "Ready"))
            .unwrap_or_default()
    };
    let why = "the node's pod range 172.30.146.0/24 overlaps 172.30.146.0/24, the network of its own link eth0";
    let says = |scenario: &Scenario, why: &str| {
        eventually("the node says why it is not Ready", PATIENCE, || {
            let ready = ready(scenario);
            let said = ready["message"].as_str().unwrap_or_default();
            said.contains(why).then_some(()).ok_or(ready.to_string())
        });
    };
    says(&scenario, why);
    let events = scenario
        .kubectl("get events --field-selector involvedObject.kind=Node,reason=PodNetworkRefused");
    assert!(events.contains(why), "{events}");
    // It gets another range when it joins anew, and needs no restart for it.
    scenario.kubectl("delete node worker-1");
    eventually("the node is Ready", PATIENCE, || match ready(&scenario) {
        it if it["status"] == "True" => Ok(()),
        other => Err(other.to_string()),
    });

    // Packets that its link does not take are told in the same way.
    scenario
        .kill("worker-1", Program::Agent, Signal::TERM)
        .unwrap();
    scenario.spec.agent_args.push("--pod-mtu=9000".to_owned());
    scenario.restart("worker-1", Program::Agent).unwrap();
    let why = "--pod-mtu 9000 is more than the 1500 of link eth0, by which pods' packets leave";
    says(&scenario, why);
}

#[test]
fn a_cluster_of_ipv6_alone_does_the_same() {
    let Some(scenario) = Scenario::begin(Spec {
        families: Families::V6,
        far: 1,
        ..Spec::scenario("kns", 145, 2)
    }) else {
        return;
    };
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/network/ipv6.yaml");
    scenario.kubectl(&format!("apply -f {manifest}"));
    await_pods(&scenario);
    assert_eq!(paths(&scenario, "worker-1", "worker-2").unwrap(), ["vxlan"]);
    let [near, far, client] = ["near", "far", "client"].map(|name| pod(&scenario, name));
    for from in [&near, &far, &client] {
        for to in [&near, &far] {
            let address = to.addresses[0];
            assert!(address.is_ipv6());
            let body = get(from, address, 8080, "/").unwrap();
            let answer: Identity = serde_json::from_str(&body).unwrap();
            assert_eq!(answer.pod, to.name);
        }
    }
    let calls = call(&client, 80);
    let answered: BTreeSet<&str> = calls.answers.iter().map(|it| &*it.backend.pod).collect();
    assert_eq!(calls.failures, 0, "{:?}", calls.first_failure);
    assert_eq!(answered, ["far", "near"].into());
    // The API server reaches the agents, and pods' names are found.
    assert_eq!(scenario.kubectl("logs far"), "");
}
