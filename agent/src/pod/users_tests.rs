//! Pods with users of their own, against a real containerd.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

use super::testing::node::{Node, is_ready, spec};
use super::testing::uid;
use crate::network::namespaces::IdRange;
use crate::runtime::{ContainerState, Runtime};

/// What a pod says of its users, and what it does with files.
const SCRIPT: &str = "echo map $(cat /proc/self/uid_map); echo image $(busybox stat -c %u:%g /bin/busybox /data /given/old); \
    echo groups $(id -G); echo mine >/data/new; busybox chown 5:6 /data/new; echo mine >/given/new; echo mine >/root-file; \
    busybox mknod /node c 1 3 || echo no node; echo by name >/dev/stdout; hostname other && echo named; \
    echo users $(cat /etc/passwd | grep -c app) $(busybox stat -c %u:%g /etc/passwd); echo labels $(cat /labels/labels); echo image $(busybox stat -c %u:%g /files/bin/busybox); \
    echo end >/dev/termination-log; sleep 1000";

fn own(script: &str) -> Value {
    let mut pod = spec(script, "Always");
    pod["hostUsers"] = json!(false);
    pod
}

fn first_id(node: &Node, pod: &str) -> u32 {
    let path = node
        .daemon
        .path()
        .join("pods")
        .join(uid(pod))
        .join("userns");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn owners(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

async fn pid(node: &Node, pod: &str, container: &str) -> u32 {
    let all = node.daemon.client().list().await.unwrap();
    let mut own = all
        .iter()
        .filter(|it| it.pod.name == pod && it.name == container);
    let running = own.find_map(|it| match it.state {
        ContainerState::Running { pid } => Some(pid),
        _ => None,
    });
    running.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_users_of_its_own_shares_files_and_images_and_no_ids() {
    let Some(node) = Node::new().await else {
        return;
    };
    // Roots are reached through it.
    let below = node.daemon.path();
    fs::set_permissions(below, fs::Permissions::from_mode(0o711)).unwrap();
    let given = below.join("given");
    fs::create_dir_all(&given).unwrap();
    fs::write(given.join("old"), "").unwrap();
    chown(given.join("old"), Some(7), Some(8)).unwrap();

    let agent = node.agent();
    let mut pod = own(SCRIPT);
    pod["securityContext"] = json!({"fsGroup": 2000});
    pod["volumes"] = json!([
        {"name": "data", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "given", "hostPath": {"path": given}},
        {"name": "files", "image": {"reference": "busybox:test"}},
        {"name": "labels", "projected": {"sources": [
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        ]}},
    ]);
    let main = &mut pod["containers"][0];
    main["securityContext"] = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    main["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/data", "subPath": "part"},
        {"name": "memory", "mountPath": "/memory"},
        {"name": "given", "mountPath": "/given"},
        {"name": "files", "mountPath": "/files"},
        {"name": "labels", "mountPath": "/labels"},
    ]);
    node.api.create("own", pod);
    let mut sharing = own("echo sees $(cat /proc/1/comm); sleep 1000");
    sharing["shareProcessNamespace"] = json!(true);
    node.api.create("sharing", sharing);
    let plain = "echo map $(cat /proc/self/uid_map); echo image $(busybox stat -c %u:%g /bin/busybox); sleep 1000";
    node.api.create("plain", spec(plain, "Always"));
    for name in ["own", "sharing", "plain"] {
        node.api.wait(name, "ready", is_ready).await;
    }

    // As the pod sees it.
    let first = first_id(&node, "own");
    assert!(first >= IdRange::SIZE);
    node.log("own", "main", 0, &format!("map 0 {first} 65536\n"))
        .await;
    node.log("own", "main", 0, "image 0:0 0:2000 7:8\n").await;
    node.log("own", "main", 0, "groups 0 2000\n").await;
    node.log("own", "main", 0, "no node\n").await;
    node.log("own", "main", 0, "by name\n").await;
    node.log("own", "main", 0, "named\n").await;
    // Of the image's second layer.
    node.log("own", "main", 0, "users 1 0:0\n").await;
    node.log("own", "main", 0, "labels own\n").await;
    node.log("own", "main", 0, "image 0:0\n").await;
    node.log("plain", "main", 0, "map 0 0 4294967295\n").await;
    node.log("plain", "main", 0, "image 0:0\n").await;
    node.log("sharing", "main", 0, "sees holder\n").await;

    // As the node does.
    let part = below
        .join("pods")
        .join(uid("own"))
        .join("volumes/data/part");
    assert_eq!(owners(&part.join("new")), (5, 6));
    assert_eq!(owners(&given.join("new")), (0, 0));
    assert_eq!(owners(&given.join("old")), (7, 8));
    let process = pid(&node, "own", "main").await;
    assert_eq!(
        owners(Path::new(&format!("/proc/{process}"))),
        (first, first)
    );
    let root_file = format!("/proc/{process}/root/root-file");
    assert_eq!(owners(Path::new(&root_file)), (first, first));
    let ids = ["own", "sharing"].map(|name| first_id(&node, name));
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>().len(), 2);
    let holder = pid(&node, "sharing", "POD").await;
    let nobody = ids[1] + 65535;
    assert_eq!(
        owners(Path::new(&format!("/proc/{holder}"))),
        (nobody, nobody)
    );
    let command = |text: &str| ["/bin/sh", "-c", text].map(str::to_owned);
    let containers = node.daemon.client().list().await.unwrap();
    let main = containers.iter().find(|it| it.pod.name == "own").unwrap();
    let client = node.daemon.client();
    let look = command("id -u; cat /data/new");
    let ran = client.exec(&main.id, &look, std::time::Duration::from_secs(30));
    assert_eq!(ran.await.unwrap().output, "0\nmine\n");

    // Another agent finds them as they are, gives nobody theirs, and starts a container anew in the same.
    drop(agent);
    let before = node.pids().await;
    let _agent = node.agent();
    node.api.create("later", own("sleep 1000"));
    node.api.wait("later", "ready", is_ready).await;
    assert!(!ids.contains(&first_id(&node, "later")));
    let after = node.pids().await;
    assert!(before.iter().all(|pid| after.contains(pid)));
    client.signal(&main.id, libc::SIGKILL).await.unwrap();
    node.log("own", "main", 1, &format!("map 0 {first} 65536\n"))
        .await;
    node.log("own", "main", 1, "by name\n").await;
    let restarted = |status: &PodStatus| {
        let mut all = status.container_statuses.iter().flatten();
        all.any(|it| it.restart_count == 1) && is_ready(status)
    };
    let status = node.api.wait("own", "restarted", restarted).await;
    let last = status.container_statuses.unwrap()[0].last_state.clone();
    assert_eq!(
        last.unwrap().terminated.unwrap().message.as_deref(),
        Some("end\n")
    );

    let mut sharing = own("sleep 1000");
    sharing["hostNetwork"] = json!(true);
    node.api.create("shared", sharing);
    let told = "Failed to create pod sandbox: hostUsers: false goes with none of hostNetwork, hostPID and hostIPC";
    let waits = |status: &PodStatus| status.message.as_deref() == Some(told);
    node.api.wait("shared", "refused", waits).await;
    let mut foreign = own("sleep 1000");
    foreign["securityContext"] = json!({"runAsUser": 70000});
    node.api.create("beyond", foreign);
    let waits = |status: &PodStatus| {
        json!(status.container_statuses)
            .to_string()
            .contains("user or group 70000 is not in the pod's user namespace")
    };
    node.api.wait("beyond", "refused", waits).await;

    for name in ["own", "sharing", "plain", "later", "shared", "beyond"] {
        node.api.delete(name, 1);
    }
    for name in ["own", "sharing", "plain", "later", "shared", "beyond"] {
        node.api.wait_gone(name).await;
    }
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
    let scratch = fs::read_dir(below).unwrap().flatten();
    let mut names = scratch.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert_eq!(names.find(|name| name.starts_with("layers-")), None);
    assert_eq!(owners(&given.join("old")), (7, 8));
}
