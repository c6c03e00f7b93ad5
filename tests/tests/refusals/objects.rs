//! Objects that the API does not take, and callers that it does not know.

use std::process::{Command, Output};

use kernelet_tests::host;
use kernelet_tests::scenario::{Scenario, example};
use serde_json::{Value, json};

fn apply(scenario: &Scenario, validate: bool, manifest: &Value) -> Output {
    let file = scenario.spec.directory.join("refused.json");
    host::write(&file, manifest.to_string()).unwrap();
    scenario.try_kubectl(&format!(
        "apply --validate={validate} -f {}",
        file.display()
    ))
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "it was taken: {output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn object(api: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

pub fn a_manifest_is_judged_whole(scenario: &Scenario) {
    let pod = |container: Value| object("v1", "Pod", "refused", json!({"containers": [container]}));
    let selecting_others = json!({
        "selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    });
    let nowhere = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "refused"},
        "addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"port": 0}],
    });
    let cases: [(&str, Value, &[&str]); 7] = [
        (
            "endpoints that nobody reaches",
            nowhere,
            &[
                "* endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "* ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            "two problems are told at once, each with path, value and reason",
            object(
                "v1",
                "Service",
                "Bad_Name",
                json!({"ports": [{"port": 70000}]}),
            ),
            &[
                "The Service \"Bad_Name\" is invalid",
                "* metadata.name: Invalid value: \"Bad_Name\": a DNS-1035 label must consist of",
                "* spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            "a wrong type",
            pod(json!({"name": "c", "image": "i", "ports": [{"containerPort": "eighty"}]})),
            &["spec.containers[0].ports[0].containerPort", "\"eighty\""],
        ),
        (
            "a quantity that is none",
            pod(json!({"name": "c", "image": "i", "resources": {"limits": {"cpu": "lots"}}})),
            &["spec.containers[0].resources.limits[cpu]: Invalid value: \"lots\""],
        ),
        (
            "a missing field",
            object("v1", "Pod", "refused", json!({"containers": []})),
            &["spec.containers: Required value"],
        ),
        (
            "a value out of a list",
            object(
                "v1",
                "Pod",
                "refused",
                json!({"restartPolicy": "Sometimes", "containers": [{"name": "c", "image": "i"}]}),
            ),
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\"",
                "\"Always\", \"Never\", \"OnFailure\"",
            ],
        ),
        (
            "a selector that does not select its own pods",
            object("apps/v1", "Deployment", "refused", selecting_others),
            &[
                "spec.template.metadata.labels: Invalid value",
                "`selector` does not match template `labels`",
            ],
        ),
    ];
    for validate in [true, false] {
        for (case, manifest, parts) in &cases {
            let said = said(&apply(scenario, validate, manifest));
            for part in *parts {
                assert!(said.contains(part), "{case}: {part} in {said}");
            }
        }
    }
    let typing_error = pod(json!({"name": "c", "image": "i", "imagePullPolice": "Never"}));
    let said = said(&apply(scenario, true, &typing_error));
    assert!(
        said.contains("unknown field \"spec.containers[0].imagePullPolice\""),
        "{said}"
    );
    let stored = scenario.kubectl("get pods,deployments,services -o name");
    assert_eq!(stored, "service/kubernetes\n", "nothing was stored");

    let taken = apply(scenario, false, &typing_error);
    assert!(taken.status.success(), "asked not to look: {taken:?}");
    scenario.kubectl("delete pod refused --force --grace-period=0 --wait=false");
}

pub fn a_field_that_must_not_change_does_not(scenario: &Scenario) {
    for manifest in ["backend.yaml", "backend-service.yaml"] {
        scenario.kubectl(&format!("apply -f {}", example(manifest).display()));
    }
    for (what, patch, parts) in [
        (
            "deployment",
            r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#,
            ["spec.selector: Invalid value", "field is immutable"],
        ),
        (
            "service",
            r#"{"spec":{"clusterIP":"10.96.0.77"}}"#,
            [
                "spec.clusterIPs[0]: Invalid value",
                "may not change once set",
            ],
        ),
        (
            "deployment",
            r#"{"spec":{"replicas":"many"}}"#,
            ["spec.replicas", "\"many\""],
        ),
    ] {
        let before = scenario.get(&format!("{what} backend"))["spec"].clone();
        let said = said(&scenario.try_kubectl(&format!("patch {what} backend -p {patch}")));
        for part in parts {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(scenario.get(&format!("{what} backend"))["spec"], before);
    }
}

pub fn strangers_see_nothing(scenario: &Scenario) {
    let data = scenario.nodes[0].directory.join("data");
    let ask = |credentials: &[&str], question: &str| {
        let output = Command::new("kubectl")
            .env("KUBECONFIG", "/dev/null")
            .args(["--server", &scenario.server(), "--certificate-authority"])
            .arg(data.join("pki/ca.crt"))
            .arg("--cache-dir")
            .arg(scenario.spec.directory.join("strangers"))
            .args(credentials)
            .args(question.split_whitespace())
            .output()
            .unwrap();
        said(&output)
    };
    // Without credentials kubectl asks for a name; with this one it sends what the server does not look at.
    let anonymous = ask(
        &["--username=nobody", "--password=none"],
        "get --raw /api/v1/namespaces/default/pods",
    );
    assert!(anonymous.contains("Forbidden"), "{anonymous}");
    assert!(
        anonymous.contains("\"system:anonymous\" cannot list resource \"pods\""),
        "{anonymous}"
    );
    let wrong = ask(
        &["--token=abcdef.0123456789abcdef"],
        "get --raw /api/v1/namespaces/default/pods",
    );
    assert!(
        wrong.contains("Unauthorized") || wrong.contains("logged in"),
        "{wrong}"
    );

    let token = host::read(data.join("join-token")).unwrap();
    let joining = ask(
        &["--token", token.trim()],
        "get --raw /api/v1/namespaces/default/secrets",
    );
    assert!(
        joining.contains("Forbidden"),
        "a token joins and does no more: {joining}"
    );

    let node = scenario.nodes[1].directory.join("kernelet/kubeconfig");
    let node = node.display();
    for question in [
        "delete deployment backend",
        "get secrets",
        "delete node control-plane",
    ] {
        let said = said(&scenario.try_kubectl(&format!("{question} --kubeconfig {node}")));
        assert!(
            said.contains("Forbidden") && said.contains("system:node:worker-1"),
            "{question}: {said}"
        );
    }
}
