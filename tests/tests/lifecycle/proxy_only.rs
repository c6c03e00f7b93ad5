//! The agent in the place of kube-proxy: no kubelet, no containerd, and no more of the API server than kube-proxy may ask.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use kernelet_tests::command::output;
use kernelet_tests::process::Process;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Cluster, Node, Spec, host};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::pods::{self, Held, Pod};

const ANSWER: &str = "from the backend";

/// A client certificate of kube-proxy, and a kubeconfig that names it.
fn kubeconfig(scenario: &Scenario) -> PathBuf {
    let directory = scenario.spec.directory.join("edge");
    host::create_dir(&directory).unwrap();
    let pki = scenario.nodes[0].directory.join("data/pki");
    let script = r#"
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout proxy.key \
            -subj /CN=system:kube-proxy -out proxy.csr
        echo extendedKeyUsage=clientAuth > extensions
        openssl x509 -req -in proxy.csr -CA "$0/ca.crt" -CAkey "$0/ca.key" -set_serial 77 -days 1 \
            -extfile extensions -out proxy.crt"#;
    let mut make = Command::new("sh");
    make.args(["-e", "-c", script])
        .arg(&pki)
        .current_dir(&directory);
    output(&mut make).unwrap();
    let path = directory.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         clusters: [{{name: a, cluster: {{server: \"{server}\", certificate-authority: {pki}/ca.crt}}}}]\n\
         users: [{{name: a, user: {{client-certificate: {dir}/proxy.crt, client-key: {dir}/proxy.key}}}}]\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n",
        server = scenario.server(),
        pki = pki.display(),
        dir = directory.display(),
    );
    host::write(&path, text).unwrap();
    path
}

/// A node without kubelet: the control plane's.
struct Edge<'a> {
    scenario: &'a Scenario,
    node: &'a Node,
    run_dir: PathBuf,
    bpf_dir: PathBuf,
    cgroup: PathBuf,
}

impl Edge<'_> {
    fn start(&self, kubeconfig: &Path) -> Process {
        let mut command = Command::new(self.scenario.spec.binaries.join("kernelet"));
        command.args(["run", "--proxy-only", "--node-name", "edge", "--kubeconfig"]);
        command.arg(kubeconfig);
        command.arg("--run-dir").arg(&self.run_dir);
        command.arg("--bpf-dir").arg(&self.bpf_dir);
        command.arg("--cgroup-root").arg(&self.cgroup);
        let log = self.scenario.spec.directory.join("edge/kernelet.log");
        let netns = host::netns_path(&self.node.netns);
        Process::spawn(&command, &netns, &self.cgroup.join("system"), &log).unwrap()
    }

    /// Begins a command of a process of the node: in its cgroup, and in a network namespace of it or of its pods.
    fn process(&self, netns: &str) -> Command {
        let script =
            "echo $$ > \"$0\" && netns=$1 && shift && exec nsenter --net=\"$netns\" \"$@\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(self.cgroup.join("system/cgroup.procs"))
            .arg(host::netns_path(netns));
        command
    }

    /// What a process of the node hears from a TCP address.
    fn call(&self, address: &str, port: u16) -> Result<String, String> {
        self.call_from(&self.node.netns, address, port)
    }

    fn call_from(&self, netns: &str, address: &str, port: u16) -> Result<String, String> {
        let mut command = self.process(netns);
        let port = port.to_string();
        command.args(["busybox", "nc", "-w", "5", address, &port]);
        output(command.stdin(Stdio::null())).map_err(|error| error.to_string())
    }

    /// What a machine outside hears from a port of the node: no socket of it is translated.
    fn call_from_outside(&self, port: u16) -> Result<String, String> {
        let address = SocketAddr::from((self.node.address, port));
        let ask = || {
            let limit = Duration::from_secs(5);
            let mut stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            let mut said = String::new();
            stream.read_to_string(&mut said).map(|_| said)
        };
        let asked = self.scenario.nodes[1].inside(ask);
        let asked = asked.map_err(|error| error.to_string())?;
        asked.map_err(|error: std::io::Error| error.to_string())
    }

    fn get(&self, url: &str) -> Result<(i32, String), String> {
        let asked = self
            .node
            .inside(|| minreq::get(url).with_timeout(5).send())
            .map_err(|error| error.to_string())?;
        let answer = asked.map_err(|error| error.to_string())?;
        let text = answer.as_str().unwrap_or_default().to_owned();
        Ok((answer.status_code, text))
    }
}

/// Answers every connection to the node's own address, until the test ends.
fn serve(node: &Node) -> u16 {
    let address = node.address;
    let listen = move || {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(ANSWER.as_bytes());
            }
        });
        port
    };
    node.inside(listen).unwrap()
}

/// How many requests the API server has refused for want of permission.
fn refusals(scenario: &Scenario) -> usize {
    let metrics = scenario.kubectl("get --raw /metrics");
    let refused =
        |line: &&str| line.starts_with("apiserver_request_total") && line.contains("\"403\"");
    metrics.lines().filter(refused).count()
}

#[test]
fn it_routes_services_with_what_kube_proxy_may_ask() {
    let Some(scenario) = Scenario::begin(Spec {
        images: Vec::new(),
        ..Spec::scenario("klp", 142, 1)
    }) else {
        return;
    };
    let node = &scenario.nodes[0];
    let edge = Edge {
        scenario: &scenario,
        node,
        run_dir: node.run_directory.join("edge"),
        bpf_dir: Path::new("/sys/fs/bpf")
            .join(&scenario.spec.prefix)
            .join("edge"),
        cgroup: host::cgroup2_mount().unwrap().join(&node.cgroup),
    };
    let manifest = format!(
        r#"{{"apiVersion": "v1", "kind": "List", "items": [
            {{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "web"}}, "spec": {{"ports": [{{"port": 80}}]}}}},
            {{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "odd"}}, "spec": {{"ports": [{{"port": 81, "protocol": "SCTP"}}]}}}},
            {{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
              "metadata": {{"name": "web-by-hand", "labels": {{"kubernetes.io/service-name": "web"}}}},
              "addressType": "IPv4", "ports": [{{"port": {port}}}],
              "endpoints": [{{"addresses": ["{address}"]}}]}}]}}"#,
        port = serve(node),
        address = node.address,
    );
    let path = scenario.spec.directory.join("web.json");
    host::write(&path, manifest).unwrap();
    scenario.kubectl(&format!("apply -f {}", path.display()));
    let service = scenario.get("service web")["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let credentials = kubeconfig(&scenario);
    assert_eq!(refusals(&scenario), 0);

    let agent = edge.start(&credentials);
    eventually("the service answers", PATIENCE, || {
        match edge.call(&service, 80) {
            Ok(answer) if answer == ANSWER => Ok(()),
            other => Err(format!("{other:?}; see {}", agent.log.display())),
        }
    });
    eventually("the node is healthy", PATIENCE, || {
        match edge.get("http://127.0.0.1:10256/healthz")? {
            (200, text) if text.contains("lastUpdated") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let (code, metrics) = edge.get("http://127.0.0.1:10249/metrics").unwrap();
    assert!(
        code == 200 && metrics.contains("kernelet_proxy"),
        "{metrics}"
    );

    // All that it writes: what it cannot serve is told by an Event.
    eventually("the odd service has an Event", PATIENCE, || {
        let told = scenario.kubectl("get events --field-selector involvedObject.name=odd");
        match told.contains("81/SCTP") {
            true => Ok(()),
            false => Err(told),
        }
    });

    other_parties_pods_are_served_and_their_sockets_closed(&scenario, &edge);

    // Nothing that it asked was refused, and it left no other trace in the cluster.
    assert_eq!(refusals(&scenario), 0);
    for what in ["node edge", "lease edge -n kube-node-lease"] {
        let found = scenario.try_kubectl(&format!("get {what}"));
        let said = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(said.contains("NotFound"), "{what}: {said}");
    }
    let mut beyond = Cluster::kubectl(&scenario);
    beyond.env("KUBECONFIG", &credentials);
    let answer = beyond.args(["get", "pods"]).output().unwrap();
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(said.contains("Forbidden"), "{said}");

    // The kernel serves on without it.
    agent.signal(Signal::KILL).unwrap();
    assert!(agent.wait(Duration::from_secs(10)));
    assert_eq!(edge.call(&service, 80).unwrap(), ANSWER);
    assert!(edge.call_from_outside(PLAIN).unwrap().starts_with("b "));
}

const PLAIN: u16 = 30_080;
const STICKY: u16 = 30_081;
const LOCAL: u16 = 30_082;

/// An EndpointSlice of a service, by hand: addresses, and the nodes on which they are.
fn slice(service: &str, ports: Value, endpoints: &[(Ipv4Addr, &str)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-by-hand"), "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports,
    })
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn apply(scenario: &Scenario, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let path = scenario.spec.directory.join("objects.json");
    host::write(&path, list.to_string()).unwrap();
    scenario.kubectl(&format!("apply -f {}", path.display()));
}

fn await_said(what: &str, is: impl Fn(&str) -> bool, ask: impl Fn() -> Result<String, String>) {
    eventually(what, PATIENCE, || {
        let said = ask()?;
        is(&said).then_some(()).ok_or(said)
    });
}

/// Who answers in 60 calls.
fn answering(ask: impl Fn() -> Result<String, String>) -> BTreeSet<String> {
    let name = |said: String| said.split(' ').next().unwrap().to_owned();
    (0..60).map(|_| name(ask().unwrap())).collect()
}

/// Node ports, `externalTrafficPolicy: Local`, session affinity, and what becomes of sockets in pods when a backend goes, where
/// another network plugin made the pods.
fn other_parties_pods_are_served_and_their_sockets_closed(scenario: &Scenario, edge: &Edge) {
    pods::bridge(edge.node);
    let [a, b, client] =
        [("a", 2), ("b", 3), ("c", 4)].map(|(name, last)| Pod::new(edge.node, "klp", name, last));
    a.serve("a");
    b.serve("b");
    let answers = || json!([{"port": pods::ANSWERS}]);
    let node_port = |port: u16| json!([{"port": 80, "nodePort": port}]);
    let both = [(a.address, "edge"), (b.address, "edge")];
    let held = json!([{"name": "t", "port": 80}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    let holds = || {
        json!([{"name": "t", "port": pods::HOLDS},
               {"name": "u", "port": pods::HOLDS, "protocol": "UDP"}])
    };
    apply(
        scenario,
        &[
            service(
                "plain",
                json!({"type": "NodePort", "ports": node_port(PLAIN)}),
            ),
            slice("plain", answers(), &both),
            service(
                "sticky",
                json!({"type": "NodePort", "ports": node_port(STICKY), "sessionAffinity": "ClientIP"}),
            ),
            slice("sticky", answers(), &both),
            service(
                "local",
                json!({"type": "LoadBalancer", "ports": node_port(LOCAL), "externalTrafficPolicy": "Local"}),
            ),
            slice(
                "local",
                answers(),
                &[(a.address, "edge"), (b.address, "elsewhere")],
            ),
            service("goes", json!({"ports": held})),
            slice("goes", holds(), &[(a.address, "edge")]),
            service("stays", json!({"ports": [{"port": 80}]})),
            slice(
                "stays",
                json!([{"port": pods::HOLDS}]),
                &[(b.address, "edge")],
            ),
        ],
    );

    // Node ports: from outside, from the node, from a pod.
    let address = edge.node.address.to_string();
    let is_answer = |said: &str| said.starts_with("a ") || said.starts_with("b ");
    for port in [PLAIN, STICKY, LOCAL] {
        let ask = || edge.call_from_outside(port);
        await_said("a client outside is answered", is_answer, ask);
        await_said("the node is answered", is_answer, || {
            edge.call(&address, port)
        });
    }
    let from_node = |port| edge.call("127.0.0.1", port);
    let from_pod = |port| edge.call_from(&client.netns, &address, port);
    let everybody: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
    assert_eq!(answering(|| edge.call_from_outside(PLAIN)), everybody);
    assert_eq!(answering(|| from_node(PLAIN)), everybody);
    assert_eq!(answering(|| from_pod(PLAIN)), everybody);
    assert_eq!(answering(|| edge.call_from_outside(STICKY)).len(), 1);
    assert_eq!(answering(|| from_node(STICKY)).len(), 1);
    assert_eq!(answering(|| from_pod(STICKY)).len(), 1);

    // The local policy is for who comes from outside, and he is seen.
    let outside = scenario.nodes[1].address;
    let said = (0..20).map(|_| edge.call_from_outside(LOCAL).unwrap());
    let said: BTreeSet<String> = said.collect();
    assert_eq!(said, [format!("a {outside}")].into());
    let check = scenario.get("service local")["spec"]["healthCheckNodePort"].clone();
    let check = format!("http://{address}:{check}/");
    let health = || {
        edge.get(&check)
            .map(|(code, text)| format!("{code} {text}"))
    };
    let local = |code: u16, count: u8| {
        move |said: &str| {
            let count = format!("\"localEndpoints\":{count}");
            said.starts_with(&code.to_string()) && said.replace(' ', "").contains(&count)
        }
    };
    await_said("load balancers are told to come", local(200, 1), health);
    apply(
        scenario,
        &[slice("local", answers(), &[(b.address, "elsewhere")])],
    );
    await_said(
        "load balancers are told to stay away",
        local(503, 0),
        health,
    );
    eventually("nobody outside is answered", PATIENCE, || {
        match edge.call_from_outside(LOCAL) {
            Err(_) => Ok(()),
            Ok(said) => Err(said),
        }
    });
    assert!(from_node(LOCAL).unwrap().starts_with("b "));

    // A backend goes: sockets to it are closed in the pods that others made, and on the node, and no others.
    let ip = |name: &str| {
        let service = scenario.get(&format!("service {name}"));
        service["spec"]["clusterIP"].as_str().unwrap().to_owned()
    };
    let (goes, stays) = (ip("goes"), ip("stays"));
    let dial = |netns: &str, protocol, address: &str, port| {
        Held::dial(edge.process(netns), protocol, address, port)
    };
    let closed = [&client.netns, &edge.node.netns].map(|netns| {
        [("tcp", 80), ("udp", 53)].map(|(protocol, port)| dial(netns, protocol, &goes, port))
    });
    let mut open = dial(&client.netns, "tcp", &stays, 80);
    let direct = a.address.to_string();
    let mut past = dial(&client.netns, "tcp", &direct, pods::HOLDS);
    apply(scenario, &[slice("goes", holds(), &[(b.address, "edge")])]);
    for one in closed.into_iter().flatten() {
        let said = one.end();
        assert!(said.contains("connection abort"), "{said}");
    }
    assert!(open.is_open() && past.is_open());
    apply(
        scenario,
        &[slice("plain", answers(), &[(b.address, "edge")])],
    );
    let is_b = |said: &str| said.starts_with("b ");
    await_said("one is left", is_b, || edge.call_from_outside(PLAIN));
}
