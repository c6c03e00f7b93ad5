//! What pods get from outside addresses: load balancers that are not for everybody, node ports beyond a router, servers that
//! see them or their nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use kernelet_tests::command::{output, run};
use kernelet_tests::links::Links;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Node, host};
use serde_json::{Value, json};

use super::services::{both, own};
use super::traffic::{any, ask};
use super::{CUT, NODE_PORT, PATIENCE};

/// The number on the link of the server that sees pods.
const SERVER: u8 = 120;
/// For a connection that may not come about: who is not in the ranges hears nothing.
const QUIET: Duration = Duration::from_secs(1);
/// Requests of one connection while the node counts.
const REQUESTS: u64 = 200;

/// The destinations that agents are told to exempt.
pub fn exempt() -> String {
    let [v4, v6] = both(SERVER);
    format!("--masquerade-exempt={v4}/32,{v6}/128")
}

pub fn objects() -> Vec<Value> {
    let narrowed = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "narrowed"},
        "spec": {
            "type": "LoadBalancer", "selector": {"app": "backend"}, "ipFamilyPolicy": "RequireDualStack",
            "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    });
    vec![narrowed]
}

/// A backend as the API tells of it.
struct Pod<'a> {
    node: &'a Node,
    uid: String,
    addresses: Vec<IpAddr>,
}

impl<'a> Pod<'a> {
    fn of(scenario: &'a Scenario, node: &str) -> Pod<'a> {
        let pod = scenario.get(&format!("pod backend-{node}"));
        let addresses = pod["status"]["podIPs"].as_array().unwrap().iter();
        let addresses = addresses.map(|it| it["ip"].as_str().unwrap().parse().unwrap());
        Pod {
            node: scenario.node(node).unwrap(),
            uid: pod["metadata"]["uid"].as_str().unwrap().to_owned(),
            addresses: addresses.collect(),
        }
    }

    /// A connection of a socket that no program of a cgroup sees: its packets are judged at the pod's link.
    fn dial_unseen(&self, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
        let dial = || TcpStream::connect_timeout(&to, patience);
        self.node.inside_pod(&self.uid, dial).unwrap()
    }

    /// What a socket in the pod's network gets that the programs at the node's cgroup see.
    fn fetch_seen(&self, to: SocketAddr, patience: Duration) -> Result<String, String> {
        let script = r#"echo $$ > "$0/cgroup.procs" && exec timeout "$4" nsenter --net="$1" bash -c '
            exec 3<>"/dev/tcp/$0/$1" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' "$2" "$3""#;
        let netns = self
            .node
            .agent_run_directory()
            .join("netns")
            .join(&self.uid);
        let mut command = Command::new("bash");
        command
            .args(["-c", script])
            .arg(self.node.system_cgroup().unwrap());
        command.arg(netns).args([
            to.ip().to_string(),
            to.port().to_string(),
            patience.as_secs().to_string(),
        ]);
        output(&mut command).map_err(|error| error.to_string())
    }
}

/// Who is in `loadBalancerSourceRanges` is answered and who is not is refused, also where a pod of the cluster asks.
pub fn source_ranges_are_for_pods_too(scenario: &Scenario) {
    let (one, two) = (Pod::of(scenario, "worker-1"), Pod::of(scenario, "worker-2"));
    let given = super::addresses(scenario, "narrowed");
    let targets = given.iter().map(|ip| SocketAddr::new(*ip, 80));
    let targets: Vec<SocketAddr> = targets.collect();
    // By pod, then by family: of a socket that is seen, and of one that is not.
    let heard = || {
        [&one, &two].map(|pod| {
            [0, 1].map(|family| {
                let to = targets[family];
                std::thread::scope(|scope| {
                    let unseen = scope.spawn(move || pod.dial_unseen(to, QUIET).is_ok());
                    [pod.fetch_seen(to, QUIET).is_ok(), unseen.join().unwrap()]
                })
            })
        })
    };
    let await_heard = |what: &str, wanted: [bool; 2]| {
        eventually(what, PATIENCE, || match heard() {
            found if found == wanted.map(|it| [[it; 2]; 2]) => Ok(()),
            found => Err(format!("{found:?}")),
        });
    };
    let narrow_to = |pod: &Pod| {
        let ranges: Vec<String> = pod
            .addresses
            .iter()
            .map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
            .collect();
        let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}}).to_string();
        scenario.kubectl_args(&["patch", "service", "narrowed", "-p", &patch]);
    };
    await_heard("neither is in the ranges", [false, false]);
    narrow_to(&one);
    await_heard("the first alone", [true, false]);
    narrow_to(&two);
    await_heard("the second alone", [false, true]);
}

/// What a node's network stack has passed on so far, of either family.
fn passed_on(node: &Node) -> [u64; 2] {
    let read = |file: &str| output(node.command("cat").arg(format!("/proc/net/{file}"))).unwrap();
    let snmp = read("snmp");
    let mut lines = snmp.lines().filter(|line| line.starts_with("Ip:"));
    let mut line = || lines.next().unwrap().split_whitespace();
    let v4 = line()
        .zip(line())
        .find(|(name, _)| *name == "ForwDatagrams");
    let snmp6 = read("snmp6");
    let mut v6 = snmp6
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace));
    let v6 = v6.find(|(name, _)| *name == "Ip6OutForwDatagrams");
    [v4, v6].map(|found| found.unwrap().1.trim().parse().unwrap())
}

/// A node port of a node beyond the router answers a pod with every backend. What the pod sends goes on past its node's network
/// stack (`bpf_redirect_neigh`).
pub fn node_ports_beyond_the_router_answer_pods(scenario: &Scenario) {
    let pod = Pod::of(scenario, "worker-1");
    for (family, ip) in own(scenario.node(CUT).unwrap()).into_iter().enumerate() {
        let to = SocketAddr::new(ip, NODE_PORT);
        pod.fetch_seen(to, PATIENCE)
            .unwrap_or_else(|error| panic!("{to}: {error}"));
        let mut answered = BTreeSet::new();
        let mut of_its_own = eventually("every backend answers", PATIENCE, || {
            let stream = pod.dial_unseen(to, PATIENCE);
            let mut stream = stream.map_err(|error| format!("{to}: {error}"))?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let node = ask(&mut stream).map_err(|error| format!("{to}: {error}"))?;
            let is_own = node == CUT;
            answered.insert(node);
            match answered.len() == 3 && is_own {
                true => Ok(stream),
                false => Err(format!("{to}: only {answered:?}")),
            }
        });
        let before = passed_on(pod.node)[family];
        for _ in 0..REQUESTS {
            assert_eq!(ask(&mut of_its_own).unwrap(), CUT);
        }
        let passed = passed_on(pod.node)[family] - before;
        println!("{to}: {REQUESTS} requests, {passed} packets by the node's network stack");
        // Each request and each answer is at least one packet. Answers come by the tunnel, which is the stack's.
        assert!(
            passed < REQUESTS * 3 / 2,
            "{to}: {passed} packets, so requests go by the stack, too"
        );
    }
}

/// What passed a pod's link so far, as its node shows it: packets and bytes sent, and received.
fn passed(pod: &Pod, scenario: &Scenario) -> [u64; 4] {
    let listed = scenario.kernelet(&pod.node.name, "pod list");
    let mut pods = listed["pods"].as_array().unwrap().iter();
    let found = pods.find(|it| it["uid"] == pod.uid.as_str()).unwrap();
    let fields = [
        "sent_packets",
        "sent_bytes",
        "received_packets",
        "received_bytes",
    ];
    fields.map(|field| found["traffic"][field].as_u64().unwrap())
}

/// A pod's datagrams are counted, each and with its length, when they go past the node's network stack and when they come.
pub fn what_passes_is_counted(scenario: &Scenario) {
    const COUNT: u64 = 500;
    /// Of Ethernet, IPv4 and UDP.
    const HEADERS: u64 = 14 + 20 + 8;
    const LENGTHS: [usize; 2] = [1000, 300];
    let (one, two) = (Pod::of(scenario, "worker-1"), Pod::of(scenario, "worker-2"));
    let bind = |pod: &Pod| {
        let socket = UdpSocket::bind((pod.addresses[0], 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let server = two.node.inside_pod(&two.uid, || bind(&two)).unwrap();
    let client = one.node.inside_pod(&one.uid, || bind(&one)).unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    let before = [passed(&one, scenario), passed(&two, scenario)];
    let mut heard = [0; 2000];
    for _ in 0..COUNT {
        client.send(&[0; LENGTHS[0]]).unwrap();
        let (_, from) = server.recv_from(&mut heard).unwrap();
        server.send_to(&[0; LENGTHS[1]], from).unwrap();
        client.recv(&mut heard).unwrap();
    }
    let after = [passed(&one, scenario), passed(&two, scenario)];
    let bytes = LENGTHS.map(|length| COUNT * (u64::try_from(length).unwrap() + HEADERS));
    let there = [COUNT, bytes[0], COUNT, bytes[1]];
    let back = [COUNT, bytes[1], COUNT, bytes[0]];
    for (pod, wanted) in [there, back].into_iter().enumerate() {
        for (field, wanted) in wanted.into_iter().enumerate() {
            let counted = after[pod][field] - before[pod][field];
            // Little else passes: neighbours ask for each other.
            let is_true = counted >= wanted && counted <= wanted + wanted / 10;
            assert!(is_true, "pod {pod}, field {field}: {counted} for {wanted}");
        }
    }
}

/// A server that is exempt sees pods themselves, others their nodes.
pub fn exempt_servers_see_pods_and_others_their_nodes(
    scenario: &Scenario,
    links: &Links,
    client: &str,
) {
    let server = format!("{}-server", links.prefix);
    links.attach(&server, "sv", false, false, SERVER).unwrap();
    for worker in ["worker-1", "worker-2"] {
        let pod = Pod::of(scenario, worker);
        for (address, via) in pod.addresses.iter().zip(own(pod.node)) {
            run(&format!("ip -n {server} route add {address} via {via}")).unwrap();
        }
        let nodes = own(pod.node).to_vec();
        assert_eq!(seen_by(&server, both(SERVER), &pod), pod.addresses);
        assert_eq!(seen_by(client, both(super::CLIENT), &pod), nodes);
        // So do nodes beyond the router, which takes no pod's address for anybody's.
        for node in scenario.workers().filter(|it| it.name != worker) {
            let expected = match node.name == CUT {
                true => &nodes,
                false => &pod.addresses,
            };
            assert_eq!(seen_by(&node.netns, own(node), &pod), *expected);
        }
    }
}

/// The addresses that a server sees where a pod connects to it, and sends a datagram, which is answered.
fn seen_by(netns: &str, server: [IpAddr; 2], pod: &Pod) -> Vec<IpAddr> {
    let netns = host::netns_path(netns);
    let seen = server.map(|ip| {
        let bind = || {
            (
                TcpListener::bind((ip, 0)).unwrap(),
                UdpSocket::bind((ip, 0)).unwrap(),
            )
        };
        let (listener, socket) = host::in_netns(&netns, bind).unwrap();
        let _stream = pod
            .dial_unseen(listener.local_addr().unwrap(), PATIENCE)
            .unwrap();
        let connected = listener.accept().unwrap().1.ip();
        let to = socket.local_addr().unwrap();
        let send = || {
            let client = UdpSocket::bind((any(to), 0)).unwrap();
            client.connect(to).unwrap();
            client.send(b"?").unwrap();
            client
        };
        let client = pod.node.inside_pod(&pod.uid, send).unwrap();
        for it in [&socket, &client] {
            it.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from.ip(), connected);
        socket.send_to(b"!", from).unwrap();
        assert_eq!(client.recv(&mut [0; 8]).unwrap(), 1);
        connected
    });
    seen.to_vec()
}
