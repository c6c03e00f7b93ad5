//! The agent in the place of kube-proxy: no kubelet, no containerd, and no more of the API server than kube-proxy may ask.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use kernelet_tests::command::output;
use kernelet_tests::process::Process;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Cluster, Node, Spec, host};
use rustix::process::Signal;

use crate::PATIENCE;

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

    /// What a process of the node hears from a TCP address.
    fn call(&self, address: &str, port: u16) -> Result<String, String> {
        let script = "echo $$ > \"$0\" && exec nsenter --net=\"$1\" busybox nc -w 5 \"$2\" \"$3\" < /dev/null";
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(self.cgroup.join("system/cgroup.procs"))
            .arg(host::netns_path(&self.node.netns))
            .args([address, &port.to_string()]);
        output(&mut command).map_err(|error| error.to_string())
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
}
