//! `cargo xtask demo`: the frontend/backend story, shown and checked.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use frontend_backend::Calls;
use kernelet_tests::Cluster;
use kernelet_tests::command::output;
use serde_json::Value;

use crate::cluster::{megabytes, up};
use crate::shell::{say, spinner, workspace};

const MANIFESTS: [&str; 3] = ["backend.yaml", "backend-service.yaml", "frontend.yaml"];
const REQUESTS: u64 = 1000;
const REPLICAS: usize = 3;
/// A frontend with a backend on its node asks that one at least this often; the design keeps a hundredth for the others.
const LEAST_LOCAL_SHARE: f64 = 0.95;

/// Brings the cluster up, runs the story and prints what happened; stays up until Ctrl-C unless `exit`.
pub fn run(exit: bool) -> Result<()> {
    let cluster = up(2)?;
    let story = tell(&cluster);
    let verdict = match &story {
        Ok(story) => {
            print(story);
            story.broken()
        }
        Err(error) => vec![format!("{error:#}")],
    };
    if !exit {
        println!("\nexport KUBECONFIG={}", cluster.kubeconfig().display());
        println!("The cluster stays up until Ctrl-C.");
        wait_for_interrupt()?;
    }
    cluster.down()?;
    if verdict.is_empty() {
        println!("\nAll of it held.");
        return Ok(());
    }
    bail!("this did not hold:\n  {}", verdict.join("\n  "))
}

fn wait_for_interrupt() -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    ctrlc::set_handler(move || {
        // Nobody listens any more after the first one.
        let _ = sender.send(());
    })?;
    receiver.recv()?;
    Ok(())
}

/// What happened.
struct Story {
    /// From `kubectl apply` to every pod being Ready.
    ready_after: Duration,
    calls: Vec<Calls>,
    /// Pod of each backend, by address.
    backends: BTreeMap<String, String>,
    /// Connections that each node's kernel opened to each backend's address.
    opens: BTreeMap<(String, String), u64>,
    /// Lines of rules on each worker: iptables and nft.
    rules: Vec<(String, usize)>,
    resident: Vec<(String, &'static str, u64)>,
}

fn tell(cluster: &Cluster) -> Result<Story> {
    let bar = spinner("kubectl apply");
    let began = Instant::now();
    let examples = workspace().join("examples/frontend-backend");
    let mut apply = cluster.kubectl();
    apply.arg("apply");
    for manifest in MANIFESTS {
        apply.arg("-f").arg(examples.join(manifest));
    }
    output(&mut apply)?;
    say(&bar, "waiting for the pods to be Ready");
    output(cluster.kubectl().args([
        "wait",
        "--for=condition=Available",
        "deployment/backend",
        "deployment/frontend",
        "--timeout=60s",
    ]))?;
    let ready_after = began.elapsed();

    let pods = pods(cluster)?;
    let mut calls = Vec::new();
    for pod in pods.iter().filter(|pod| pod.app == "frontend") {
        say(&bar, format!("{REQUESTS} requests from {}", pod.name));
        calls.push(
            ask(cluster, pod)
                .with_context(|| format!("asking {} to call the backend", pod.name))?,
        );
    }
    let backends = pods
        .iter()
        .filter(|pod| pod.app == "backend")
        .map(|pod| (pod.address.clone(), pod.name.clone()));
    let story = Story {
        ready_after,
        calls,
        backends: backends.collect(),
        opens: opens(cluster)?,
        rules: rules(cluster)?,
        resident: cluster.resident(),
    };
    bar.finish_and_clear();
    Ok(story)
}

struct Pod {
    name: String,
    app: String,
    node: String,
    address: String,
}

fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let list: Value = serde_json::from_str(&output(
        cluster.kubectl().args(["get", "pods", "-o", "json"]),
    )?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"]
        .as_array()
        .context("kubectl gave no list of pods")?;
    Ok(items
        .iter()
        .map(|pod| Pod {
            name: text(&pod["metadata"]["name"]),
            app: text(&pod["metadata"]["labels"]["app"]),
            node: text(&pod["spec"]["nodeName"]),
            address: text(&pod["status"]["podIP"]),
        })
        .collect())
}

/// Has a frontend call the backend, asked from its own node.
fn ask(cluster: &Cluster, pod: &Pod) -> Result<Calls> {
    let url = format!("http://{}:3000/calls?count={REQUESTS}", pod.address);
    let response = cluster
        .node(&pod.node)?
        .inside(|| minreq::get(&url).with_timeout(60).send())??;
    serde_json::from_slice(response.as_bytes())
        .with_context(|| format!("{url} answered {}", response.status_code))
}

/// The kernel's own counters, as the agents read them.
fn opens(cluster: &Cluster) -> Result<BTreeMap<(String, String), u64>> {
    let mut opens = BTreeMap::new();
    for node in cluster.workers() {
        let shown = output(
            cluster
                .kernelet(node)
                .args(["service", "show", "backend", "-o", "json"]),
        )?;
        let shown: Value = serde_json::from_str(&shown)?;
        for port in shown["ports"].as_array().into_iter().flatten() {
            for backend in port["backends"].as_array().into_iter().flatten() {
                let address = backend["address"].as_str().unwrap_or_default();
                let address = address
                    .rsplit_once(':')
                    .map_or(address, |(address, _)| address);
                let count = backend["opens"].as_u64().unwrap_or_default();
                *opens
                    .entry((node.name.clone(), address.to_owned()))
                    .or_default() += count;
            }
        }
    }
    Ok(opens)
}

fn rules(cluster: &Cluster) -> Result<Vec<(String, usize)>> {
    let mut rules = Vec::new();
    for node in cluster.workers() {
        let iptables = output(node.command("iptables-save").args(["-c"]))?;
        let nft = output(node.command("nft").args(["list", "ruleset"]))?;
        let count = |text: &str| {
            text.lines()
                .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
                .count()
        };
        rules.push((node.name.clone(), count(&iptables) + count(&nft)));
    }
    Ok(rules)
}

impl Story {
    fn answered(&self) -> u64 {
        self.calls
            .iter()
            .flat_map(|calls| &calls.answers)
            .map(|answers| answers.count)
            .sum()
    }

    /// Share of answers that came from the caller's own node, for callers whose node has a backend.
    fn local_share(&self) -> f64 {
        let nodes: Vec<&str> = self
            .calls
            .iter()
            .flat_map(|calls| &calls.answers)
            .map(|answers| answers.backend.node.as_str())
            .collect();
        let (mut local, mut all) = (0, 0);
        for calls in self
            .calls
            .iter()
            .filter(|calls| nodes.contains(&calls.frontend.node.as_str()))
        {
            for answers in &calls.answers {
                all += answers.count;
                if answers.backend.node == calls.frontend.node {
                    local += answers.count;
                }
            }
        }
        local as f64 / (all.max(1)) as f64
    }

    /// Answers by the frontend's node and the backend's pod: what the kernel should have counted.
    fn answers_by_node(&self) -> BTreeMap<(String, String), u64> {
        let mut answers = BTreeMap::new();
        for calls in &self.calls {
            for one in &calls.answers {
                *answers
                    .entry((calls.frontend.node.clone(), one.backend.pod.clone()))
                    .or_default() += one.count;
            }
        }
        answers
    }

    fn opens_by_node(&self) -> BTreeMap<(String, String), u64> {
        let name = |address: &String| self.backends.get(address).unwrap_or(address).clone();
        let counted = self.opens.iter().filter(|(_, count)| **count > 0);
        counted
            .map(|((node, address), count)| ((node.clone(), name(address)), *count))
            .collect()
    }

    /// What did not hold, in sentences.
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.calls.len() != REPLICAS {
            broken.push(format!(
                "{} frontends ran, not {REPLICAS}",
                self.calls.len()
            ));
        }
        for calls in self.calls.iter().filter(|calls| calls.failures > 0) {
            let why = calls.first_failure.as_deref().unwrap_or("no reason given");
            broken.push(format!(
                "{} of {}'s calls failed: {why}",
                calls.failures, calls.frontend.pod
            ));
        }
        if self.answered() != REQUESTS * REPLICAS as u64 {
            broken.push(format!(
                "{} calls were answered, not {}",
                self.answered(),
                REQUESTS * REPLICAS as u64
            ));
        }
        if self.local_share() < LEAST_LOCAL_SHARE {
            broken.push(format!(
                "the node-local share was {:.3}, below {LEAST_LOCAL_SHARE}",
                self.local_share()
            ));
        }
        if self.answers_by_node() != self.opens_by_node() {
            broken.push("the kernel's counters are not what the frontends saw".to_owned());
        }
        for (node, count) in self.rules.iter().filter(|(_, count)| *count > 0) {
            broken.push(format!(
                "{node} has {count} lines of iptables and nft rules"
            ));
        }
        broken
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table
}

fn print(story: &Story) {
    println!("\nWho answered whom");
    let mut answered = table(&["FRONTEND", "NODE", "BACKEND", "NODE", "ANSWERS"]);
    for calls in &story.calls {
        for answers in &calls.answers {
            answered.add_row([
                calls.frontend.pod.as_str(),
                &calls.frontend.node,
                &answers.backend.pod,
                &answers.backend.node,
                &answers.count.to_string(),
            ]);
        }
    }
    println!("{answered}");
    println!("\nNode-local share: {:.1} %", story.local_share() * 100.0);

    println!("\nAs the kernel counted");
    let mut counted = table(&["NODE", "BACKEND", "OPENS"]);
    for ((node, backend), count) in story.opens_by_node() {
        counted.add_row([node, backend, count.to_string()]);
    }
    println!("{counted}");

    println!("\nRules of iptables and nft");
    let mut rules = table(&["NODE", "RULES"]);
    for (node, count) in &story.rules {
        rules.add_row([node.clone(), count.to_string()]);
    }
    println!("{rules}");

    println!("\nResident memory");
    let mut resident = table(&["NODE", "PROGRAM", "RESIDENT"]);
    for (node, program, bytes) in &story.resident {
        resident.add_row([node.clone(), (*program).to_owned(), megabytes(*bytes)]);
    }
    println!("{resident}");
    println!(
        "\nFrom kubectl apply to all Ready: {:.2} s",
        story.ready_after.as_secs_f64()
    );
}
