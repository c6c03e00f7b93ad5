//! What a new agent finds, and what goes wrong while one runs, against a real containerd.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::spec::{PodView, container_id, spec_hash};
use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use super::testing::uid;
use super::{Demand, EVICTED, Eviction};
use crate::runtime::testing::busybox_archive;
use crate::runtime::{
    ContainerConfig, NamespacePaths, Resources, Runtime, Security, Stdio, cgroup,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_that_is_gone_takes_no_running_pod_out_of_service() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    node.api
        .put_config_map("settings", json!({"file": "content"}));
    let mut web = spec(FOREVER, "Always");
    web["volumes"] = json!([{"name": "conf", "configMap": {"name": "settings"}}]);
    web["containers"][0]["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}]);
    node.api.create("kept", web);
    node.api.wait("kept", "ready", is_ready).await;

    drop(agent);
    node.api.remove_config_map("settings");
    let mut changes = node.api.changes();
    let _agent = node.agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    while let Ok(change) = changes.try_recv() {
        let status = &change["object"]["status"];
        assert_eq!(status["podIP"], "10.244.1.2", "{status}");
    }

    // Only a container that starts anew needs it.
    let client = node.daemon.client();
    let container = client.list().await.unwrap().remove(0);
    client.signal(&container.id, libc::SIGKILL).await.unwrap();
    node.api
        .wait("kept", "unready", |status| !is_ready(status))
        .await;
    told(
        &node,
        "FailedMount: MountVolume.SetUp failed for volume \"conf\" : configmap \"settings\" not found",
    )
    .await;
    node.api
        .put_config_map("settings", json!({"file": "content"}));
    node.api.wait("kept", "ready again", is_ready).await;
    // What its volumes show is to be read anew, and nobody answers: the pod does not wait for that.
    node.api.set_silent(true);
    node.api.change("kept", |pod| {
        pod["metadata"]["labels"] = json!({"color": "blue"})
    });
    let mut containers = client.list().await.unwrap();
    containers.retain(|container| container.is_running());
    let container = containers.remove(0);
    client.signal(&container.id, libc::SIGKILL).await.unwrap();
    let ended_again = |status: &PodStatus| {
        let mut containers = status.container_statuses.iter().flatten();
        !is_ready(status) || containers.any(|container| container.restart_count > 1)
    };
    node.api.wait("kept", "looked at", ended_again).await;
    node.api.delete("kept", 0);
    node.api.wait_gone("kept").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_containers_leave_nothing_but_the_last_one_and_the_last_status_tells_the_end() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    node.api.create("worn", spec(FOREVER, "Always"));
    node.api.wait("worn", "ready", is_ready).await;
    let client = node.daemon.client();
    let container = client.list().await.unwrap().remove(0);
    client.signal(&container.id, libc::SIGKILL).await.unwrap();
    let restarts = |count| {
        move |status: &PodStatus| {
            let container = status.container_statuses.iter().flatten().next();
            is_ready(status) && container.is_some_and(|c| c.restart_count == count)
        }
    };
    node.api.wait("worn", "restarted", restarts(1)).await;
    let second = node.daemon.path().join("images/two.tar");
    let command = json!({"Entrypoint": ["/bin/sh", "-c"]});
    busybox_archive(&second, "busybox:two", command);
    node.api.change("worn", |pod| {
        pod["spec"]["containers"][0]["image"] = json!("busybox:two");
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    });
    node.api.wait("worn", "of the new image", restarts(2)).await;
    let uid = uid("worn");
    let there = |path: &str| node.daemon.path().join(path).exists();
    for _ in 0..100 {
        if !there(&format!("logs/default_worn_{uid}/main/0.log")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (attempt, kept) in [(0, false), (1, true), (2, true)] {
        let log = format!("logs/default_worn_{uid}/main/{attempt}.log");
        assert_eq!(there(&log), kept, "{log}");
        let words = format!("pods/{uid}/termination-log/main-{attempt}");
        assert_eq!(there(&words), kept, "{words}");
    }

    let mut changes = node.api.changes();
    node.api.delete("worn", 5);
    node.api.wait_gone("worn").await;
    let mut last = json!({});
    while let Ok(change) = changes.try_recv() {
        last = change["object"]["status"].clone();
    }
    assert_eq!(last["phase"], "Succeeded", "{last}");
    let container = &last["containerStatuses"][0];
    assert_eq!(container["state"]["terminated"]["exitCode"], 0, "{last}");
    assert_eq!(container["restartCount"], 2);
    assert_eq!(last["podIP"], "10.244.1.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_worker_died_gets_another() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    node.network.1.store(true, SeqCst);
    node.api.create("again", spec(FOREVER, "Always"));
    node.api.wait("again", "ready", is_ready).await;
    assert!(!node.network.1.load(SeqCst), "the first one did panic");
    node.api.delete("again", 5);
    node.api.wait_gone("again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_name_another_one_has_by_now_goes_quietly() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    node.api.create("renamed", spec(FOREVER, "Always"));
    node.api.wait("renamed", "ready", is_ready).await;
    node.api.delete("renamed", 5);
    node.api.change("renamed", |pod| {
        pod["metadata"]["uid"] = json!(uid("renamed-other"));
    });
    let old = || {
        agent
            .table()
            .list()
            .iter()
            .any(|pod| pod.uid == uid("renamed"))
    };
    for _ in 0..500 {
        if !old() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!old(), "nobody asks for its status any more");
    node.api.wait_gone("renamed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_pods_that_are_gone_are_removed_whatever_else_is_left_of_them() {
    let Some(node) = Node::new().await else {
        return;
    };
    let make = |path: &str| std::fs::create_dir_all(node.daemon.path().join(path)).unwrap();
    for path in [
        "logs/default_both_uid-both/main",
        "pods/uid-both/volumes",
        "logs/default_logs_uid-logs/main",
        "pods/uid-files/volumes",
    ] {
        make(path);
    }
    // Nobody's: what it belongs to cannot be told.
    make("logs/a_b_");
    let _agent = node.agent();
    let others = node.daemon.path().join("logs/a_b_").display().to_string();
    for _ in 0..500 {
        if node.left_on_disk() == [others.clone()] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", node.left_on_disk());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_share_the_cpu_by_their_requests_and_keep_within_their_limits() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    let create = |name: &str, resources: serde_json::Value| {
        let mut asking = spec(FOREVER, "Always");
        asking["containers"][0]["resources"] = resources;
        node.api.create(name, asking);
    };
    create("one", json!({"requests": {"cpu": "500m"}}));
    let limits = json!({"cpu": "250m", "memory": "64Mi"});
    create(
        "two",
        json!({"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": limits}),
    );
    create("three", json!({"limits": limits}));
    create("none", json!({}));
    for name in ["one", "two", "three", "none"] {
        node.api.wait(name, "ready", is_ready).await;
    }
    let read = |path: &str| {
        let cgroup = node.daemon.cgroup();
        let cgroup = cgroup.strip_prefix("/").unwrap();
        let found = cgroup::mounted().into_iter().find_map(|hierarchy| {
            let file = hierarchy.mount.join(cgroup).join("kubepods").join(path);
            std::fs::read_to_string(file).ok()
        });
        found.map(|text| text.trim().to_owned())
    };
    // A machine has the one or the other.
    let either = |directory: &str, files: [&str; 2]| {
        let [first, second] = files.map(|file| read(&format!("{directory}/{file}")));
        first.or(second).unwrap_or_default()
    };
    let of = |name: &str| format!("pod{}", uid(name));
    let weight = |directory: &str| either(directory, ["cpu.shares", "cpu.weight"]);
    assert!(["512", "20"].contains(&&*weight(&format!("burstable/{}", of("one")))));
    assert!(["768", "30"].contains(&&*weight("burstable")));
    assert!(["256", "10"].contains(&&*weight(&of("three"))));
    assert!(["2", "1"].contains(&&*weight("besteffort")));
    assert!(["2", "1"].contains(&&*weight(&format!("besteffort/{}", of("none")))));
    // As a whole: its container has no limit of its own.
    let mut whole = spec(FOREVER, "Always");
    whole["resources"] =
        json!({"limits": {"cpu": "500m", "memory": "48Mi"}, "requests": {"cpu": "100m"}});
    node.api.create("whole", whole);
    node.api.wait("whole", "ready", is_ready).await;
    let whole = format!("burstable/{}", of("whole"));
    let id = container_id(&uid("whole"), "main", 0);
    for directory in [whole.clone(), format!("{whole}/{id}")] {
        let quota = either(&directory, ["cpu.cfs_quota_us", "cpu.max"]);
        assert!(["50000", "50000 100000"].contains(&&*quota), "{quota}");
        let bytes = either(&directory, ["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(bytes, (48 << 20).to_string());
    }
    node.api.delete("whole", 5);
    node.api.wait_gone("whole").await;
    // What its class adds is the pod's, and none of its containers'.
    let mut heavy = spec(FOREVER, "Always");
    heavy["overhead"] = json!({"cpu": "250m", "memory": "32Mi"});
    heavy["containers"][0]["resources"] = json!({"limits": limits});
    node.api.create("heavy", heavy);
    node.api.wait("heavy", "ready", is_ready).await;
    assert!(["512", "20"].contains(&&*weight(&of("heavy"))));
    let own = format!("{}/{}", of("heavy"), container_id(&uid("heavy"), "main", 0));
    for (directory, micros, mebibytes) in [(of("heavy"), "50000", 96), (own, "25000", 64)] {
        let quota = either(&directory, ["cpu.cfs_quota_us", "cpu.max"]);
        assert_eq!(quota.split(' ').next(), Some(micros), "{directory}");
        let bytes = either(&directory, ["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(bytes, (mebibytes << 20).to_string(), "{directory}");
    }
    node.api.delete("heavy", 5);
    node.api.wait_gone("heavy").await;
    let two = format!("burstable/{}", of("two"));
    let quota = either(&two, ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(["25000", "25000 100000"].contains(&&*quota), "{quota}");
    let bytes = either(&two, ["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(bytes, (64 << 20).to_string());

    // Resized in place: the container runs on, and an agent that begins anew finds nothing left to do.
    let before = node.pids().await;
    let ask = |name: &str, cpu: &str, memory: &str| {
        let limits = json!({"cpu": cpu, "memory": memory});
        node.api.change(name, |pod| {
            pod["spec"]["containers"][0]["resources"]["limits"] = limits;
        });
    };
    let has = |status: &PodStatus, cpu: &str, memory: &str| {
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let resources = json!(container.resources);
        let mut conditions = status.conditions.iter().flatten();
        resources["limits"] == json!({"cpu": cpu, "memory": memory})
            && !conditions.any(|it| it.type_.starts_with("PodResize"))
    };
    ask("two", "500m", "96Mi");
    let resized = |status: &PodStatus| has(status, "500m", "96Mi");
    let status = node.api.wait("two", "resized", resized).await;
    let allocated = json!(status.container_statuses.unwrap()[0].allocated_resources);
    assert_eq!(allocated, json!({"cpu": "250m", "memory": "32Mi"}));
    let id = super::spec::container_id(&uid("two"), "main", 0);
    for directory in [two.clone(), format!("{two}/{id}")] {
        let quota = either(&directory, ["cpu.cfs_quota_us", "cpu.max"]);
        assert!(["50000", "50000 100000"].contains(&&*quota), "{quota}");
        let bytes = either(&directory, ["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(bytes, (96 << 20).to_string());
    }
    drop(agent);
    let _agent = node.agent();
    assert_eq!(node.pids().await, before);
    // What it takes notice of at its start only.
    node.api.change("two", |pod| {
        let policy = json!({"resourceName": "memory", "restartPolicy": "RestartContainer"});
        pod["spec"]["containers"][0]["resizePolicy"] = json!([policy]);
    });
    ask("two", "500m", "80Mi");
    node.api
        .wait("two", "restarted with less", |status| {
            let restarts = status.container_statuses.as_ref().unwrap()[0].restart_count;
            has(status, "500m", "80Mi") && restarts == 1 && is_ready(status)
        })
        .await;
    let bytes = either(&two, ["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(bytes, (80 << 20).to_string());

    node.api.delete("one", 5);
    node.api.wait_gone("one").await;
    assert!(["256", "10"].contains(&&*weight("burstable")));
    for name in ["two", "three", "none"] {
        node.api.delete(name, 5);
        node.api.wait_gone(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_half_made_is_made_anew() {
    let Some(node) = Node::new().await else {
        return;
    };
    let torn = spec(FOREVER, "Never");
    node.api.create("torn", torn);
    let pod = PodView::new(node.api.pod("torn").unwrap()).unwrap();
    let id = container_id(&pod.id.uid, "main", 0);
    let config = ContainerConfig {
        id: id.clone(),
        pod: pod.id.clone(),
        name: "main".into(),
        attempt: 0,
        streak: 0,
        spec_hash: spec_hash(&pod.containers()[0]),
        handler: None,
        image: Some("busybox:test".into()),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        namespaces: NamespacePaths::default(),
        cgroup: node.daemon.cgroup(),
        resources: Resources::default(),
        huge_pages: Default::default(),
        given: String::new(),
        oom_score_adj: 0,
        sysctls: Default::default(),
        security: Security::default(),
        stdio: Stdio::default(),
        stop_signal: None,
        hook_due: false,
    };
    let client = node.daemon.client();
    let images = node.daemon.path().join("images/busybox.tar");
    client.import(&images).await.unwrap();
    client.create(&config).await.unwrap();
    // As if the agent had been killed before it made the root.
    node.daemon.remove_root(&id);

    let _agent = node.agent();
    let status = node.api.wait("torn", "ready", is_ready).await;
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.restart_count, 0, "nothing of it ever ran");
    node.api.delete("torn", 5);
    node.api.wait_gone("torn").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_pod_fails_whatever_becomes_of_its_agent_and_leaves_nothing_but_its_status() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    let mut hungry = spec(FOREVER, "Always");
    hungry["volumes"] = json!([{"name": "cache", "emptyDir": {}}]);
    hungry["containers"][0]["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
    node.api.create("hungry", hungry);
    node.api.wait("hungry", "ready", is_ready).await;
    let volume = node
        .daemon
        .path()
        .join(format!("pods/{}/volumes/cache", uid("hungry")));
    assert!(volume.is_dir());
    let message = "The node was low on resource: memory. ";
    let eviction = Eviction {
        reason: EVICTED,
        message: message.to_owned(),
        by: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2),
    };
    let demand = Demand::Evict {
        uid: uid("hungry"),
        eviction,
    };
    assert!(agent.demands().ask(demand).await);
    let is_evicted = |status: &PodStatus| {
        status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some("Evicted")
    };
    node.api.wait("hungry", "evicted", is_evicted).await;
    // At whatever step that was.
    drop(agent);
    let agent = node.agent();
    assert!(agent.demands().ask(Demand::ShutDown(true)).await);
    node.api.create("late-again", spec(FOREVER, "Always"));
    let is_late = |status: &PodStatus| {
        let told = (status.phase.as_deref(), status.reason.as_deref());
        told == (Some("Failed"), Some("NodeShutdown"))
    };
    node.api.wait("late-again", "refused", is_late).await;
    for _ in 0..500 {
        let left = node.daemon.client().list().await.unwrap();
        if left.is_empty() && !volume.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(node.daemon.client().list().await.unwrap(), []);
    assert!(!volume.exists());
    let status = node.api.pod("hungry").unwrap().status.unwrap();
    assert!(is_evicted(&status), "{status:?}");
    assert_eq!(status.message.as_deref(), Some(message));
    assert!(status.container_statuses.unwrap()[0].state.is_some());
    told(&node, &format!("Evicted: {message}")).await;
    for pod in ["hungry", "late-again"] {
        node.api.delete(pod, 0);
        node.api.wait_gone(pod).await;
    }
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_hooks_and_a_token_ends_as_it_should_though_agents_are_killed_meanwhile() {
    let Some(node) = Node::new().await else {
        return;
    };
    node.api
        .put_config_map("kube-root-ca.crt", json!({"ca.crt": "authority"}));
    let mut pod = spec(FOREVER, "Always");
    pod["serviceAccountName"] = json!("robot");
    pod["terminationGracePeriodSeconds"] = json!(60);
    pod["volumes"] = json!([
        {"name": "account", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ]}},
        {"name": "notes", "emptyDir": {}},
    ]);
    pod["containers"][0]["volumeMounts"] = json!([
        {"name": "account", "mountPath": "/account"}, {"name": "notes", "mountPath": "/notes"},
    ]);
    let note = |word: &str| json!({"exec": {"command": ["/bin/sh", "-c", word]}});
    pod["containers"][0]["lifecycle"] = json!({
        "postStart": note("test -s /account/token && cat /account/ca.crt >/notes/started"),
        "preStop": note("echo stopping >>/notes/stopped; while ! test -e /notes/go; do sleep 0.05; done"),
    });
    node.api.create("careful", pod);
    let notes = node
        .daemon
        .path()
        .join(format!("pods/{}/volumes/notes", uid("careful")));
    let eventually = async |file: &str| {
        for _ in 0..750 {
            if let Ok(text) = std::fs::read_to_string(notes.join(file)) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        panic!("{file} does not come");
    };
    let agent = node.agent();
    node.api.wait("careful", "ready", is_ready).await;
    drop(agent);
    let agent = node.agent();
    eventually("started").await;

    // Killed while its preStop hook runs, and again: the next one runs it anew, and the pod ends as it should.
    node.api.delete("careful", 60);
    eventually("stopped").await;
    drop(agent);
    let agent = node.agent();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(agent);
    std::fs::write(notes.join("go"), "").unwrap();
    let _agent = node.agent();
    node.api.wait_gone("careful").await;
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
    assert_eq!(node.daemon.client().list().await.unwrap(), []);
}
