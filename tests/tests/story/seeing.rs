//! What people and programs see of the services, on the real cluster: every command under the right names, and metrics
//! that say the same.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kernelet_tests::command::output;
use kernelet_tests::host::cgroup2_mount;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Cluster, Node};
use serde_json::Value;

use crate::application::{Pod, REPAIR, application, await_answers, call, pods};

/// Waits at most so long for what the kernel does at once.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn every_connection_is_seen_under_its_names() {
    let Some(scenario) = application("kse", 109, &[]) else {
        return;
    };
    let frontend = pods(&scenario)
        .into_iter()
        .find(|pod| pod.app == "frontend")
        .unwrap();
    let client = format!("default/{}", frontend.name);
    let node = scenario.node(&frontend.node).unwrap();
    await_answers(&scenario, &frontend);

    refusals_are_seen(&scenario, node, &frontend, &client);
    let backend = the_trace_comes_true(&scenario, &frontend, &client);
    flows_are_seen(&scenario, node, &frontend, &client, &backend);
    connections_are_listed(&scenario, node, &frontend, &client, &backend);
    maps_are_shown(&scenario, node);
    metrics_agree(&scenario, node);
}

/// A service without endpoints: a connect is refused, and the watch, the log and the service say so.
fn refusals_are_seen(scenario: &Scenario, node: &Node, frontend: &Pod, client: &str) {
    scenario.kubectl("create service clusterip nobody --tcp=80:80");
    let address = address_of(scenario, "nobody");
    let watch = Watch::begin(scenario, node, "--verdict no-backend");
    let trace = || scenario.kernelet(&node.name, &format!("trace --from {client} nobody:80"));
    eventually("the service without endpoints is in the maps", SOON, || {
        let output = scenario.node(&node.name).map(|node| {
            let mut command = Cluster::kernelet(scenario, node);
            command.args(["trace", "--from", client, "nobody:80", "-o", "json"]);
            command.output().is_ok_and(|it| it.status.success())
        });
        match output {
            Ok(true) if trace()["traces"][0]["outcome"] == "refused" => Ok(()),
            _ => Err("not yet".to_owned()),
        }
    });
    let refused = as_pod(
        scenario,
        node,
        frontend,
        &format!("exec 3<>/dev/tcp/{address}/80"),
    )
    .output()
    .unwrap();
    assert!(!refused.status.success());

    let flow = watch.next("a refusal", |flow| flow["service"] == "default/nobody");
    assert_eq!(flow["verdict"], "no-backend");
    assert_eq!(flow["client"], client);
    assert_eq!(flow["dialled"], format!("{address}:80"));
    assert_eq!(
        (&flow["backend"], &flow["process"]),
        (&"".into(), &"bash".into())
    );
    let log = node.processes[&kernelet_tests::Program::Agent].log.clone();
    eventually("the log names the service and the client", SOON, || {
        let text = std::fs::read_to_string(&log).unwrap();
        let found = text.lines().any(|line| {
            ["are refused", "default/nobody", client, "no-backend"]
                .iter()
                .all(|part| line.contains(part))
        });
        if found {
            Ok(())
        } else {
            Err("no such line".to_owned())
        }
    });
}

/// With session affinity, what the trace says is what the following connects get.
fn the_trace_comes_true(scenario: &Scenario, frontend: &Pod, client: &str) -> String {
    scenario.kubectl_args(&[
        "patch",
        "service",
        "backend",
        "-p",
        r#"{"spec":{"sessionAffinity":"ClientIP"}}"#,
    ]);
    let trace = || {
        let trace = scenario.kernelet(&frontend.node, &format!("trace --from {client} backend:80"));
        trace["traces"][0].clone()
    };
    let said = eventually("the client has a backend of its own", SOON, || {
        call(scenario, frontend, 1)?;
        let said = trace();
        match said["entries"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["map"] == "AFFINITY")
        {
            true => Ok(said),
            false => Err(said.to_string()),
        }
    });
    assert_eq!(
        (&said["outcome"], &said["service"]),
        (&"backend".into(), &"default/backend".into())
    );
    assert_eq!(said["choices"].as_array().unwrap().len(), 1);
    let pod = said["choices"][0]["backend"]["pod"]
        .as_str()
        .unwrap()
        .to_owned();
    let calls = call(scenario, frontend, 20).unwrap();
    let [answers] = &calls.answers[..] else {
        panic!("one backend: {calls:?}")
    };
    assert_eq!(format!("default/{}", answers.backend.pod), pod);
    assert_eq!(answers.count, 20);

    let elsewhere = scenario.kernelet(
        &frontend.node,
        &format!("trace --from {client} {}:3000", frontend.address),
    );
    assert_eq!(elsewhere["traces"][0]["outcome"], "not-service");
    pod
}

fn flows_are_seen(scenario: &Scenario, node: &Node, frontend: &Pod, client: &str, backend: &str) {
    let watch = Watch::begin(scenario, node, &format!("--service backend --pod {client}"));
    call(scenario, frontend, 3).unwrap();
    for verdict in ["opened", "established", "closed"] {
        let flow = watch.next(verdict, |flow| flow["verdict"] == verdict);
        assert_eq!(
            (&flow["client"], &flow["service"], &flow["backend_pod"]),
            (&client.into(), &"default/backend".into(), &backend.into()),
            "{flow}"
        );
        if verdict == "established" {
            assert!(flow["seconds"].as_f64().unwrap() > 0.0, "{flow}");
        }
        if verdict == "closed" {
            assert!(flow["bytes_received"].as_u64().unwrap() > 0, "{flow}");
        }
    }
    drop(watch);
    eventually(
        "the kernel records no more when nobody watches",
        SOON,
        || {
            let config = scenario.try_kernelet(&node.name, "map dump CONFIG")?;
            match config[0]["raw_value"].as_str() {
                Some(value) if value.starts_with("00000000") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    );
}

fn connections_are_listed(
    scenario: &Scenario,
    node: &Node,
    frontend: &Pod,
    client: &str,
    backend: &str,
) {
    let address = address_of(scenario, "backend");
    let line = format!("exec 3<>/dev/tcp/{address}/80; echo connected; read -r -t 60 -u 3");
    let mut held = Held(
        as_pod(scenario, node, frontend, &line)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = String::new();
    let mut output = BufReader::new(held.0.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert_eq!(said, "connected\n");

    let line = format!("conn list --service backend --pod {client}");
    let listed = scenario.kernelet(&node.name, &line);
    assert_eq!(listed["notes"], Value::Array(Vec::new()));
    let connections = listed["connections"].as_array().unwrap();
    let open: Vec<&Value> = connections
        .iter()
        .filter(|it| it["state"] == "ESTAB")
        .collect();
    let [open] = open[..] else {
        panic!("one is open: {listed}")
    };
    assert_eq!(
        (&open["client"], &open["service"], &open["backend_pod"]),
        (&client.into(), &"default/backend".into(), &backend.into())
    );
    assert_eq!(open["dialled"], format!("{address}:80"));
    assert!(open["round_trip_seconds"].as_f64().unwrap() > 0.0, "{open}");
    drop(held);

    let backends = scenario.kernelet(&node.name, "backend list");
    let backends = backends["backends"].as_array().unwrap();
    let found = backends.iter().find(|it| it["pod"] == *backend).unwrap();
    assert!(found["opens"].as_u64().unwrap() > 0, "{found}");
    assert!(
        found["handshake_p50_seconds"].as_f64().unwrap() > 0.0,
        "{found}"
    );
}

fn maps_are_shown(scenario: &Scenario, node: &Node) {
    let maps = scenario.kernelet(&node.name, "map list");
    for map in maps["maps"].as_array().unwrap() {
        let name = map["name"].as_str().unwrap();
        let rows = scenario.kernelet(&node.name, &format!("map dump {name}"));
        assert!(rows.is_array(), "{name}: {rows}");
        if name == "SERVICES" {
            assert_eq!(map["entries"], rows.as_array().unwrap().len());
        }
    }
    let mut command = Cluster::kernelet(scenario, node);
    let text = output(command.args(["map", "dump", "services", "--raw"])).unwrap();
    assert!(text.contains("RAW VALUE"), "{text}");
    let mut stray = Cluster::kernelet(scenario, node);
    let refused = stray
        .env("KERNELET_RUN_DIR", "/nowhere")
        .args(["flow", "watch"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the agent is not running"), "{said}");
}

fn metrics_agree(scenario: &Scenario, node: &Node) {
    let text = metrics(scenario, node);
    let value = |name: &str, labels: &[&str]| -> f64 {
        let series = text.lines().filter(|line| {
            line.starts_with(name) && labels.iter().all(|label| line.contains(label))
        });
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    };
    let backend = ["namespace=\"default\"", "service=\"backend\""];
    assert!(
        value("kernelet_service_opens_total{", &backend) >= 20.0,
        "{text}"
    );
    assert!(value("kernelet_service_handshake_seconds_count{", &backend) >= 20.0);
    assert!(value("kernelet_backend_received_bytes_total{", &backend) > 0.0);
    let nobody = ["service=\"nobody\"", "reason=\"no-backend\""];
    assert!(value("kernelet_service_refused_total{", &nobody) >= 1.0);
    assert_eq!(
        value("kernelet_service_refused_total{", &["reason=\"hole\""]),
        0.0
    );
    assert!(
        value("kubeproxy_network_programming_duration_seconds_count", &[]) >= 1.0,
        "{text}"
    );
    assert!(value("kernelet_map_entries{", &["map=\"SERVICES\""]) >= 2.0);

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let documented = std::fs::read_to_string(path).unwrap();
    for line in text.lines() {
        let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|it| it.split_once(' '))
        else {
            continue;
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        let row = format!("| `{name}{suffix}` | {kind} |");
        assert!(documented.contains(&row), "{row} is not in docs/metrics.md");
    }
}

/// What the kubelet API prints, asked as the administrator.
fn metrics(scenario: &Scenario, node: &Node) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let kubeconfig = kube::config::Kubeconfig::read_from(scenario.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
        let mut config = config.unwrap();
        config.cluster_url = format!("https://{}:10250", node.address).parse().unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        client.request_text(request).await.unwrap()
    })
}

fn address_of(scenario: &Scenario, service: &str) -> String {
    let service = scenario.get(&format!("service {service}"));
    service["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// A bash line in the pod's network namespace, below the node's cgroup: what the pod's own processes would see.
fn as_pod(scenario: &Scenario, node: &Node, pod: &Pod, line: &str) -> Command {
    let uid = scenario.get(&format!("pod {}", pod.name))["metadata"]["uid"].clone();
    let netns = node
        .agent_run_directory()
        .join("netns")
        .join(uid.as_str().unwrap());
    let cgroup = cgroup2_mount().unwrap().join(&node.cgroup).join("system");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("echo $$ > \"$0\" && exec nsenter --net=\"$1\" bash -c \"$2\"")
        .arg(cgroup.join("cgroup.procs"))
        .arg(netns)
        .arg(line);
    command
}

/// A process that ends with the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `kernelet flow watch`.
struct Watch {
    _process: Held,
    flows: Receiver<Value>,
}

impl Watch {
    /// Begins, and waits until the kernel records.
    fn begin(scenario: &Scenario, node: &Node, filters: &str) -> Self {
        let mut command = Cluster::kernelet(scenario, node);
        let mut process = command
            .args(["flow", "watch", "-o", "json"])
            .args(filters.split_whitespace())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, flows) = channel();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        eventually("the kernel records", SOON, || {
            let config = scenario.try_kernelet(&node.name, "map dump CONFIG")?;
            match config[0]["raw_value"].as_str() {
                Some(value) if value.starts_with("01000000") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        Self {
            _process: Held(process),
            flows,
        }
    }

    /// The next flow of which `is` is true.
    fn next(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let flow = self.flows.recv_timeout(REPAIR);
            let flow = flow.unwrap_or_else(|error| panic!("{what}: {error}"));
            if is(&flow) {
                return flow;
            }
        }
    }
}
