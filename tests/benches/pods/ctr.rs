//! containerd's own client.

use std::time::{Duration, Instant};

use kernelet_tests::Node;
use tokio::process::Command;

use crate::IMAGE;

/// Runs the image, to where its process runs.
pub async fn run(node: &Node, name: &str) -> Duration {
    let began = Instant::now();
    ctr(node, &["run", "--detach", IMAGE, &called(name)]).await;
    began.elapsed()
}

pub async fn remove(node: &Node, name: &str) {
    let name = called(name);
    ctr(node, &["task", "delete", "--force", &name]).await;
    ctr(node, &["container", "delete", &name]).await;
}

fn called(name: &str) -> String {
    format!("ctr-{name}")
}

/// What it does counts to the node, as what the agent does.
async fn ctr(node: &Node, arguments: &[&str]) {
    let cgroup = node.system_cgroup();
    let cgroup = cgroup.unwrap_or_else(|error| panic!("{error}"));
    let mut command = node.command("sh");
    command
        .args(["-c", "echo $$ > \"$0\" && exec ctr \"$@\""])
        .arg(cgroup.join("cgroup.procs"))
        .arg("--address")
        .arg(node.containerd_socket())
        .args(["--namespace", "k8s.io"])
        .args(arguments);
    let output = Command::from(command)
        .output()
        .await
        .expect("ctr can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ctr {arguments:?}: {errors}");
}
