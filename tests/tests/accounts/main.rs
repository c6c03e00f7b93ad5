//! A program in a pod finds the API server, the authority's certificate and its own token where client libraries look, and may
//! do there what its service account may.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::time::Duration;

use kernelet_tests::cluster::{binaries, find_program};
use kernelet_tests::command::output;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Spec, host};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn a_pod_is_a_client_of_the_api_as_its_service_account() {
    let Some(scenario) = Scenario::begin(Spec::scenario("kas", 133, 1)) else {
        return;
    };
    a_bootstrap_token_is_good_until_it_expires(&scenario);
    scenario.kubectl("create serviceaccount robot");
    scenario.kubectl("create role reader --verb=get,list --resource=configmaps");
    scenario.kubectl("create rolebinding robot --role=reader --serviceaccount=default:robot");

    assert_eq!(
        run(
            &scenario,
            "who",
            &[
                "auth",
                "whoami",
                "-o",
                "jsonpath={.status.userInfo.username}"
            ]
        ),
        (
            "Succeeded".to_owned(),
            "system:serviceaccount:default:robot".to_owned()
        )
    );
    let (phase, log) = run(&scenario, "reads", &["get", "configmaps", "-o", "name"]);
    assert_eq!(
        (phase.as_str(), log.trim()),
        ("Succeeded", "configmap/kube-root-ca.crt")
    );
    let (phase, log) = run(&scenario, "refused", &["get", "secrets"]);
    assert_eq!(phase, "Failed", "{log}");
    let why = "User \"system:serviceaccount:default:robot\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"";
    assert!(log.contains(why), "{log}");

    // A token for a program elsewhere is the same account, and nobody after that is gone.
    let token = scenario.kubectl("create token robot --duration 10m");
    let as_bearer = |token: &str| {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.trim()},
        });
        let file = scenario.spec.directory.join("review.json");
        host::write(&file, review.to_string()).unwrap();
        scenario.kubectl(&format!(
            "create -o jsonpath={{.status.user.username}} -f {}",
            file.display()
        ))
    };
    assert_eq!(as_bearer(&token), "system:serviceaccount:default:robot");
    scenario.kubectl("delete serviceaccount robot");
    eventually("the token is nobody's", PATIENCE, || {
        match as_bearer(&token) {
            nobody if nobody.is_empty() => Ok(()),
            somebody => Err(somebody),
        }
    });
}

/// A Secret with a token lets a machine join, and goes when the token has expired.
fn a_bootstrap_token_is_good_until_it_expires(scenario: &Scenario) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": "bootstrap-token-guests", "namespace": "kube-system"},
        "stringData": {
            "token-id": "guests", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        },
    });
    let file = scenario.spec.directory.join("token.json");
    host::write(&file, secret.to_string()).unwrap();
    scenario.kubectl(&format!("apply -f {}", file.display()));

    let node = scenario.workers().next().unwrap();
    let root = scenario.spec.directory.join("guest");
    let authority = scenario.nodes[0].directory.join("data/pki/ca.crt");
    let mut join = node.command(binaries().join("kernelet"));
    join.args(["join", &scenario.server(), "--node-name", "guest"])
        .args(["--token", "guests.0123456789abcdef"])
        .arg("--ca-file")
        .arg(authority)
        .arg("--root-dir")
        .arg(&root);
    output(&mut join).unwrap();
    let kubeconfig = root.join("kubeconfig");
    let whoami = scenario.kubectl(&format!(
        "--kubeconfig {} auth whoami -o jsonpath={{.status.userInfo.username}}",
        kubeconfig.display()
    ));
    assert_eq!(whoami, "system:node:guest");

    let over = r#"{"stringData":{"expiration":"2020-01-01T00:00:00Z"}}"#;
    let name = "-n kube-system secret bootstrap-token-guests";
    scenario.kubectl_args(
        &format!("patch {name} -p")
            .split(' ')
            .chain([over])
            .collect::<Vec<_>>(),
    );
    eventually("the Secret has gone", PATIENCE, || {
        let left = scenario.kubectl(&format!("get {name} --ignore-not-found"));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// Runs stock kubectl in a pod of the account, with nothing but what the pod is given; tells how it ended and what it said.
fn run(scenario: &Scenario, name: &str, arguments: &[&str]) -> (String, String) {
    let kubectl = find_program("kubectl").unwrap().canonicalize().unwrap();
    let command: Vec<&str> = ["/host/kubectl", "--cache-dir=/cache"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "serviceAccountName": "robot", "restartPolicy": "Never",
            "containers": [{
                "name": "kubectl", "image": "backend:v0.0.1", "command": command,
                "volumeMounts": [{"name": "host", "mountPath": "/host/kubectl"}],
            }],
            "volumes": [{"name": "host", "hostPath": {"path": kubectl, "type": "File"}}],
        },
    });
    let file = scenario.spec.directory.join("pod.json");
    host::write(&file, pod.to_string()).unwrap();
    scenario.kubectl(&format!("apply -f {}", file.display()));
    let phase = eventually("the pod has ended", PATIENCE, || {
        let status = &scenario.get(&format!("pod {name}"))["status"];
        match status["phase"].as_str() {
            Some(phase @ ("Succeeded" | "Failed")) => Ok(phase.to_owned()),
            _ => Err(status.to_string()),
        }
    });
    (phase, scenario.kubectl(&format!("logs {name}")))
}
