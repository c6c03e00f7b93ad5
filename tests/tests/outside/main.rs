//! Clients outside never notice what happens to agents: by node ports, load balancers' addresses, and backends' nodes that
//! answer themselves, over IPv4 and IPv6. Of a node that is cut off they notice what only that node could answer.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod datagrams;
mod pods;
mod services;
mod traffic;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Child;
use std::time::Duration;

use datagrams::Datagrams;
use kernelet_tests::command::{output, run};
use kernelet_tests::links::Links;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Cluster, Families, Program, Spec, host};
use rustix::process::Signal;
use serde_json::{Value, json};
use traffic::Traffic;

const PREFIX: &str = "kou";
const SUBNET: u8 = 161;
/// The client's number on the link.
const CLIENT: u8 = 100;
const NODE_PORT: u16 = 30_080;
/// The same, of the service whose backends' nodes answer themselves.
const DIRECT_PORT: u16 = 30_081;
/// The same, of the service that keeps its clients' addresses, of TCP and of datagrams.
const LOCAL_PORT: u16 = 30_082;
/// An address that the cluster is told to answer for.
const EXTERNAL: u8 = 220;
/// The node that is cut off. It is beyond a router, so others reach its pods through the tunnel.
const CUT: &str = "worker-3";
/// How long something may take before the scenario calls it broken.
const PATIENCE: Duration = Duration::from_secs(90);
/// New connections of a phase, at each target.
const SOME: u64 = 40;

fn backend(node: &str) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("backend-{node}"), "labels": {"app": "backend"}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "backend", "image": "backend:v0.0.1",
                "env": [
                    {"name": "POD_NAME", "valueFrom": field("metadata.name")},
                    {"name": "NODE_NAME", "valueFrom": field("spec.nodeName")},
                ],
            }],
        },
    })
}

fn service(name: &str, kind: &str, says: Value, node_port: Option<u16>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "annotations": says},
        "spec": {
            "type": kind, "selector": {"app": "backend"}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": node_port}],
        },
    })
}

fn objects(scenario: &Scenario) -> Value {
    let pools = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kernelet-load-balancer", "namespace": "kube-system"},
        "data": {"lan": format!("172.30.{SUBNET}.200-172.30.{SUBNET}.209, fd72:30:{SUBNET:x}::200-fd72:30:{SUBNET:x}::209")},
    });
    let direct = json!({"kernelet.io/forwarding": "dsr"});
    let local = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "local"},
        "spec": {
            "type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": "backend"},
            "externalIPs": [format!("172.30.{SUBNET}.{EXTERNAL}")],
            "ports": [
                {"name": "tcp", "port": 82, "targetPort": 9090, "nodePort": LOCAL_PORT},
                {"name": "udp", "port": 82, "targetPort": 9091, "nodePort": LOCAL_PORT, "protocol": "UDP"},
            ],
        },
    });
    let mut items = vec![
        pools,
        local,
        service("at-nodes", "NodePort", json!({}), Some(NODE_PORT)),
        service("balanced", "LoadBalancer", json!({}), None),
        service("direct", "LoadBalancer", direct, Some(DIRECT_PORT)),
    ];
    items.extend([1, 2, 3].map(|number| backend(&format!("worker-{number}"))));
    items.extend(services::objects(scenario));
    items.extend(pods::objects());
    items.extend(datagrams::objects());
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A load balancer's addresses, one of each family.
fn addresses(scenario: &Scenario, name: &str) -> Vec<IpAddr> {
    eventually("the service has its addresses", PATIENCE, || {
        let service = scenario.get(&format!("service {name}"));
        let given = service["status"]["loadBalancer"]["ingress"]
            .as_array()
            .cloned();
        let given: Vec<IpAddr> = given
            .unwrap_or_default()
            .iter()
            .filter_map(|it| it["ip"].as_str()?.parse().ok())
            .collect();
        (given.len() == 2)
            .then_some(given)
            .ok_or(service.to_string())
    })
}

/// Who announces a service's addresses, as every agent that is asked sees it; none while they do not agree.
fn announcers(scenario: &Scenario, name: &str, asked: &[&str]) -> Result<Vec<String>, String> {
    let mut seen = BTreeSet::new();
    for node in asked {
        let node = scenario.node(node).unwrap();
        let mut show = Cluster::kernelet(scenario, node);
        // One that has just started does not know yet.
        let shown = output(show.args(["service", "show", name, "-o", "json"]));
        let shown = shown.map_err(|error| error.to_string())?;
        let shown: Value = serde_json::from_str(&shown).map_err(|error| error.to_string())?;
        let all = shown["announcements"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let nodes = all
            .iter()
            .map(|it| it["node"].as_str().unwrap_or_default().to_owned());
        seen.insert(nodes.collect::<Vec<String>>());
    }
    let agreed = seen.len() == 1;
    let complete = |it: &Vec<String>| it.len() == 2 && !it.contains(&String::new());
    let found = seen.first().filter(|it| agreed && complete(it)).cloned();
    found.ok_or(format!("{seen:?}"))
}

/// The same for all load balancers whose backends are anywhere.
fn all_announcers(scenario: &Scenario, asked: &[&str]) -> Result<Vec<String>, String> {
    let mut all = announcers(scenario, "balanced", asked)?;
    all.extend(announcers(scenario, "direct", asked)?);
    all.extend(announcers(scenario, "sticky", asked)?);
    Ok(all)
}

/// At the node that clients dial, what is handed on to another on its link has no row that answers could come back by; at the backend's node they
/// are a client's.
fn far_backends_see_their_client(scenario: &Scenario, ingress: &str) {
    let client = format!("172.30.{SUBNET}.{CLIENT}:");
    let direct = |node: &str| {
        let rows = scenario.kernelet(node, "map dump CONNECTIONS");
        let rows = rows.as_array().cloned().unwrap_or_default();
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let rows = rows
            .iter()
            .map(|row| (text(row, "key"), text(row, "value")));
        rows.filter(|(key, _)| key.starts_with(&format!("in TCP {client}")))
            .collect::<Vec<_>>()
    };
    let handed = direct(ingress);
    let is_handed = |row: &&(String, String)| row.1.contains("whose node answers");
    for port in [80, DIRECT_PORT] {
        let to = format!(":{port}");
        let mut rows = handed.iter().filter(is_handed);
        assert!(
            rows.any(|(key, _)| key.ends_with(&to)),
            "{port}: {handed:?}"
        );
    }
    let to = format!("{}:{DIRECT_PORT}", scenario.node(ingress).unwrap().address);
    for node in ["worker-1", "worker-2", CUT] {
        let seen = direct(node);
        let is_seen = seen.iter().any(|(key, _)| key.ends_with(&to));
        // Through the tunnel nothing is handed on as it is.
        assert_eq!(is_seen, node != CUT, "{node}: {seen:?}");
    }
}

/// Whoever watches flows at the node that clients dial sees them come, with their addresses, and go.
fn flows_are_seen(scenario: &Scenario, ingress: &str) {
    let file = scenario.spec.directory.join("flows.json");
    let mut watch = Cluster::kernelet(scenario, scenario.node(ingress).unwrap());
    let watch = watch
        .args(["flow", "watch", "-o", "json"])
        .stdout(File::create(&file).unwrap())
        .spawn();
    let _watch = Watch(watch.unwrap());
    let clients = [
        format!("172.30.{SUBNET}.{CLIENT}:"),
        format!("[fd72:30:{SUBNET:x}::"),
    ];
    let mut wanted = BTreeSet::new();
    for client in &clients {
        for service in ["default/at-nodes", "default/balanced", "default/direct"] {
            for verdict in ["opened", "closed"] {
                wanted.insert((client.as_str(), service, verdict));
            }
        }
    }
    eventually("every kind of flow is seen", PATIENCE, || {
        let text = std::fs::read_to_string(&file).unwrap();
        // The last line may be half written.
        let flows = text.lines().filter_map(|it| serde_json::from_str(it).ok());
        for flow in flows.collect::<Vec<Value>>() {
            wanted.retain(|(client, service, verdict)| {
                let carried = |field: &str| flow[field].as_u64() > Some(0);
                let is_it = flow["verdict"] == *verdict
                    && flow["service"] == *service
                    && flow["client"]
                        .as_str()
                        .is_some_and(|it| it.starts_with(client))
                    && flow["backend_pod"]
                        .as_str()
                        .is_some_and(|it| it.starts_with("default/backend-"))
                    && (*verdict == "opened" || carried("bytes_sent"));
                !is_it
            });
        }
        wanted.is_empty().then_some(()).ok_or(format!("{wanted:?}"))
    });
}

/// It ends with the value.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The backend at the node that clients dial, listening for itself where the service [`LOCAL_PORT`] leads, and its client.
struct Local {
    datagrams: UdpSocket,
    client: UdpSocket,
}

impl Local {
    fn begin(scenario: &Scenario, ingress: &str, netns: &str) -> Local {
        let node = scenario.node(ingress).unwrap();
        let pod = scenario.get(&format!("pod backend-{ingress}"));
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let bind = || {
            (
                TcpListener::bind("0.0.0.0:9090").unwrap(),
                UdpSocket::bind("0.0.0.0:9091").unwrap(),
            )
        };
        let (listener, datagrams) = node.inside_pod(uid, bind).unwrap();
        run(&format!(
            "ip -n {netns} route add 172.30.{SUBNET}.{EXTERNAL} via {}",
            node.address
        ))
        .unwrap();
        let netns = host::netns_path(netns);
        for to in [
            (node.address, LOCAL_PORT),
            ([172, 30, SUBNET, EXTERNAL].into(), 82),
        ] {
            let to = SocketAddr::from(to);
            let dial = || TcpStream::connect_timeout(&to, PATIENCE);
            let stream = host::in_netns(&netns, dial).unwrap();
            let stream = stream.unwrap_or_else(|error| panic!("{to}: {error}"));
            let seen = listener.accept().unwrap().1;
            assert_eq!(
                seen,
                stream.local_addr().unwrap(),
                "whom the backend sees by {to}"
            );
        }
        let connect = || {
            let client = UdpSocket::bind("0.0.0.0:0")?;
            client.connect((node.address, LOCAL_PORT))?;
            std::io::Result::Ok(client)
        };
        let client = host::in_netns(&netns, connect).unwrap().unwrap();
        for socket in [&datagrams, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Local { datagrams, client }
    }

    /// A datagram there and one back; the backend sees who asks.
    fn goes_on(&self, phase: &str) {
        self.client.send(b"?").unwrap();
        let (_, from) = self.datagrams.recv_from(&mut [0; 8]).expect(phase);
        assert_eq!(from, self.client.local_addr().unwrap(), "{phase}");
        self.datagrams.send_to(b"!", from).unwrap();
        assert_eq!(self.client.recv(&mut [0; 8]).expect(phase), 1);
    }
}

#[test]
fn clients_outside_do_not_notice_what_happens_to_agents() {
    let Some(mut scenario) = Scenario::begin(Spec {
        families: Families::Dual,
        far: 1,
        agent_args: vec![pods::exempt()],
        ..Spec::scenario(PREFIX, SUBNET, 3)
    }) else {
        return;
    };
    let file = scenario.spec.directory.join("objects.json");
    host::write(&file, objects(&scenario).to_string()).unwrap();
    scenario.kubectl(&format!("apply -f {}", file.display()));
    let links = Links {
        prefix: PREFIX,
        subnet: SUBNET,
        with_v6: true,
    };
    let client = format!("{PREFIX}-client");
    links.attach(&client, "cl", false, false, CLIENT).unwrap();
    // It announces nothing, so that what it is cut off from is its own backend only.
    scenario.kubectl(&format!(
        "label node {CUT} node.kubernetes.io/exclude-from-external-load-balancers=true"
    ));
    scenario.kubectl("wait --for=condition=Ready pod --all --timeout=90s");

    let names = ["worker-1", "worker-2", "worker-3"];
    let all: BTreeSet<String> = names.map(str::to_owned).into();
    let balanced = addresses(&scenario, "balanced");
    let direct = addresses(&scenario, "direct");
    // Whoever is ready first announces until the one that comes first in their order is.
    let first = eventually("announcers for good", PATIENCE, || {
        let early = all_announcers(&scenario, &names)?;
        std::thread::sleep(Duration::from_secs(5));
        let late = all_announcers(&scenario, &names)?;
        let settled = early == late && !late.iter().any(|node| node == CUT);
        settled.then_some(late).ok_or(format!("{early:?}"))
    });
    let ingress = first[0].clone();
    services::clients_keep_their_backend(&scenario, &client, &ingress);
    services::backends_that_end_serve_where_no_other_does(&scenario, &client);
    services::host_ports_answer_where_they_are_asked_for(&scenario, &client);
    pods::node_ports_beyond_the_router_answer_pods(&scenario);
    pods::what_passes_is_counted(&scenario);
    pods::source_ranges_are_for_pods_too(&scenario);
    pods::exempt_servers_see_pods_and_others_their_nodes(&scenario, &links, &client);
    let node = scenario.node(&ingress).unwrap();
    let mut targets = Vec::new();
    for address in [
        IpAddr::V4(node.address),
        IpAddr::V6(node.address_v6.unwrap()),
    ] {
        targets.extend([NODE_PORT, DIRECT_PORT].map(|port| SocketAddr::new(address, port)));
    }
    targets.extend(
        balanced
            .iter()
            .chain(&direct)
            .map(|address| SocketAddr::new(*address, 80)),
    );
    let traffic = Traffic::begin(&client, &targets, &all);
    traffic.enter("at rest");
    traffic.goes_on("everything is answered", SOME);
    far_backends_see_their_client(&scenario, &ingress);
    flows_are_seen(&scenario, &ingress);
    let local = Local::begin(&scenario, &ingress, &client);
    local.goes_on("at rest");
    let datagrams = Datagrams::begin(&scenario, &client, &ingress);
    datagrams.goes_on("at rest", SOME);

    let back = |scenario: &Scenario| {
        eventually("it announces again", PATIENCE, || {
            let now = all_announcers(scenario, &names)?;
            now.contains(&ingress)
                .then_some(())
                .ok_or(format!("{now:?}"))
        });
    };
    traffic.enter("the agent is killed");
    scenario
        .kill(&ingress, Program::Agent, Signal::KILL)
        .unwrap();
    traffic.goes_on("without the agent", SOME);
    local.goes_on("without the agent");
    datagrams.goes_on("without the agent", SOME);
    let others: Vec<&str> = names.into_iter().filter(|it| *it != ingress).collect();
    eventually("others announce", PATIENCE, || {
        let now = all_announcers(&scenario, &others)?;
        (!now.contains(&ingress))
            .then_some(())
            .ok_or(format!("{now:?}"))
    });
    traffic.enter("another node announces");
    traffic.goes_on("by another node", SOME);
    traffic.enter("the agent is back");
    scenario.restart(&ingress, Program::Agent).unwrap();
    back(&scenario);
    traffic.goes_on("with the agent", SOME);
    local.goes_on("with the agent");
    datagrams.goes_on("with the agent", SOME);

    traffic.enter("an upgrade");
    scenario
        .kill(&ingress, Program::Agent, Signal::TERM)
        .unwrap();
    // Maps of another size take the place of those that serve.
    let larger = "--max-connections=16384".to_owned();
    scenario.spec.agent_args.push(larger);
    scenario.restart(&ingress, Program::Agent).unwrap();
    back(&scenario);
    traffic.goes_on("after the upgrade", SOME);
    local.goes_on("after the upgrade");
    datagrams.goes_on("after the upgrade", SOME);
    datagrams.end();
    let refused: Vec<String> = traffic.refused().iter().map(ToString::to_string).collect();
    assert!(refused.is_empty(), "{refused:?}");

    let cable = format!("{PREFIX}-w3");
    traffic.enter("a node is cut off");
    run(&format!("ip link set {cable} down")).unwrap();
    // Some of them are to that node, and wait.
    traffic.begins(10 * SOME);
    traffic.enter("the node is back");
    run(&format!("ip link set {cable} up")).unwrap();
    traffic.goes_on("with all nodes", SOME);
    for refused in traffic.refused() {
        assert_eq!(traffic.node_of(&refused), CUT, "{refused}");
    }
    traffic.nothing_was_lost();
}
