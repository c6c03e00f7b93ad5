//! An image comes from a registry that wants a login.

use std::process::{Child, Command, Stdio};

use kernelet_tests::command::output;
use kernelet_tests::scenario::{Scenario, eventually};
use kernelet_tests::{Spec, debian, host};
use serde_json::json;

use crate::application::REPAIR;

const IMAGE: &str = "localhost:5000/backend:v0.0.1";
/// `kernelet`, `secret`.
const HTPASSWD: &str = "kernelet:$2y$05$JuZgw/SIwjvuyphjKSpnYuDaIcoWuIFkiQVxiYHlzyipIQ92MA1Iq\n";

/// A registry on the worker's loopback.
struct Registry(Child);

impl Registry {
    fn start(scenario: &Scenario) -> Registry {
        let directory = scenario.spec.directory.join("registry");
        host::create_dir(&directory).unwrap();
        host::write(directory.join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: 127.0.0.1:5000}}\nauth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            directory.display()
        );
        let file = directory.join("config.yml");
        host::write(&file, config).unwrap();
        let program = debian::program("docker-registry", "usr/bin/docker-registry").unwrap();
        let mut command = scenario.node("worker-1").unwrap().command(program);
        let child = command
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Registry(child.unwrap())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ctr(scenario: &Scenario) -> Command {
    let worker = scenario.node("worker-1").unwrap();
    let mut command = worker.command("ctr");
    command
        .arg("--address")
        .arg(worker.containerd_socket())
        .args(["--namespace", "k8s.io", "images"]);
    command
}

#[test]
fn an_image_is_pulled_from_a_registry_that_wants_a_login() {
    let Some(scenario) = Scenario::begin(Spec::scenario("kim", 110, 1)) else {
        return;
    };
    let _registry = Registry::start(&scenario);
    let local = "docker.io/library/backend:v0.0.1";
    output(ctr(&scenario).args(["tag", local, IMAGE])).unwrap();
    let login = ["push", "--plain-http", "--user", "kernelet:secret", IMAGE];
    eventually("the registry takes the image", REPAIR, || {
        output(ctr(&scenario).args(login)).map_err(|error| error.to_string())
    });
    output(ctr(&scenario).args(["remove", "--sync", IMAGE])).unwrap();

    let auths =
        json!({"auths": {"localhost:5000": {"username": "kernelet", "password": "secret"}}});
    let literal = format!("--from-literal=.dockerconfigjson={auths}");
    let kind = "--type=kubernetes.io/dockerconfigjson";
    scenario.kubectl_args(&["create", "secret", "generic", "login", kind, &literal]);
    for (name, secrets) in [
        ("stranger", json!([])),
        ("known", json!([{"name": "login"}])),
    ] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"imagePullSecrets": secrets, "containers": [{"name": "backend", "image": IMAGE}]},
        });
        let file = scenario.spec.directory.join("pod.json");
        host::write(&file, pod.to_string()).unwrap();
        scenario.kubectl(&format!("apply -f {}", file.display()));
        if name == "known" {
            scenario.kubectl("wait --for=condition=Ready pod/known --timeout=60s");
            continue;
        }
        eventually("the registry refuses the stranger", REPAIR, || {
            let status = &scenario.get("pod stranger")["status"]["containerStatuses"][0];
            let waiting = &status["state"]["waiting"];
            match waiting["reason"].as_str() {
                Some("ErrImagePull" | "ImagePullBackOff") => Ok(()),
                _ => Err(status.to_string()),
            }
        });
    }
    let events = scenario.kubectl("get events");
    assert!(events.contains("Successfully pulled image"), "{events}");
}
