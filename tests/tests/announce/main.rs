//! A load balancer without a cloud: a Service gets addresses from a pool, one node answers for them on the link, and another
//! one when that node dies.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kernelet_tests::command::{output, run};
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Cluster, Families, Node, Program, Spec};
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long something may take before a scenario calls it broken.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER: &str = "from the backend";
const BACKEND_PORT: u16 = 8080;

fn create(scenario: &Scenario, object: &Value) {
    let mut kubectl = Cluster::kubectl(scenario);
    kubectl.args(["create", "-f", "-"]).stdin(Stdio::piped());
    let mut child = kubectl.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(object.to_string().as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "{object} was refused");
}

/// The machine that plays the client: no worker, and on their link.
struct Client<'a>(&'a Node);

impl Client<'_> {
    fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.0.netns]);
        output(command.args(arguments.split(' '))).unwrap()
    }

    /// Where it believes the address to be.
    fn knows(&self, address: IpAddr) -> Option<String> {
        let line = self.ip(&format!("neighbour show {address}"));
        let mut words = line.split_whitespace();
        words.find(|word| *word == "lladdr")?;
        words.next().map(str::to_owned)
    }

    fn ask(&self, address: IpAddr) {
        let send = move || {
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            // An earlier refusal may be told here.
            let _ = socket.send_to(b"?", (address, 9));
        };
        self.0.inside(send).unwrap();
    }

    /// Asks anew and gives the name of the worker that answers.
    fn finds(&self, scenario: &Scenario, address: IpAddr) -> String {
        self.ip(&format!("neighbour flush {address}"));
        let mac = eventually("an answer", PATIENCE, || {
            self.ask(address);
            self.knows(address).ok_or("nobody answers".into())
        });
        let mut workers = scenario.workers();
        let found = workers.find(|worker| macs(worker).contains(&mac));
        found
            .expect("a worker has that hardware address")
            .name
            .clone()
    }
}

/// What the client hears from the service.
fn call(client: &Node, address: IpAddr) -> Result<String, String> {
    let call = move || {
        let limit = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&(address, 80).into(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        std::io::Result::Ok(heard)
    };
    let heard = client.inside(call).unwrap();
    heard.map_err(|error| error.to_string())
}

/// Answers every connection to the node's own address, until the test ends.
fn serve(node: &Node) {
    let address = node.address;
    let listen = move || {
        let listener = TcpListener::bind((address, BACKEND_PORT)).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(ANSWER.as_bytes());
            }
        });
    };
    node.inside(listen).unwrap();
}

fn macs(node: &Node) -> String {
    let mut command = Command::new("ip");
    output(command.args(["-netns", &node.netns, "link"])).unwrap()
}

/// Who announces both of the service's addresses, as the agent of a worker sees it; nobody while that starts.
fn announcer(scenario: &Scenario, asked: &str) -> String {
    let asked = scenario.node(asked).unwrap();
    let mut command = Cluster::kernelet(scenario, asked);
    command.args(["service", "show", "web", "-o", "json"]);
    let shown = output(&mut command).unwrap_or_default();
    let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
    let nodes = [0, 1].map(|number| shown["announcements"][number]["node"].as_str());
    let agreed = nodes[0].filter(|_| nodes[0] == nodes[1]);
    agreed.unwrap_or_default().to_owned()
}

#[test]
fn addresses_are_answered_by_one_node_and_by_another_when_that_dies() {
    let spec = Spec {
        images: Vec::new(),
        families: Families::Dual,
        ..Spec::scenario("kn-an", 77, 2)
    };
    let Some(mut scenario) = Scenario::begin(spec) else {
        return;
    };
    create(
        &scenario,
        &json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "kernelet-load-balancer", "namespace": "kube-system"},
            "data": {"lan": "172.30.77.200-172.30.77.209, fd72:30:4d::200-fd72:30:4d::209"},
        }),
    );
    create(
        &scenario,
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        }),
    );
    let addresses: [IpAddr; 2] = eventually("addresses", PATIENCE, || {
        let service = scenario.get("service web");
        let given = &service["status"]["loadBalancer"]["ingress"];
        let given =
            [0, 1].map(|number| given[number]["ip"].as_str().and_then(|ip| ip.parse().ok()));
        match given {
            [Some(v4), Some(v6)] => Ok([v4, v6]),
            _ => Err(service["status"].to_string()),
        }
    });
    // The first of both come first in the order of the same node, which is another than the backend's.
    let expected: [IpAddr; 2] = [
        Ipv4Addr::new(172, 30, 77, 200).into(),
        Ipv6Addr::new(0xfd72, 0x30, 0x4d, 0, 0, 0, 0, 0x200).into(),
    ];
    assert_eq!(addresses, expected);
    let address = addresses[0];
    // The backend is no pod, so that no image is needed.
    let backend = scenario.workers().next().unwrap().clone();
    serve(&backend);
    create(
        &scenario,
        &json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"},
            "subsets": [{
                "addresses": [{"ip": backend.address, "nodeName": backend.name}],
                "ports": [{"port": BACKEND_PORT}],
            }],
        }),
    );
    let agree = |scenario: &Scenario| {
        let names: Vec<String> = scenario.workers().map(|node| node.name.clone()).collect();
        let all: Vec<String> = names.iter().map(|name| announcer(scenario, name)).collect();
        let agreed = !all[0].is_empty() && all.iter().all(|node| *node == all[0]);
        agreed.then(|| all[0].clone()).ok_or(format!("{all:?}"))
    };
    // While nodes come, whoever is ready first announces until the one that comes first in their order is.
    let first = eventually("an announcer for good", PATIENCE, || {
        let early = agree(&scenario)?;
        thread::sleep(Duration::from_secs(3));
        let late = agree(&scenario)?;
        (early == late).then_some(late).ok_or(early)
    });
    let client = scenario.nodes[0].clone();
    let found = |scenario: &Scenario| addresses.map(|it| Client(&client).finds(scenario, it));
    let both = |node: &str| [node.to_owned(), node.to_owned()];
    assert_eq!(found(&scenario), both(&first));
    let answers = |through: &str| {
        eventually(through, PATIENCE, || {
            let heard = call(&client, address)?;
            (heard == ANSWER).then_some(()).ok_or(heard)
        });
    };
    answers("an answer through the first node");

    // Its machine is gone: the client hears of the other node without asking.
    let other = scenario.workers().find(|node| node.name != first).unwrap();
    let (other, others) = (other.name.clone(), macs(other));
    assert_eq!(other, backend.name);
    let cable = format!("kn-an-w{}", first.trim_start_matches("worker-"));
    let died = Instant::now();
    run(&format!("ip link set {cable} down")).unwrap();
    for program in [Program::Agent, Program::Containerd] {
        scenario.kill(&first, program, Signal::KILL).unwrap();
    }
    for address in addresses {
        eventually("the client hears of the other node", PATIENCE, || {
            let mac = Client(&client).knows(address).unwrap_or_default();
            let heard = !mac.is_empty() && others.contains(&mac);
            heard
                .then_some(())
                .ok_or(format!("of {address} it knows {mac:?}"))
        });
        println!(
            "{address}: another node announces after {:?}",
            died.elapsed()
        );
    }
    assert_eq!(announcer(&scenario, &other), other);
    assert_eq!(found(&scenario), both(&other));
    answers("an answer through the other node");

    run(&format!("ip link set {cable} up")).unwrap();
    for program in [Program::Containerd, Program::Agent] {
        scenario.restart(&first, program).unwrap();
    }
    // The order of the nodes is what it was.
    eventually("both name the first node again", PATIENCE, || {
        let agreed = agree(&scenario)?;
        (agreed == first).then_some(()).ok_or(agreed)
    });
    eventually("it answers again", PATIENCE, || {
        let found = found(&scenario);
        (found == both(&first))
            .then_some(())
            .ok_or(format!("{found:?}"))
    });

    // Without an API server nothing changes, for longer than a dead node would be waited for.
    scenario
        .kill("control-plane", Program::ControlPlane, Signal::KILL)
        .unwrap();
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert_eq!(found(&scenario), both(&first));
    }
}
