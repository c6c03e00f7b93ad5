//! What a pod may see of its node and of its own name, against a real containerd.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use serde_json::json;

use super::tests::{Node, is_ready, spec};

/// Unmounts a directory, and what is below it, when the test ends.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn tmpfs(path: &Path) -> Mounted {
    fs::create_dir_all(path).unwrap();
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
    Mounted(path.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_the_node_and_of_names_is_there() {
    let Some(node) = Node::new().await else {
        return;
    };
    let directory = node.daemon.path().join("passed");
    let _outer = tmpfs(&directory);
    mount_change(&directory, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir_all(directory.join("later")).unwrap();

    let script = "echo first $(cat /proc/1/comm); echo name $(hostname) $HOSTNAME $(cat /etc/hostname); \
        echo part >/part/file; ls /whole; while [ ! -e /passed/later/file ]; do sleep 0.05; done; echo came; \
        touch /still/later/x || echo kept; sleep 1000";
    let mut pod = spec(script, "Always");
    pod["hostPID"] = json!(true);
    pod["subdomain"] = json!("group");
    pod["setHostnameAsFQDN"] = json!(true);
    pod["volumes"] = json!([
        {"name": "passed", "hostPath": {"path": directory}},
        {"name": "data", "emptyDir": {}},
    ]);
    let main = &mut pod["containers"][0];
    main["env"] = json!([{"name": "PART", "value": "a"}]);
    main["volumeMounts"] = json!([
        {"name": "passed", "mountPath": "/passed", "mountPropagation": "HostToContainer"},
        {"name": "passed", "mountPath": "/still", "readOnly": true, "recursiveReadOnly": "Enabled",
            "mountPropagation": "None"},
        {"name": "data", "mountPath": "/part", "subPathExpr": "of-$(PART)"},
        {"name": "data", "mountPath": "/whole"},
    ]);
    let _agent = node.agent();
    node.api.create("asking", pod);
    node.api.wait("asking", "ready", is_ready).await;
    let first = fs::read_to_string("/proc/1/comm").unwrap();
    node.log("asking", "main", 0, &format!("first {first}"))
        .await;
    let name = "asking.group.default.svc.cluster.local";
    node.log("asking", "main", 0, &format!("name {name} {name} {name}\n"))
        .await;
    node.log("asking", "main", 0, "of-a").await;
    let _inner = tmpfs(&directory.join("later"));
    fs::write(directory.join("later/file"), "").unwrap();
    node.log("asking", "main", 0, "came").await;
    node.log("asking", "main", 0, "kept").await;
    node.api.delete("asking", 1);
    node.api.wait_gone("asking").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_of_the_node_is_refused_with_the_reason() {
    let Some(node) = Node::new().await else {
        return;
    };
    let directory = node.daemon.path().join("private");
    let _mounted = tmpfs(&directory);
    mount_change(&directory, MountPropagationFlags::PRIVATE).unwrap();
    let _agent = node.agent();
    let with = |mount: serde_json::Value| {
        let mut pod = spec("sleep 1000", "Always");
        pod["volumes"] = json!([{"name": "data", "hostPath": {"path": directory}}]);
        pod["containers"][0]["volumeMounts"] = json!([mount]);
        pod
    };
    let passing = json!({"name": "data", "mountPath": "/a", "mountPropagation": "Bidirectional"});
    let nameless = json!({"name": "data", "mountPath": "/a", "subPathExpr": "$(NOBODY)"});
    for (name, mount, reason) in [
        (
            "passing",
            passing,
            "on a mount that the node does not share",
        ),
        ("nameless", nameless, "missing value for \"NOBODY\""),
    ] {
        node.api.create(name, with(mount));
        let status = node.api.wait(name, "refused", |status| {
            let mut all = status.container_statuses.iter().flatten();
            all.any(|it| {
                let waiting = it.state.as_ref().and_then(|state| state.waiting.as_ref());
                let is = |it: &&k8s_openapi::api::core::v1::ContainerStateWaiting| {
                    it.reason.as_deref() == Some("CreateContainerConfigError")
                };
                waiting.filter(is).is_some()
            })
        });
        let status = status.await;
        let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
        let message = state.waiting.unwrap().message.unwrap();
        assert!(message.contains(reason), "{message}");
    }
    let mut long = spec("sleep 1000", "Always");
    long["subdomain"] = json!("s".repeat(40));
    long["setHostnameAsFQDN"] = json!(true);
    node.api.create("long", long);
    node.api
        .wait("long", "refused", |status| {
            let message = status.message.as_deref().unwrap_or_default();
            message.contains("is too long (64 characters is the max")
        })
        .await;
}
