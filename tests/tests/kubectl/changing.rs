//! Commands that change what is there.

use std::time::Duration;

use kernelet_tests::scenario::eventually;

use crate::client::Client;

pub const REPAIR: Duration = Duration::from_secs(60);

pub fn apply_creates_then_changes_then_leaves_alone(client: &Client) {
    let backend = format!("apply -f {}", client.example("backend.yaml"));
    assert_eq!(client.says(&backend), "deployment.apps/backend created\n");
    assert_eq!(client.says(&backend), "deployment.apps/backend unchanged\n");
    let manifest = std::fs::read_to_string(client.example("backend.yaml")).unwrap();
    let two = manifest.replace("replicas: 3", "replicas: 2");
    assert_eq!(
        client.fed("apply -f -", &two),
        "deployment.apps/backend configured\n"
    );
    assert_eq!(
        client.says(&backend),
        "deployment.apps/backend configured\n"
    );
    let service = format!("apply -f {}", client.example("backend-service.yaml"));
    assert_eq!(client.says(&service), "service/backend created\n");
    settled(client);
}

pub fn edit_saves_what_the_editor_wrote(client: &Client) {
    let edit = |editor: &str| {
        let mut command = client.command(&["edit", "deployment", "backend"]);
        let output = command.env("KUBE_EDITOR", editor).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (said, remarked) = edit("sed -i 's/revisionHistoryLimit: .*/revisionHistoryLimit: 7/'");
    assert_eq!(
        (said.as_str(), remarked.as_str()),
        ("deployment.apps/backend edited\n", "")
    );
    assert_eq!(
        client.get("deployment backend")["spec"]["revisionHistoryLimit"],
        7
    );
    let (said, remarked) = edit("true");
    assert_eq!(said + &remarked, "Edit cancelled, no changes made.\n");
}

pub fn patch_takes_three_kinds(client: &Client) {
    let patch = |kind: &str, body: &str| {
        client.says_all(&[
            "patch",
            "deployment",
            "backend",
            &format!("--type={kind}"),
            "-p",
            body,
        ])
    };
    let strategic = r#"{"spec":{"template":{"spec":{"containers":[{"name":"backend","env":[{"name":"ADDED","value":"here"}]}]}}}}"#;
    assert_eq!(
        patch("strategic", strategic),
        "deployment.apps/backend patched\n"
    );
    let env = &client.get("deployment backend")["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(env.as_array().unwrap().len(), 3, "the others stay: {env}");
    assert_eq!(
        patch("merge", r#"{"metadata":{"labels":{"by":"merge"}}}"#),
        "deployment.apps/backend patched\n"
    );
    assert_eq!(
        patch(
            "json",
            r#"[{"op":"remove","path":"/metadata/labels/by"},{"op":"add","path":"/metadata/labels/as","value":"json"}]"#
        ),
        "deployment.apps/backend patched\n"
    );
    let labels = &client.get("deployment backend")["metadata"]["labels"];
    assert_eq!(labels, &serde_json::json!({"as": "json"}));
    // While pods are replaced the status changes between the two objects that kubectl compares.
    settled(client);
    assert_eq!(
        patch("merge", r#"{"metadata":{"labels":{"as":"json"}}}"#),
        "deployment.apps/backend patched (no change)\n"
    );
}

pub fn labels_and_annotations_come_and_go(client: &Client) {
    assert_eq!(
        client.says("label deployment backend tier=back"),
        "deployment.apps/backend labeled\n"
    );
    let found = client.says("get deployments -l tier=back,tier!=front -o name");
    assert_eq!(found, "deployment.apps/backend\n");
    let refused = client.refuses("label deployment backend tier=front");
    assert!(refused.contains("--overwrite is false"), "{refused}");
    client.says("label deployment backend tier-");
    assert_eq!(client.says("get deployments -l tier -o name"), "");
    assert_eq!(
        client.says("annotate deployment backend note=kept"),
        "deployment.apps/backend annotated\n"
    );
    let annotations = &client.get("deployment backend")["metadata"]["annotations"];
    assert_eq!(annotations["note"], "kept");
}

pub fn scale_changes_the_number_of_pods(client: &Client) {
    assert_eq!(
        client.says("scale deployment backend --replicas=1"),
        "deployment.apps/backend scaled\n"
    );
    eventually("one pod is left", REPAIR, || {
        let pods = client.says("get pods -l app=backend -o name");
        if pods.lines().count() == 1 {
            Ok(())
        } else {
            Err(pods)
        }
    });
    let refused = client.refuses("scale deployment backend --replicas=2 --current-replicas=5");
    assert!(
        refused.contains("to be 5") || refused.contains("Expected replicas"),
        "{refused}"
    );
}

pub fn rollouts_go_forth_and_back(client: &Client) {
    let before = revision(client);
    assert_eq!(
        client.says("rollout restart deployment backend"),
        "deployment.apps/backend restarted\n"
    );
    settled(client);
    assert_eq!(revision(client), before + 1);

    let history = client.says("rollout history deployment backend");
    assert!(
        history
            .lines()
            .any(|line| line.starts_with(&(before + 1).to_string())),
        "{history}"
    );
    assert_eq!(
        client.says("set image deployment backend backend=backend:unknown"),
        "deployment.apps/backend image updated\n"
    );
    let refused = client.refuses("rollout status deployment backend --timeout=1s");
    assert!(refused.contains("timed out"), "{refused}");
    assert_eq!(
        client.says("rollout undo deployment backend"),
        "deployment.apps/backend rolled back\n"
    );
    settled(client);
    let deployment = client.get("deployment backend");
    assert_eq!(
        deployment["spec"]["template"]["spec"]["containers"][0]["image"],
        "backend:v0.0.1"
    );
}

fn revision(client: &Client) -> u64 {
    let deployment = client.get("deployment backend");
    let revision = &deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
    revision.as_str().unwrap().parse().unwrap()
}

/// Waits for the rollout, and until no pod of an older one is left to be seen.
fn settled(client: &Client) {
    let said = client.says("rollout status deployment backend --timeout=60s");
    assert!(said.contains("successfully rolled out"), "{said}");
    eventually("the pods are those that are wanted", REPAIR, || {
        let wanted = client.get("deployment backend")["spec"]["replicas"].clone();
        let pods = client.says("get pods -l app=backend --no-headers");
        if pods.lines().count() as u64 == wanted.as_u64().unwrap()
            && pods.lines().all(|pod| pod.contains("Running"))
        {
            Ok(())
        } else {
            Err(pods)
        }
    });
}
