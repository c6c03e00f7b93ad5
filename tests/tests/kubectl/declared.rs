//! Commands of those who keep their objects in files: diff, replace, and apply with its variants.

use kernelet_tests::command::{command, output};
use kernelet_tests::host;
use kernelet_tests::scenario::eventually;

use crate::changing::REPAIR;
use crate::client::Client;

fn map(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{kept-in: files}}}}\ndata: {{key: {value}}}\n"
    )
}

pub fn diff_and_replace_compare_with_what_is_there(client: &Client) {
    let file = client.file("map.yaml");
    let path = file.display();
    host::write(&file, map("one", "before")).unwrap();
    client.says(&format!("apply -f {path}"));
    assert_eq!(client.says(&format!("diff -f {path}")), "");

    host::write(&file, map("one", "after")).unwrap();
    let mut diff = client.command(&["diff", "-f", &path.to_string()]);
    let differs = diff.output().unwrap();
    let shown = String::from_utf8(differs.stdout).unwrap();
    assert_eq!(differs.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("-  key: before") && shown.contains("+  key: after"),
        "{shown}"
    );
    let said = client.says(&format!("replace --save-config -f {path}"));
    assert_eq!(said, "configmap/one replaced\n");
    assert_eq!(client.says(&format!("diff -f {path}")), "");
    let said = client.says(&format!("replace --save-config --force -f {path}"));
    assert!(said.ends_with("configmap/one replaced\n"), "{said}");

    // Who replaced it owns it, so that another value is in its way.
    host::write(&file, map("one", "mine")).unwrap();
    let refused = client.refuses(&format!("apply --server-side --field-manager=me -f {path}"));
    assert!(refused.contains(".data.key"), "{refused}");
    let forced = format!("apply --server-side --field-manager=me --force-conflicts -f {path}");
    assert_eq!(client.says(&forced), "configmap/one serverside-applied\n");
    assert_eq!(client.get("configmap one")["data"]["key"], "mine");
}

pub fn apply_goes_over_to_the_server(client: &Client) {
    client.fed("apply -f -", &map("moved", "before"));
    let said = client.fed("apply --server-side -f -", &map("moved", "after"));
    assert_eq!(said, "configmap/moved serverside-applied\n");
    assert_eq!(client.get("configmap moved")["data"]["key"], "after");
    client.says("delete configmap moved");
}

pub fn certificates_are_signed_when_somebody_approves(client: &Client) {
    let (key, pem) = (client.file("jane.key"), client.file("jane.csr"));
    let line = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=jane/O=devs";
    let mut openssl = command(&format!("openssl {line}"));
    output(openssl.arg("-keyout").arg(&key).arg("-out").arg(&pem)).unwrap();
    let encoded = output(command("base64 -w0").arg(&pem)).unwrap();
    let name = format!("jane-{}", client.namespace);
    let request = serde_json::json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": encoded.trim(), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
        },
    });
    client.fed("create -f -", &request.to_string());
    client.says(&format!("certificate approve {name}"));
    let certificate = eventually("it is signed", REPAIR, || {
        let path = "jsonpath={.status.certificate}";
        let encoded = client.says(&format!("get csr {name} -o {path}"));
        if encoded.is_empty() {
            Err("no".to_owned())
        } else {
            Ok(encoded)
        }
    });
    let file = client.file("jane.crt");
    host::write(client.file("encoded"), certificate).unwrap();
    let decoded = output(command("base64 -d").arg(client.file("encoded"))).unwrap();
    host::write(&file, decoded).unwrap();
    client.says(&format!(
        "config set-credentials jane --client-certificate={} --client-key={}",
        file.display(),
        key.display()
    ));
    let refused = client.refuses("get pods --user=jane");
    assert!(refused.contains("User \"jane\" cannot list"), "{refused}");
    client.says("create rolebinding devs --clusterrole=view --group=devs");
    client.says("get configmaps --user=jane");
    client.says(&format!("delete csr/{name}"));
    client.says("delete rolebinding/devs");
}

/// Debian's kubectl asks for kinds that were only ever beta then.
pub fn apply_prunes_what_is_in_no_file_any_more(client: &Client) {
    let apply = "apply --prune -l kept-in=files --prune-allowlist=core/v1/ConfigMap -f -";
    let both = format!("{}---\n{}", map("one", "a"), map("two", "a"));
    client.fed(apply, &both);
    assert_eq!(
        client.fed(apply, &map("one", "a")),
        "configmap/one unchanged\nconfigmap/two pruned\n"
    );
}

/// An apply set knows by itself what belongs to it.
pub fn apply_sets_prune_too(client: &Client) {
    let namespace = client.namespace;
    let apply = format!("apply --namespace={namespace} --prune --applyset=configmaps/set -f -");
    let both = format!("{}---\n{}", map("in-set", "a"), map("left-out", "a"));
    client.fed(&apply, &both);
    assert_eq!(
        client.fed(&apply, &map("in-set", "a")),
        "configmap/in-set unchanged\nconfigmap/left-out pruned\n"
    );
}

pub fn apply_reaches_the_status_alone(client: &Client) {
    client.says("create deployment parts --image=backend:v0.0.1 --replicas=0");
    let manifest = serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "parts"},
        "spec": {"paused": true}, "status": {"conditions": [{"type": "Mine", "status": "True"}]},
    });
    let apply = "apply --server-side --subresource=status --field-manager=me --validate=false -f -";
    assert_eq!(
        client.fed(apply, &manifest.to_string()),
        "deployment.apps/parts serverside-applied\n"
    );
    let deployment = client.get("deployment parts --show-managed-fields");
    assert!(deployment["spec"]["paused"].is_null(), "{deployment}");
    let conditions = deployment["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["type"] == "Mine"));
    let owners = deployment["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        owners
            .iter()
            .any(|one| one["manager"] == "me" && one["subresource"] == "status")
    );
    client.says("delete deployment parts");
}

pub fn set_changes_one_thing(client: &Client) {
    client.says("create deployment idle --image=backend:v0.0.1 --replicas=0");
    client.says("set env deployment idle A=b");
    client.says("set resources deployment idle --limits=cpu=100m");
    client.says("set serviceaccount deployment idle default");
    let pod = &client.get("deployment idle")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["env"][0]["value"], "b");
    assert_eq!(container["resources"]["limits"]["cpu"], "100m");
    assert_eq!(pod["serviceAccountName"], "default");
    client.says("expose deployment idle --port=80");
    client.says("set selector service idle app=other");
    assert_eq!(
        client.get("service idle")["spec"]["selector"]["app"],
        "other"
    );
    client.says("autoscale deployment idle --max=3");
    client.says("create role reads --verb=get --resource=pods");
    client.says("create rolebinding reads --role=reads --user=one");
    client.says("set subject rolebinding reads --user=two");
    assert_eq!(client.says("auth can-i get pods --as=two"), "yes\n");
    client.says("delete deployment,service,hpa idle --wait=false");
    client.says("delete role,rolebinding reads");
}
