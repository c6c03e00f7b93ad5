//! Disks that are full, and volumes that vanish below their pods, against a real containerd.

use std::fs::{self, File};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::PodStatus;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use super::testing::uid;
use crate::runtime::Runtime;

/// A file system of its own for a directory, which is small and goes with this.
pub(super) struct Disk(PathBuf);

impl Disk {
    /// Of so many KiB and files.
    pub(super) fn new(path: PathBuf, kib: u32, files: u32) -> Disk {
        fs::create_dir_all(&path).unwrap();
        let options = std::ffi::CString::new(format!("size={kib}k,nr_inodes={files}")).unwrap();
        let none = MountFlags::empty();
        mount("tmpfs", &path, "tmpfs", none, Some(options.as_c_str())).unwrap();
        Disk(path)
    }

    /// Makes as many files as there can be.
    fn fill(&self) {
        let fillers = self.0.join("fillers");
        fs::create_dir(&fillers).unwrap();
        let mut numbers = 0..100_000;
        let full = numbers.find(|number| File::create(fillers.join(number.to_string())).is_err());
        assert!(full.is_some(), "{} does not fill up", self.0.display());
    }

    fn free(&self) {
        fs::remove_dir_all(self.0.join("fillers")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

const NO_SPACE: &str = "no space left on device";

/// Waits until a pod's container waits for this reason, and an Event says that the disk is full.
async fn waits_for_space(node: &Node, name: &str, reason: &str, event: &str) {
    let waits = |status: &PodStatus| {
        let container = status.container_statuses.as_ref().map(|all| all[0].clone());
        let waiting = container.and_then(|it| it.state?.waiting?.reason);
        waiting.as_deref() == Some(reason)
    };
    node.api.wait(name, reason, waits).await;
    for _ in 0..500 {
        let is_told =
            |text: &String| text.starts_with(event) && text.to_lowercase().contains(NO_SPACE);
        if node.api.events().iter().any(is_told) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("no {event:?} of a full disk: {:#?}", node.api.events());
}

fn with_volume(script: &str, source: (&str, Value), path: &str) -> Value {
    let mut pod = spec(script, "Always");
    let (kind, source) = source;
    pod["volumes"] = json!([{"name": "data", kind: source}]);
    pod["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": path}]);
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_pod_waits_with_the_reason_and_no_other_notices() {
    let Some(node) = Node::new().await else {
        return;
    };
    let place = |name: &str| node.daemon.path().join(name);
    let snapshots = "root/io.containerd.snapshotter.v1.overlayfs/snapshots";
    let layers = Disk::new(place(snapshots), 64 << 10, 400);
    let pods = Disk::new(place("pods"), 256, 200);
    let logs = Disk::new(place("logs"), 64, 200);
    let agent = node.agent();
    node.api.create("spared", spec(FOREVER, "Always"));
    node.api.wait("spared", "ready", is_ready).await;

    // No room for a container's root.
    layers.fill();
    node.api.create("rootless", spec(FOREVER, "Always"));
    waits_for_space(&node, "rootless", "CreateContainerError", "Failed: Error: ").await;
    layers.free();
    node.api.wait("rootless", "ready with room", is_ready).await;

    // None for the files of a pod, nor for the contents of its volume.
    pods.fill();
    node.api.create("fileless", spec(FOREVER, "Always"));
    waits_for_space(
        &node,
        "fileless",
        "ContainerCreating",
        "FailedCreatePodSandBox: ",
    )
    .await;
    pods.free();
    node.api.wait("fileless", "ready with room", is_ready).await;
    node.api
        .put_config_map("large", json!({"file": "x".repeat(512 << 10)}));
    let source = ("configMap", json!({"name": "large"}));
    node.api
        .create("voluminous", with_volume(FOREVER, source, "/data"));
    waits_for_space(&node, "voluminous", "ContainerCreating", "FailedMount: ").await;
    node.api.delete("voluminous", 0);
    node.api.wait_gone("voluminous").await;

    // None for logs: what is written is lost, and who writes it goes on.
    let notes = place("notes");
    let script = "yes | head -c 1048576; echo done >/notes/done; sleep 1000";
    let source = ("hostPath", json!({"path": notes}));
    node.api
        .create("talkative", with_volume(script, source, "/notes"));
    eventually("the talkative one is done", || notes.join("done").exists()).await;

    let status = node.api.pod("spared").unwrap().status.unwrap();
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!((is_ready(&status), container.restart_count), (true, 0));
    for name in ["spared", "rootless", "fileless", "talkative"] {
        node.api.delete(name, 0);
        node.api.wait_gone(name).await;
    }
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
    assert_eq!(node.daemon.client().list().await.unwrap(), []);
    drop((agent, pods, logs));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_vanishes_is_made_anew_or_waited_for() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    let host = node.daemon.path().join("host");
    fs::create_dir(&host).unwrap();
    let script = format!("echo >/data/began; {FOREVER}");
    let host_path = json!({"path": host, "type": "Directory"});
    let pods = [
        ("scratch", ("emptyDir", json!({}))),
        ("hosted", ("hostPath", host_path)),
    ];
    for (name, source) in pods {
        node.api.create(name, with_volume(&script, source, "/data"));
        node.api.wait(name, "ready", is_ready).await;
    }
    let client = node.daemon.client();
    let before = client.list().await.unwrap();
    let scratch = node
        .daemon
        .path()
        .join(format!("pods/{}/volumes/data", uid("scratch")));
    eventually("both began", || {
        [&scratch, &host].iter().all(|it| it.join("began").exists())
    })
    .await;
    for volume in [&scratch, &host] {
        fs::remove_dir_all(volume).unwrap();
    }
    let status = node.api.pod("scratch").unwrap().status.unwrap();
    assert!(is_ready(&status), "who has it goes on");

    // Only what starts anew needs it.
    for container in &before {
        client.signal(&container.id, libc::SIGKILL).await.unwrap();
    }
    let restarted = |status: &PodStatus| {
        let container = &status.container_statuses.as_ref().unwrap()[0];
        is_ready(status) && container.restart_count == 1
    };
    node.api.wait("scratch", "restarted", restarted).await;
    eventually("it is there again", || scratch.join("began").exists()).await;
    let text = "FailedMount: MountVolume.SetUp failed for volume \"data\" : hostPath ";
    told(&node, text).await;
    let hosted = node.api.pod("hosted").unwrap().status.unwrap();
    assert!(!is_ready(&hosted));
    fs::create_dir(&host).unwrap();
    node.api.wait("hosted", "restarted", restarted).await;
    for name in ["scratch", "hosted"] {
        node.api.delete(name, 0);
        node.api.wait_gone(name).await;
    }
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..750 {
        if is_so() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
    }
    panic!("not within 30 s: {what}");
}
