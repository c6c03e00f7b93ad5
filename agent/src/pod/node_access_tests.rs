//! What a pod may see of its node and of its own name, against a real containerd.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodStatus;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use serde_json::json;

use super::testing::node::{MAX_PIDS, Node, is_ready, spec};
use crate::runtime::cgroup;
use crate::runtime::testing::OTHER_RUNTIME;

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
    let status = node.api.wait("asking", "ready", is_ready).await;
    let shown = json!(status.container_statuses.unwrap()[0].volume_mounts);
    assert_eq!(
        shown[1],
        json!({"name": "passed", "mountPath": "/still", "readOnly": true, "recursiveReadOnly": "Enabled"})
    );
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
async fn what_a_privileged_container_mounts_the_node_sees_and_pods_that_ask_for_it() {
    let Some(node) = Node::new().await else {
        return;
    };
    let directory = node.daemon.path().join("shared");
    let _outer = tmpfs(&directory);
    mount_change(&directory, MountPropagationFlags::SHARED).unwrap();
    let inner = directory.join("inner");
    fs::create_dir_all(&inner).unwrap();
    let _agent = node.agent();
    let create = |name: &str, script: &str, propagation: &str| {
        let mut pod = spec(script, "Always");
        pod["volumes"] = json!([{"name": "shared", "hostPath": {"path": directory}}]);
        let main = &mut pod["containers"][0];
        main["securityContext"] = json!({"privileged": propagation == "Bidirectional"});
        main["volumeMounts"] = json!([
            {"name": "shared", "mountPath": "/shared", "mountPropagation": propagation},
        ]);
        node.api.create(name, pod);
    };
    let look = "while [ ! -e /shared/done ]; do sleep 0.05; done; echo sees $(ls /shared/inner); \
        while [ -e /shared/done ]; do sleep 0.05; done; echo then $(ls /shared/inner); sleep 1000";
    for (name, propagation) in [("receiving", "HostToContainer"), ("secluded", "None")] {
        create(name, look, propagation);
        node.api.wait(name, "ready", is_ready).await;
    }
    // It has the node's devices, too.
    let script = "test -c /dev/kmsg && mount -t tmpfs tmpfs /shared/inner && echo >/shared/inner/file && echo >/shared/done; \
        while [ ! -e /shared/undo ]; do sleep 0.05; done; \
        busybox umount /shared/inner && busybox rm /shared/done; sleep 1000";
    create("mounting", script, "Bidirectional");
    node.log("receiving", "main", 0, "sees file\n").await;
    node.log("secluded", "main", 0, "sees\n").await;
    assert!(inner.join("file").exists(), "the node sees it");
    fs::write(directory.join("undo"), "").unwrap();
    node.log("receiving", "main", 0, "then\n").await;
    assert!(!inner.join("file").exists(), "nor is it there for anyone");
    for name in ["mounting", "receiving", "secluded"] {
        node.api.delete(name, 1);
    }
    for name in ["mounting", "receiving", "secluded"] {
        node.api.wait_gone(name).await;
    }
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

/// Who a container is, with what it runs, and how it is asked to stop.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_is_to_be_it_is() {
    let Some(node) = Node::new().await else {
        return;
    };
    let passed = node.daemon.path().join("passed");
    fs::create_dir_all(&passed).unwrap();
    fs::set_permissions(&passed, fs::Permissions::from_mode(0o777)).unwrap();
    let script = "trap 'touch /passed/asked; exit 0' USR1; echo groups $(id -G); \
        while :; do sleep 0.05; done";
    let mut pod = spec(script, "Always");
    pod["os"] = json!({"name": "linux"});
    pod["runtimeClassName"] = json!(OTHER_RUNTIME);
    pod["securityContext"] = json!({"runAsUser": 1001, "supplementalGroups": [4000]});
    pod["volumes"] = json!([{"name": "passed", "hostPath": {"path": passed}}]);
    let main = &mut pod["containers"][0];
    main["lifecycle"] = json!({"stopSignal": "SIGUSR1"});
    main["volumeMounts"] = json!([{"name": "passed", "mountPath": "/passed"}]);
    let _agent = node.agent();
    node.api.create("particular", pod.clone());
    pod["securityContext"]["supplementalGroupsPolicy"] = json!("Strict");
    node.api.create("strict", pod);

    let status = node.api.wait("particular", "ready", is_ready).await;
    let main = &status.container_statuses.unwrap()[0];
    assert_eq!(main.stop_signal.as_deref(), Some("SIGUSR1"));
    let user =
        json!({"linux": {"uid": 1001, "gid": 1002, "supplementalGroups": [1002, 1004, 4000]}});
    assert_eq!(json!(main.user), user);
    node.log("particular", "main", 0, "groups 1002 1004 4000\n")
        .await;
    node.log("strict", "main", 0, "groups 1002 4000\n").await;
    // Another that joins its processes finds it as the first of them.
    let look = json!({"name": "look", "image": "busybox:test", "targetContainerName": "main",
        "args": ["grep -q 'exit [0]' /proc/1/cmdline && echo joined"]});
    node.api.change("strict", |pod| {
        pod["spec"]["ephemeralContainers"] = json!([look])
    });
    node.log("strict", "look", 0, "joined").await;
    let used = format!("{OTHER_RUNTIME}.used");
    assert!(node.daemon.path().join(used).exists());
    let uid = super::testing::uid("particular");
    let below = node
        .daemon
        .cgroup()
        .join(format!("kubepods/besteffort/pod{uid}/pids.max"));
    let below = below.strip_prefix("/").unwrap();
    let hierarchies = cgroup::mounted().into_iter();
    let limits: Vec<_> = hierarchies
        .filter_map(|hierarchy| fs::read_to_string(hierarchy.mount.join(below)).ok())
        .collect();
    assert_eq!(limits, [format!("{MAX_PIDS}\n")]);

    node.api.delete("particular", 30);
    node.api.wait_gone("particular").await;
    assert!(passed.join("asked").exists());
    node.api.delete("strict", 1);
    node.api.wait_gone("strict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_is_not_it_tells() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    let with = |field: &str, value: serde_json::Value| {
        let mut pod = spec("sleep 1000", "Always");
        pod[field] = value;
        pod
    };
    let profile = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    for (name, pod, reason, message) in [
        (
            "armoured",
            with("securityContext", profile),
            "AppArmor",
            "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host",
        ),
        (
            "elsewhere",
            with("nodeSelector", json!({"disk": "ssd"})),
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            "foreign",
            with("os", json!({"name": "windows"})),
            "PodOSNotSupported",
            "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS",
        ),
    ] {
        node.api.create(name, pod);
        let is_over = |status: &PodStatus| status.phase.as_deref() == Some("Failed");
        let status = node.api.wait(name, "refused", is_over).await;
        assert_eq!(status.reason.as_deref(), Some(reason));
        assert_eq!(status.message.as_deref(), Some(message));
    }
    for (name, pod, message) in [
        (
            "classless",
            with("runtimeClassName", json!("absent")),
            "failed to get sandbox runtime: runtimeclass.node.k8s.io \"absent\" not found",
        ),
        (
            "unhandled",
            with("runtimeClassName", json!("kata")),
            "failed to get sandbox runtime: no runtime for \"kata\" is configured",
        ),
    ] {
        node.api.create(name, pod);
        let told = format!("Failed to create pod sandbox: {message}");
        let waits = |status: &PodStatus| status.message.as_ref() == Some(&told);
        let status = node.api.wait(name, "refused", waits).await;
        assert_eq!(status.phase.as_deref(), Some("Pending"));
    }
}
