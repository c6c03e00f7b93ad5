//! After `kernelet cleanup` nothing of an agent is left on its node, and an agent can start anew.

use std::process::{Command, Output};

use kernelet_tests::command::output;
use kernelet_tests::scenario::{Scenario, example};
use kernelet_tests::{Cluster, Node, Program, Spec, host};
use rustix::process::Signal;

/// `kernelet cleanup` for a node, with the places that its agent was given.
fn cleanup(scenario: &Scenario, node: &Node, flags: &[&str]) -> Output {
    let mut command = Cluster::kernelet(scenario, node);
    command.arg("cleanup");
    command
        .arg("--root-dir")
        .arg(node.directory.join("kernelet"));
    command.arg("--bpf-dir").arg(bpf_dir(scenario, node));
    command
        .arg("--cgroup-parent")
        .arg(format!("/{}", node.cgroup));
    command.arg("--containerd").arg(node.containerd_socket());
    command.args(flags).output().unwrap()
}

fn bpf_dir(scenario: &Scenario, node: &Node) -> std::path::PathBuf {
    std::path::Path::new("/sys/fs/bpf")
        .join(&scenario.spec.prefix)
        .join(&node.name)
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Everything that an agent could have left, as the system's own tools show it.
fn leftovers(scenario: &Scenario, node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    let ip = |arguments: &str| {
        let mut command = node.command("ip");
        output(command.args(arguments.split(' '))).unwrap()
    };
    let links = ip("-o link");
    found.extend(
        links
            .lines()
            .filter(|line| line.contains(": kn"))
            .map(str::to_owned),
    );
    found.extend(
        ip("route show table all proto 75")
            .lines()
            .map(str::to_owned),
    );
    let addresses = ip("-4 -o address show dev lo");
    let other = addresses.lines().filter(|line| !line.contains("127.0.0.1"));
    found.extend(other.map(str::to_owned));
    if bpf_dir(scenario, node).exists() {
        found.push(bpf_dir(scenario, node).display().to_string());
    }
    let mounts = host::read("/proc/self/mountinfo").unwrap();
    let run = node.agent_run_directory().display().to_string();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&run))
            .map(str::to_owned),
    );
    for mount in host::cgroup_mounts().unwrap() {
        let pods = mount.join(&node.cgroup).join("kubepods");
        found.extend(pods.exists().then(|| pods.display().to_string()));
    }
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(node.containerd_socket());
    let containers = output(ctr.args(["-n", "k8s.io", "containers", "ls", "-q"])).unwrap();
    found.extend(containers.lines().map(str::to_owned));
    found
}

#[test]
fn cleanup_leaves_nothing_and_says_what_it_removed() {
    let Some(mut scenario) = Scenario::begin(Spec::scenario("klc", 141, 1)) else {
        return;
    };
    for manifest in ["backend.yaml", "backend-service.yaml", "frontend.yaml"] {
        scenario.kubectl(&format!("apply -f {}", example(manifest).display()));
    }
    scenario.kubectl("wait --for=condition=Available deployment --all --timeout=60s");
    let node = scenario.node("worker-1").unwrap().clone();

    let refused = cleanup(&scenario, &node, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).1.contains("the agent is running"),
        "{refused:?}"
    );

    scenario
        .kill("worker-1", Program::Agent, Signal::TERM)
        .unwrap();
    let before = leftovers(&scenario, &node);
    assert!(
        before.len() > 20,
        "there is something to remove: {before:?}"
    );
    let told = cleanup(&scenario, &node, &["--dry-run"]);
    assert!(told.status.success(), "{told:?}");
    assert_eq!(leftovers(&scenario, &node), before, "nothing changed");

    let done = cleanup(&scenario, &node, &[]);
    assert!(done.status.success(), "{done:?}");
    let (removed, _) = said(&done);
    let left = leftovers(&scenario, &node);
    assert_eq!(left, Vec::<String>::new(), "{removed}");
    for what in [
        "container ",
        "link kn",
        "route to ",
        "address ",
        "mount ",
        "cgroup ",
        "BPF program ",
        "BPF map ",
        "directory ",
    ] {
        let line = format!("removed {what}");
        assert!(removed.contains(&line), "no {line:?}: {removed}");
    }
    assert!(removed.contains("kept "), "{removed}");
    assert_eq!(said(&told).0.replace("would remove", "removed"), removed);
    assert!(node.directory.join("kernelet/kubeconfig").exists());
    let again = said(&cleanup(&scenario, &node, &[])).0;
    assert!(again.starts_with("nothing to remove\n"), "{again}");

    scenario.restart("worker-1", Program::Agent).unwrap();
    scenario.kubectl("delete pods --all --wait=false");
    scenario.kubectl("rollout status deployment backend --timeout=60s");
}
