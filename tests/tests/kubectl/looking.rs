//! Commands that change nothing.

use crate::client::Client;

pub fn at_the_cluster(client: &Client) {
    let said = client.says("cluster-info");
    assert!(said.contains("Kubernetes control plane"), "{said}");
    assert!(said.contains(&client.server()), "{said}");

    let resources = client.says("api-resources");
    for words in [
        ["configmaps", "cm", "v1", "true", "ConfigMap"],
        ["nodes", "no", "v1", "false", "Node"],
        ["pods", "po", "v1", "true", "Pod"],
        ["deployments", "deploy", "apps/v1", "true", "Deployment"],
        ["replicasets", "rs", "apps/v1", "true", "ReplicaSet"],
    ] {
        assert!(has_row(&resources, &words), "{words:?} in {resources}");
    }
    let nodes = client.says("get nodes -o wide");
    for node in ["worker-1", "worker-2"] {
        assert!(has_row(&nodes, &[node, "Ready"]), "{nodes}");
    }
    assert!(nodes.contains("containerd://"), "{nodes}");
    assert_eq!(client.says("get --raw /readyz"), "ok");
    let checks = client.says("get --raw /livez?verbose");
    assert!(checks.contains("[+]etcd ok"), "{checks}");
    let components = client.remarks("get componentstatuses");
    for name in ["controller-manager", "etcd-0", "scheduler"] {
        assert!(
            has_row(&components, &[name, "Healthy", "ok"]),
            "{components}"
        );
    }
    let versions = client.says("api-versions");
    assert!(versions.lines().any(|line| line == "apps/v1"), "{versions}");
    let node = client.says("describe node worker-1");
    for part in ["KubeletReady", "PodCIDR:", "Allocated resources:", "Lease:"] {
        assert!(node.contains(part), "{part} in {node}");
    }
}

pub fn at_objects_in_every_form(client: &Client) {
    let pods = client.says("get pods -l app=backend -o wide");
    assert_eq!(rows(&pods).len(), 3, "{pods}");
    assert!(
        rows(&pods).iter().all(|row| row[1] == "1/1"
            && row[2] == "Running"
            && row[5].starts_with("10.244.")
            && row[6].starts_with("worker-")),
        "{pods}"
    );
    let everywhere = client.says("get pods -A --no-headers");
    assert!(
        everywhere
            .lines()
            .all(|line| line.starts_with(client.namespace)),
        "{everywhere}"
    );
    assert_eq!(
        client.says("get pods -l app=other -o name"),
        "",
        "no pod has that label"
    );
    let running = client.says("get pods --field-selector=status.phase=Running -o name");
    assert_eq!(running.lines().count(), 3, "{running}");
    let elsewhere = client.says("get pods --field-selector=spec.nodeName=nowhere -o name");
    assert_eq!(elsewhere, "");

    let yaml = client.says("get deployment backend -o yaml");
    assert!(
        yaml.starts_with("apiVersion: apps/v1\nkind: Deployment\n"),
        "{yaml}"
    );
    assert_eq!(
        client.get("service backend")["spec"]["ports"][0]["port"],
        80
    );
    let name = client.says("get service backend -o jsonpath={.spec.ports[0].targetPort}");
    assert_eq!(name, "8080");
    let all = client.says("get all");
    for object in [
        "pod/backend-",
        "service/backend",
        "deployment.apps/backend",
        "replicaset.apps/backend-",
    ] {
        assert!(all.contains(object), "{object} in {all}");
    }
    let refused = client.refuses("get pod nobody");
    assert_eq!(
        refused,
        "Error from server (NotFound): pods \"nobody\" not found\n"
    );
}

pub fn at_each_kind_in_words(client: &Client) {
    let deployment = client.says("describe deployment backend");
    for part in [
        "3 desired | 3 updated | 3 total | 3 available | 0 unavailable",
        "RollingUpdate",
        "MinimumReplicasAvailable",
        "ScalingReplicaSet",
    ] {
        assert!(deployment.contains(part), "{part} in {deployment}");
    }
    let service = client.says("describe service backend");
    assert!(service.contains("app=backend"), "{service}");
    assert_eq!(service.matches(":8080").count(), 3, "{service}");
    let pods = client.says("describe pods -l app=backend");
    for part in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(pods.contains(part), "{part} in {pods}");
    }
    assert!(!pods.contains("ContainersNotReady"), "{pods}");
}

pub fn at_events_and_schemas(client: &Client) {
    let field = client.says("explain pod.spec.containers.image");
    assert!(field.contains("FIELD: image <string>"), "{field}");
    let kind = client.says("explain deployment");
    for part in ["GROUP:      apps", "spec", "status"] {
        assert!(kind.contains(part), "{part} in {kind}");
    }
    for row in rows(&client.says("api-resources")) {
        // Some have short names, all of them the last three columns.
        let [plural, .., version, _, kind] = row[..] else {
            panic!("{row:?}");
        };
        let explained = client.says(&format!(
            "explain {plural} --api-version={version} --recursive"
        ));
        let head = format!("KIND:       {kind}\n");
        let fields = explained.split_once("FIELDS:");
        assert!(
            explained.contains(&head)
                && fields.is_some_and(|(_, fields)| fields.contains("apiVersion")),
            "{explained}"
        );
    }
    client.begin();
    client.says(&format!("apply -f {}", client.example("backend.yaml")));
    client.says("rollout status deployment backend --timeout=60s");
    let token = client.says("create token default --duration=10m");
    assert_eq!(token.split('.').count(), 3);
    let dump = client.says(&format!(
        "cluster-info dump --namespaces {}",
        client.namespace
    ));
    assert!(dump.contains("==== START logs for container"), "{dump}");
    let events = client.says("events --for deployment/backend");
    assert!(events.contains("ScalingReplicaSet"), "{events}");
    client.end();
}

/// The words of each row under the head of a table.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

/// Whether a row begins with these words.
fn has_row(table: &str, words: &[&str]) -> bool {
    rows(table).iter().any(|row| row.starts_with(words))
}
