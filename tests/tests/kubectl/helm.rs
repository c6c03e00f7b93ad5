//! helm, as it comes: the life of a release.

use std::path::Path;

use kernelet_tests::command::{command, output};
use kernelet_tests::helm;
use serde_json::Value;

use crate::client::Client;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubectl/chart");

/// What is not there must be said, and under CI is a failure.
pub fn keeps_a_release(client: &Client) {
    let Some(programs) = helm::find() else {
        let reason = "helm is not installed: run `cargo xtask setup`";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
        return;
    };
    for program in &programs {
        client.begin();
        lives(&Helm { program, client });
        client.end();
    }
}

struct Helm<'a> {
    program: &'a Path,
    client: &'a Client<'a>,
}

impl Helm<'_> {
    /// What it prints; an error is what it says.
    fn tries(&self, line: &str) -> kernelet_tests::Result<String> {
        let home = |kind: &str| self.client.file(&format!("helm-{kind}"));
        output(
            command(&self.program.to_string_lossy())
                .args(line.replace("CHART", CHART).split_whitespace())
                .env("KUBECONFIG", self.client.kubeconfig())
                .env("HELM_CACHE_HOME", home("cache"))
                .env("HELM_CONFIG_HOME", home("config"))
                .env("HELM_DATA_HOME", home("data")),
        )
    }

    fn says(&self, line: &str) -> String {
        self.tries(line).unwrap_or_else(|error| panic!("{error}"))
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.says(&format!("{line} -o json"))).unwrap()
    }
}

fn lives(helm: &Helm) {
    let client = helm.client;
    let dry = helm.says("install shop CHART --dry-run=server");
    let uid = &client.get(&format!("namespace {}", client.namespace))["metadata"]["uid"];
    assert!(dry.contains(uid.as_str().unwrap()), "{dry}");
    assert_eq!(helm.json("list"), serde_json::json!([]));

    helm.says("install shop CHART --wait --timeout 2m");
    let release = &helm.json("list")[0];
    assert_eq!(release["status"], "deployed");
    assert_eq!(release["revision"], "1");
    assert_eq!(helm.json("status shop")["info"]["status"], "deployed");
    let tested = helm.says("test shop --timeout 2m");
    assert!(tested.contains("Succeeded"), "{tested}");
    let twice = helm.tries("install shop CHART").unwrap_err().to_string();
    assert!(twice.contains("in use"), "{twice}");

    helm.says("upgrade shop CHART --set replicas=2,colour=green --wait --timeout 2m");
    assert_eq!(client.get("deployment shop")["status"]["readyReplicas"], 2);
    assert_eq!(client.get("configmap shop")["data"]["colour"], "green");
    assert_eq!(client.get("secret shop-hook")["data"]["revision"], "Mg==");
    let refused = helm.tries("upgrade shop CHART --set replicas=-1");
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("spec.replicas"), "{refused}");

    helm.says("rollback shop 1 --wait --timeout 2m");
    assert_eq!(client.get("deployment shop")["spec"]["replicas"], 1);
    assert_eq!(client.get("configmap shop")["data"]["colour"], "blue");
    let history = helm.json("history shop");
    let statuses = history.as_array().unwrap().iter().map(|one| &one["status"]);
    let statuses: Vec<_> = statuses.collect();
    assert_eq!(statuses, ["superseded", "superseded", "failed", "deployed"]);
    let manifest = helm.says("get manifest shop");
    assert!(manifest.contains("colour: blue"), "{manifest}");

    helm.says("uninstall shop --wait --timeout 2m");
    assert_eq!(helm.json("list"), serde_json::json!([]));
    assert_eq!(
        client
            .says("get deployment,service,configmap -o name -l !x")
            .trim(),
        "configmap/kube-root-ca.crt"
    );
}
