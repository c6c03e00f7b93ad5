//! Commands that follow what runs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use kernelet_tests::scenario::eventually;
use serde_json::{Value, json};

use crate::changing::REPAIR;
use crate::client::Client;

/// A pod that talks: its containers have the node's static busybox.
const TALKERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talkers, labels: {app: talkers}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: once
      image: backend:v0.0.1
      command: [/busybox, sh, -c, "echo one; echo two; exec /busybox sleep 3600"]
      volumeMounts: [{name: busybox, mountPath: /busybox}]
    - name: again
      image: backend:v0.0.1
      command: [/busybox, sh, -c, "while true; do echo tick; /busybox sleep 0.2; done"]
      volumeMounts: [{name: busybox, mountPath: /busybox}]
  volumes:
    - name: busybox
      hostPath: {path: /bin/busybox, type: File}
"#;

pub fn create_then_wait_then_logs(client: &Client) {
    assert_eq!(client.fed("create -f -", TALKERS), "pod/talkers created\n");
    assert_eq!(
        client.says("wait --for=condition=Ready pod/talkers --timeout=60s"),
        "pod/talkers condition met\n"
    );
    let refused = client.refuses("wait --for=condition=Nothing pod/talkers --timeout=1s");
    assert!(refused.contains("timed out"), "{refused}");

    assert_eq!(client.says("logs talkers -c once"), "one\ntwo\n");
    assert_eq!(client.says("logs talkers -c once --tail=1"), "two\n");
    let stamped = client.says("logs talkers once --timestamps");
    assert!(
        stamped
            .lines()
            .all(|line| line.starts_with("20") && line.contains("Z ")),
        "{stamped}"
    );
    let all = client.says("logs talkers --all-containers --prefix");
    assert!(all.contains("[pod/talkers/once] two"), "{all}");
    assert!(all.contains("[pod/talkers/again] tick"), "{all}");
    let refused = client.refuses("logs talkers -c nobody");
    assert!(
        refused.contains("container nobody is not valid for pod talkers"),
        "{refused}"
    );

    let mut command = client.command(&["logs", "-f", "talkers", "-c", "again"]);
    let mut following = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let ticks: Vec<String> = lines.map(Result::unwrap).take(15).collect();
    following.kill().unwrap();
    let output = following.wait_with_output().unwrap();
    assert!(ticks.iter().all(|tick| tick == "tick"), "{ticks:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

pub fn watch_shows_changes_as_they_happen(client: &Client) {
    let mut command = client.command(&["get", "pods", "-l", "app=talkers", "-w"]);
    let mut watching = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("NAME"));
    assert!(lines.next().unwrap().contains("Running"));
    assert_eq!(
        client.says("delete pod talkers"),
        "pod \"talkers\" deleted\n"
    );
    assert!(lines.next().unwrap().starts_with("talkers"));
    watching.kill().unwrap();
    let output = watching.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

pub fn delete_waits_for_finalizers_and_takes_what_is_owned(client: &Client) {
    config_map(
        client,
        json!({"name": "held", "finalizers": ["example.com/hold"]}),
    );
    client.says("delete configmap held --wait=false");
    let deletion = &client.get("configmap held")["metadata"]["deletionTimestamp"];
    assert!(deletion.is_string(), "it stays until its finalizer goes");
    client.says_all(&[
        "patch",
        "configmap",
        "held",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    let gone = client.refuses("get configmap held");
    assert!(gone.contains("NotFound"), "{gone}");

    config_map(client, json!({"name": "owner"}));
    let uid = client.get("configmap owner")["metadata"]["uid"].clone();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid});
    config_map(client, json!({"name": "owned", "ownerReferences": [owner]}));
    client.says("delete configmap owner");
    eventually("what was owned is gone", REPAIR, || {
        match client.says("get configmaps --field-selector=metadata.name=owned -o name") {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        }
    });

    client.says("delete deployment backend");
    client.says("delete service backend --ignore-not-found");
    client.says("delete service backend --ignore-not-found");
    eventually(
        "its replica sets and pods are gone",
        REPAIR,
        || match client.says("get replicasets,pods -l app=backend -o name") {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        },
    );
}

fn config_map(client: &Client, metadata: Value) {
    let manifest = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    let said = client.fed("apply -f -", &manifest.to_string());
    assert!(said.ends_with("created\n"), "{said}");
}
