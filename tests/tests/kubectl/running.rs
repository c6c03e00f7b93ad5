//! Commands that follow what runs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

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

const RESIZED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: resized}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: backend:v0.0.1
      resources:
        requests: {cpu: 20m, memory: 16Mi}
        limits: {memory: 64Mi}
"#;

pub fn resize_changes_a_running_container(client: &Client) {
    client.fed("create -f -", RESIZED);
    client.says("wait --for=condition=Ready pod/resized --timeout=60s");
    let patch = |resources: &str| {
        let patch = format!(
            r#"{{"spec": {{"containers": [{{"name": "main", "resources": {resources}}}]}}}}"#
        );
        let said = client.says_all(&[
            "patch",
            "pod",
            "resized",
            "--subresource=resize",
            "-p",
            &patch,
        ]);
        assert_eq!(said, "pod/resized patched\n");
    };
    let until = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        eventually(what, Duration::from_secs(60), || {
            let status = client.get("pod resized")["status"].clone();
            wanted(&status)
                .then(|| status.clone())
                .ok_or(status.to_string())
        })
    };
    patch(r#"{"requests": {"cpu": "30m"}, "limits": {"memory": "80Mi"}}"#);
    let status = until("it has more", &|status| {
        let resources = &status["containerStatuses"][0]["resources"];
        resources["requests"]["cpu"] == "30m" && resources["limits"]["memory"] == "80Mi"
    });
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(
        status["containerStatuses"][0]["allocatedResources"]["memory"],
        "16Mi"
    );

    patch(r#"{"requests": {"cpu": "1000"}}"#);
    let pending = |status: &Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let mut pending = conditions.into_iter();
        pending.find(|condition| condition["type"] == "PodResizePending")
    };
    let status = until("it is told that there is never so much", &|it| {
        pending(it).is_some()
    });
    assert_eq!(pending(&status).unwrap()["reason"], "Infeasible");
    assert_eq!(
        status["containerStatuses"][0]["allocatedResources"]["cpu"],
        "30m"
    );
    patch(r#"{"requests": {"cpu": "30m"}}"#);
    until("it has what it asks for", &|status| {
        pending(status).is_none()
    });

    let refused = client.refuses(r#"patch pod resized -p {"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"40m"}}}]}}"#);
    assert!(
        refused.contains("pod updates may not change fields other than"),
        "{refused}"
    );
    client.says("delete pod resized");
}
