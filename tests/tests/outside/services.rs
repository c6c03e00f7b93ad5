//! What Services and pods promise to clients outside: session affinity, backends that end, host ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use kernelet_tests::command::run;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Node, host};
use serde_json::{Value, json};

use super::traffic::{any, ask, dial_from};
use super::{PATIENCE, SUBNET, addresses, backend};

/// The node port of the service that knows its clients again.
const STICKY_PORT: u16 = 30_083;
/// Node ports of backends that end, of either `externalTrafficPolicy`.
const LEAVING_PORT: u16 = 30_084;
const LEAVING_LOCAL_PORT: u16 = 30_085;
const LEAVING_HEALTH: u16 = 31_998;
/// The host port at every address, and the one at [`narrow`] addresses only; both of TCP and of datagrams.
const WIDE: u16 = 8090;
const NARROW: u16 = 8091;
/// The last byte of the first of a client's further addresses.
const CLIENTS: u8 = 101;
/// So many of each family.
const COUNT: u8 = 12;
/// Long enough that the scenario ends first.
const GRACE: u64 = 300;

/// Addresses of worker-1 that the Node object does not name.
fn narrow() -> [IpAddr; 2] {
    both(50)
}

/// A machine's addresses on the near link.
pub fn both(host: u8) -> [IpAddr; 2] {
    let (subnet, last) = (u16::from(SUBNET), u16::from(host));
    [
        Ipv4Addr::new(172, 30, SUBNET, host).into(),
        Ipv6Addr::new(0xfd72, 0x30, subnet, 0, 0, 0, 0, last).into(),
    ]
}

/// Gives a machine more addresses, which it uses only when it is told to.
fn give_addresses(netns: &str, host: u8) {
    let [v4, v6] = both(host);
    run(&format!("ip -n {netns} address add {v4}/24 dev eth0")).unwrap();
    let unasked = "nodad preferred_lft 0";
    run(&format!(
        "ip -n {netns} address add {v6}/64 dev eth0 {unasked}"
    ))
    .unwrap();
}

/// To be made before the addresses of [`narrow`] are anybody's.
pub fn objects(scenario: &Scenario) -> Vec<Value> {
    give_addresses(&scenario.node("worker-1").unwrap().netns, 50);
    let service = |name: &str, kind: &str, more: Value| {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": kind, "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "leaving"}},
        });
        let spec = service["spec"].as_object_mut().unwrap();
        spec.extend(more.as_object().unwrap().clone());
        service
    };
    let ports = |node_port: u16| json!([{"port": 80, "targetPort": 8080, "nodePort": node_port}]);
    let [narrow_v4, narrow_v6] = narrow();
    let mut ported = backend("worker-1");
    ported["metadata"] = json!({"name": "ported"});
    ported["spec"]["containers"][0]["ports"] = json!([
        {"containerPort": 8080, "hostPort": WIDE},
        {"containerPort": 9091, "hostPort": WIDE, "protocol": "UDP"},
        {"containerPort": 8080, "hostPort": NARROW, "hostIP": narrow_v4},
        {"containerPort": 8080, "hostPort": NARROW, "hostIP": narrow_v6},
        {"containerPort": 9091, "hostPort": NARROW, "hostIP": narrow_v4, "protocol": "UDP"},
        {"containerPort": 9091, "hostPort": NARROW, "hostIP": narrow_v6, "protocol": "UDP"},
    ]);
    let leaving = |node: &str| {
        let mut pod = backend(node);
        pod["metadata"] = json!({"name": format!("leaving-{node}"), "labels": {"app": "leaving"}});
        pod["spec"]["terminationGracePeriodSeconds"] = GRACE.into();
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"preStop": {"sleep": {"seconds": GRACE}}});
        pod
    };
    let sticky = json!({
        "selector": {"sticky": "yes"}, "sessionAffinity": "ClientIP", "ports": ports(STICKY_PORT),
    });
    let local = json!({
        "externalTrafficPolicy": "Local", "healthCheckNodePort": LEAVING_HEALTH, "ports": ports(LEAVING_LOCAL_PORT),
    });
    vec![
        service("sticky", "LoadBalancer", sticky),
        service("leaving", "NodePort", json!({"ports": ports(LEAVING_PORT)})),
        service("leaving-local", "LoadBalancer", local),
        leaving("worker-1"),
        leaving("worker-2"),
        ported,
    ]
}

/// The node of the backend that answers a client there.
fn node_of(netns: &str, from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<String> {
    let call = || ask(&mut dial_from(from.map(|ip| SocketAddr::new(ip, 0)), to)?);
    host::in_netns(&host::netns_path(netns), call).unwrap()
}

/// How many ready backends packets from outside find at a node.
fn ready_at(scenario: &Scenario, node: &str, service: &str) -> Result<usize, String> {
    let shown = scenario.try_kernelet(node, &format!("service show {service}"))?;
    let ports = shown["ports"].as_array().cloned().unwrap_or_default();
    let counts = ports.iter().map(|port| {
        let backends = port["backends"].as_array().into_iter().flatten();
        backends.filter(|it| it["state"] == "ready").count()
    });
    let counts: BTreeSet<usize> = counts.collect();
    match counts.iter().collect::<Vec<_>>()[..] {
        [count] => Ok(*count),
        _ => Err(format!("{counts:?}")),
    }
}

pub fn await_ready(scenario: &Scenario, node: &str, service: &str, wanted: usize) {
    eventually(
        &format!("{wanted} backends of {service} at {node}"),
        PATIENCE,
        || match ready_at(scenario, node, service)? {
            count if count == wanted => Ok(()),
            count => Err(format!("{count}")),
        },
    );
}

/// Any node may have the load balancer's addresses.
fn await_sticky(scenario: &Scenario, wanted: usize) {
    for node in ["worker-1", "worker-2", "worker-3"] {
        await_ready(scenario, node, "sticky", wanted);
    }
}

/// With session affinity each client keeps its backend, whatever port it dials from, while others come, and until it goes.
pub fn clients_keep_their_backend(scenario: &Scenario, client: &str, ingress: &str) {
    for number in 0..COUNT {
        give_addresses(client, CLIENTS + number);
    }
    let label = |node: &str, change: &str| {
        scenario.kubectl(&format!("label pod backend-{node} sticky{change}"));
    };
    label("worker-1", "=yes");
    label("worker-2", "=yes");
    await_sticky(scenario, 2);
    let node = scenario.node(ingress).unwrap();
    let mut targets: Vec<SocketAddr> = own(node).map(|ip| SocketAddr::new(ip, STICKY_PORT)).into();
    let balanced = addresses(scenario, "sticky");
    targets.extend(balanced.iter().map(|ip| SocketAddr::new(*ip, 80)));
    let mut kept = BTreeMap::new();
    for to in &targets {
        for from in (0..COUNT).flat_map(|number| both(CLIENTS + number)) {
            if from.is_ipv4() == to.is_ipv4() {
                let chosen = node_of(client, Some(from), *to);
                let chosen = chosen.unwrap_or_else(|error| panic!("{from} dials {to}: {error}"));
                kept.insert((from, *to), chosen);
            }
        }
    }
    let chosen: BTreeSet<&str> = kept.values().map(|it| &**it).collect();
    assert_eq!(chosen, ["worker-1", "worker-2"].into());
    let are_kept = |when: &str, kept: &BTreeMap<(IpAddr, SocketAddr), String>| {
        for ((from, to), chosen) in kept {
            for _ in 0..4 {
                let found = node_of(client, Some(*from), *to);
                let found = found.unwrap_or_else(|error| panic!("{from} dials {to}: {error}"));
                assert_eq!(found, *chosen, "{from} dials {to} {when}");
            }
        }
    };
    are_kept("again", &kept);
    label("worker-3", "=yes");
    await_sticky(scenario, 3);
    are_kept("when a backend has come", &kept);
    // Who was with it goes to another one, and stays there.
    label("worker-1", "-");
    await_sticky(scenario, 2);
    for ((from, to), chosen) in &mut kept {
        if chosen == "worker-1" {
            *chosen = node_of(client, Some(*from), *to).unwrap();
            assert_ne!(chosen, "worker-1", "{from} dials {to}");
        }
    }
    are_kept("when a backend has gone", &kept);
}

/// A node's own addresses, one of each family.
pub fn own(node: &Node) -> [IpAddr; 2] {
    [node.address.into(), node.address_v6.unwrap().into()]
}

/// Where there is no ready backend, those that end serve until they have ended; where there is one, it alone gets what is new
/// (KEP-1669).
pub fn backends_that_end_serve_where_no_other_does(scenario: &Scenario, client: &str) {
    let worker = scenario.node("worker-1").unwrap();
    let at = |port: u16| own(worker).map(|ip| SocketAddr::new(ip, port));
    let (anywhere, local) = (at(LEAVING_PORT), at(LEAVING_LOCAL_PORT));
    // Nodes that answer so many connections to both addresses; none may fail.
    let answer = |to: [SocketAddr; 2]| -> BTreeSet<String> {
        let calls = to.into_iter().flat_map(|to| [to; 16]);
        let answered = calls.map(|to| {
            node_of(client, None, to)
                .unwrap_or_else(|error| panic!("{to} does not answer: {error}"))
        });
        answered.collect()
    };
    let await_answers = |what: &str, to: [SocketAddr; 2], wanted: &[&str]| {
        let wanted: BTreeSet<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
        eventually(what, PATIENCE, || match answer(to) {
            answered if answered == wanted => Ok(()),
            answered => Err(format!("{answered:?}")),
        });
    };
    let health = || {
        let url = format!("http://{}:{LEAVING_HEALTH}/", worker.address);
        let ask = || minreq::get(&url).with_timeout(10).send();
        let asked = host::in_netns(&host::netns_path(client), ask).unwrap();
        asked.map_or(0, |answer| answer.status_code)
    };
    let await_health = |code: i32| {
        eventually("the health check", PATIENCE, || match health() {
            said if said == code => Ok(()),
            said => Err(format!("it says {said}")),
        });
    };
    await_ready(scenario, "worker-1", "leaving", 2);
    await_health(200);
    await_answers("both nodes", anywhere, &["worker-1", "worker-2"]);
    await_answers("its own", local, &["worker-1"]);
    // Connections that are open when it begins to end.
    let mut open: Vec<TcpStream> = Vec::new();
    for to in local {
        let dial = || dial_from(None, to).unwrap();
        open.push(host::in_netns(&host::netns_path(client), dial).unwrap());
    }

    scenario.kubectl("delete pod leaving-worker-1 --wait=false");
    await_answers("the ready one alone", anywhere, &["worker-2"]);
    await_health(503);
    assert_eq!(answer(local), ["worker-1".to_owned()].into());
    scenario.kubectl("delete pod leaving-worker-2 --wait=false");
    await_answers("those that end", anywhere, &["worker-1", "worker-2"]);
    assert_eq!(answer(local), ["worker-1".to_owned()].into());
    for stream in &mut open {
        assert_eq!(ask(stream).unwrap(), "worker-1", "an open connection");
    }

    scenario.kubectl("delete pod leaving-worker-1 leaving-worker-2 --grace-period=0 --force");
    for to in anywhere.into_iter().chain(local) {
        eventually("nobody is left", PATIENCE, || {
            match node_of(client, None, to) {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{to}: {other:?}")),
            }
        });
    }
}

/// Host ports answer over both families, TCP and datagrams, and where a pod names an address nowhere else.
pub fn host_ports_answer_where_they_are_asked_for(scenario: &Scenario, client: &str) {
    let worker = scenario.node("worker-1").unwrap();
    let netns = host::netns_path(client);
    let pod = scenario.get("pod ported");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let server = worker.inside_pod(uid, || UdpSocket::bind("[::]:9091").unwrap());
    let server = server.unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let wide = own(worker).into_iter().chain(narrow());
    let answers = wide.map(|ip| SocketAddr::new(ip, WIDE));
    let answers = answers.chain(narrow().map(|ip| SocketAddr::new(ip, NARROW)));
    for to in answers {
        eventually("a host port answers", PATIENCE, || {
            let node = node_of(client, None, to).map_err(|error| format!("{to}: {error}"))?;
            (node == "worker-1").then_some(()).ok_or(node)
        });
        let asker = datagram_to(&netns, to);
        asker.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(
            from.ip().to_canonical(),
            asker.local_addr().unwrap().ip(),
            "who asks {to}"
        );
        server.send_to(b"!", from).unwrap();
        assert_eq!(asker.recv(&mut [0; 8]).unwrap(), 1, "{to}");
    }
    for ip in own(worker) {
        let to = SocketAddr::new(ip, NARROW);
        let refused = node_of(client, None, to).map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused), "{to}");
        let asker = datagram_to(&netns, to);
        asker.set_read_timeout(Some(PATIENCE)).unwrap();
        let refused = asker.recv(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused), "{to}");
    }
    server
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    assert!(
        server.recv(&mut [0; 8]).is_err(),
        "what was refused has come"
    );
}

/// A client of datagrams that has sent one.
fn datagram_to(netns: &std::path::Path, to: SocketAddr) -> UdpSocket {
    let send = || {
        let socket = UdpSocket::bind((any(to), 0))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        std::io::Result::Ok(socket)
    };
    host::in_netns(netns, send).unwrap().unwrap()
}
