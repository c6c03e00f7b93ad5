//! What the scenarios share: when they may run, a cluster that goes when they end, and waiting for something to become true.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Spec, binaries, find_program};
use crate::command::output;

/// One cluster at a time: two cores are few.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A cluster that is taken down when the scenario ends, also when it fails.
pub struct Scenario {
    cluster: Option<Cluster>,
    _turn: MutexGuard<'static, ()>,
}

impl Scenario {
    /// Brings a cluster up, or says why there can be none: then the scenario is skipped, which under `CI` is a failure.
    pub fn begin(spec: Spec) -> Option<Scenario> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !can_run() {
            return None;
        }
        let cluster = Cluster::up(spec, |_| {})
            .unwrap_or_else(|error| panic!("the cluster did not come up: {error}"));
        Some(Scenario {
            cluster: Some(cluster),
            _turn: turn,
        })
    }

    /// Runs kubectl and gives what it printed; panics with what it said when it fails.
    pub fn kubectl(&self, line: &str) -> String {
        self.kubectl_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// The same, with arguments that hold white space.
    pub fn kubectl_args(&self, arguments: &[&str]) -> String {
        output(Cluster::kubectl(self).args(arguments)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs kubectl and gives everything, also when it fails.
    pub fn try_kubectl(&self, line: &str) -> Output {
        Cluster::kubectl(self)
            .args(line.split_whitespace())
            .output()
            .unwrap_or_else(|error| panic!("kubectl could not be started: {error}"))
    }

    /// An object or a list, as JSON.
    pub fn get(&self, what: &str) -> Value {
        let text = self.kubectl(&format!("get {what} -o json"));
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("kubectl get {what} gave no JSON: {error}"))
    }

    /// The items of a list.
    pub fn list(&self, what: &str) -> Vec<Value> {
        match &self.get(what)["items"] {
            Value::Array(items) => items.clone(),
            other => panic!("kubectl get {what} gave no list but {other}"),
        }
    }

    /// What `kernelet ARGUMENTS -o json` prints on a node; panics with what it said when it fails.
    pub fn kernelet(&self, node: &str, arguments: &str) -> Value {
        self.try_kernelet(node, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, or why it fails: an agent that starts does not answer yet.
    pub fn try_kernelet(&self, node: &str, arguments: &str) -> Result<Value, String> {
        let node = self.node(node).map_err(|error| error.to_string())?;
        let mut command = Cluster::kernelet(self, node);
        command
            .args(arguments.split_whitespace())
            .args(["-o", "json"]);
        let text = output(&mut command).map_err(|error| error.to_string())?;
        serde_json::from_str(&text)
            .map_err(|error| format!("kernelet {arguments} gave no JSON: {error}: {text}"))
    }
}

impl Deref for Scenario {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
            .as_ref()
            .expect("it is taken only when the scenario ends")
    }
}

impl DerefMut for Scenario {
    fn deref_mut(&mut self) -> &mut Cluster {
        self.cluster
            .as_mut()
            .expect("it is taken only when the scenario ends")
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        let Some(cluster) = self.cluster.take() else {
            return;
        };
        let has_failed = std::thread::panicking();
        if has_failed {
            keep_logs(&cluster);
        }
        let rules = if has_failed {
            Vec::new()
        } else {
            rules(&cluster)
        };
        if let Err(error) = cluster.down() {
            eprintln!("the cluster did not go: {error}");
        }
        assert!(rules.is_empty(), "no worker has a rule: {rules:?}");
    }
}

/// The rules of netfilter on workers, whoever made them.
fn rules(cluster: &Cluster) -> Vec<String> {
    let mut rules = Vec::new();
    for node in cluster.workers() {
        for (program, arguments) in [
            ("nft", &["list", "ruleset"][..]),
            ("iptables-save", &[]),
            ("ip6tables-save", &[]),
        ] {
            // Where there is no such program, `cargo xtask setup` was not run.
            let said = output(node.command(program).args(arguments));
            let said = said.unwrap_or_else(|error| format!("-A {error}"));
            let is_rule = |line: &&str| line.starts_with("-A") || program == "nft";
            let found = said.lines().filter(is_rule).filter(|it| !it.is_empty());
            rules.extend(found.map(|line| format!("{}: {program}: {line}", node.name)));
        }
    }
    rules
}

/// Copies the logs of a failed scenario to where the next run does not sweep them.
fn keep_logs(cluster: &Cluster) {
    let kept = cluster.spec.directory.with_extension("failed");
    let _ = std::fs::remove_dir_all(&kept);
    for node in &cluster.nodes {
        let target = kept.join(&node.name);
        let _ = std::fs::create_dir_all(&target);
        for process in node.processes.values() {
            if let Some(name) = process.log.file_name() {
                let _ = std::fs::copy(&process.log, target.join(name));
            }
        }
    }
    eprintln!("the logs are kept in {}", kept.display());
}

/// A file of the frontend/backend example.
pub fn example(name: &str) -> PathBuf {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/frontend-backend");
    PathBuf::from(directory).join(name)
}

/// Whether a cluster can be run here. Says why not; under `CI` a reason not to run is a failure.
fn can_run() -> bool {
    match obstacle() {
        None => true,
        Some(reason) if std::env::var_os("CI").is_some() => {
            panic!("cannot run, and under CI that is a failure: {reason}")
        }
        Some(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    let binaries = binaries();
    if !binaries.join("kernelet").exists() {
        return Some(format!(
            "{} has no kernelet: run `cargo xtask build`",
            binaries.display()
        ));
    }
    ["containerd", "runc", "ip", "nsenter", "kubectl"]
        .into_iter()
        .find(|program| find_program(program).is_none())
        .map(|program| format!("{program} is not installed: run `cargo xtask setup`"))
}

/// Asks again and again until `probe` gives a value; panics with the last refusal after `limit`.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {} s; last: {reason}", limit.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
