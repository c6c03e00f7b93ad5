//! The pod half against a real containerd, with a small API server in the test's process.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use crate::runtime::Runtime;
use crate::runtime::testing::busybox_archive;

fn waiting(status: &PodStatus) -> Option<String> {
    let container = status.container_statuses.as_ref()?.first()?;
    container.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_survives_its_agent_and_goes_without_a_trace() {
    let Some(mut node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    node.api.create("web", spec(FOREVER, "Always"));
    let status = node.api.wait("web", "ready", is_ready).await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.2"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let table = agent.table().list();
    assert_eq!((table[0].name.as_str(), table[0].ready), ("web", true));
    node.log("web", "main", 0, "up").await;
    let before = node.pids().await;

    drop(agent);
    let mut changes = node.api.changes();
    let agent = node.agent();
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.daemon.restart().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.pids().await, before, "the container ran on");
    let status = node.api.pod("web").unwrap().status.unwrap();
    assert!(is_ready(&status));
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    while let Ok(change) = changes.try_recv() {
        let status = &change["object"]["status"];
        assert_eq!(
            status["podIP"], "10.244.1.2",
            "its address never went: {status}"
        );
    }

    // What the control plane says of the pods of a node that was silent.
    node.api.change("web", |pod| {
        let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
        for condition in conditions
            .iter_mut()
            .filter(|condition| condition["type"] == "Ready")
        {
            condition["status"] = json!("False");
        }
    });
    node.api.wait("web", "ready again", is_ready).await;

    node.api.delete("web", 5);
    node.api.wait_gone("web").await;
    assert_eq!(node.pids().await, Vec::<u32>::new());
    assert_eq!(node.daemon.client().list().await.unwrap(), []);
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
    assert!(node.network.0.lock().unwrap().is_empty());
    assert!(agent.table().list().is_empty());
    for text in [
        "Created: Created container: main",
        "Started: Started container main",
        "Killing: Stopping container main",
    ] {
        assert!(
            node.api.events().iter().any(|event| event == text),
            "{text}: {:#?}",
            node.api.events()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fails_is_restarted_and_then_waits() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    node.api.create(
        "crash",
        spec(
            "echo try; echo because >/dev/termination-log; exit 7",
            "Always",
        ),
    );
    let status = node
        .api
        .wait("crash", "waiting", |status| {
            waiting(status).as_deref() == Some("CrashLoopBackOff")
        })
        .await;
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.restart_count, 1, "the first restart is immediate");
    let last = container
        .last_state
        .as_ref()
        .unwrap()
        .terminated
        .as_ref()
        .unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (7, Some("Error")));
    assert_eq!(last.message.as_deref(), Some("because\n"));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    node.api.delete("crash", 0);
    node.api.wait_gone("crash").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projected_volume_holds_a_token_and_follows_its_sources() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    node.api
        .put_config_map("kube-root-ca.crt", json!({"ca.crt": "first"}));
    let mut pod = spec(
        "cat /account/token /account/namespace; echo; stat -L -c %a /account/token; \
         while :; do cat /account/ca.crt /labels/all; echo; sleep 0.05; done",
        "Always",
    );
    pod["serviceAccountName"] = json!("robot");
    pod["volumes"] = json!([
        {"name": "account", "projected": {"defaultMode": 0o444, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]}},
        {"name": "labels", "downwardAPI": {"items": [{"path": "all", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]);
    pod["containers"][0]["volumeMounts"] = json!([
        {"name": "account", "mountPath": "/account", "readOnly": true},
        {"name": "labels", "mountPath": "/labels"},
    ]);
    node.api.create("projected", pod);
    node.api.wait("projected", "ready", is_ready).await;
    let log = node.log("projected", "main", 0, "first").await;
    assert!(
        log.contains("token-1-of-robot-for-projecteddefault"),
        "{log}"
    );
    assert!(log.contains("F 444\n"), "{log}");

    // A change of the pod has its volumes looked at, which would otherwise be so after a minute.
    node.api
        .put_config_map("kube-root-ca.crt", json!({"ca.crt": "second"}));
    node.api.change("projected", |pod| {
        pod["metadata"]["labels"] = json!({"color": "green"});
    });
    node.log("projected", "main", 0, "second").await;
    node.log("projected", "main", 0, "color=\"green\"").await;
    node.api.delete("projected", 0);
    node.api.wait_gone("projected").await;
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_come_first_and_a_finished_pod_succeeds() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    node.api
        .put_config_map("settings", json!({"greeting": "hello", "file": "content"}));
    node.api.create("job", json!({
        "restartPolicy": "Never",
        "nodeName": "node-1",
        "subdomain": "web",
        "setHostnameAsFQDN": true,
        "volumes": [{"name": "shared", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "settings"}},
            {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "image", "image": {"reference": "busybox:test", "pullPolicy": "Never"}}],
        "initContainers": [{
            "name": "first", "image": "busybox:test",
            "args": ["echo made > /shared/file; echo in-memory > /dev/shm/first"],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }],
        "containers": [{
            "name": "main", "image": "busybox:test",
            "args": ["cat /shared/file /conf/file /etc/hosts /dev/shm/first; hostname; echo $GREETING $IP $ME; \
                echo api $KUBERNETES_SERVICE_HOST $API; \
                echo sub-path > /sub/file && cat /shared/a/b/file; mount | grep /fast; \
                cat /accounts/group; touch /image/new || echo not-written; touch /all/x || echo read-only; /image/bin/true || echo not-run; busybox unshare -U true || echo not-apart; busybox linux64 -R true || echo as-it-is; id -u; cat /sys/x"],
            "env": [
                {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "greeting"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "ME", "value": "<$(NAME)>"},
                {"name": "API", "value": "<$(KUBERNETES_SERVICE_PORT)>"},
                {"name": "PART", "value": "a"},
            ],
            "securityContext": {"runAsUser": 1001, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}, {"name": "conf", "mountPath": "/conf"},
                {"name": "shared", "mountPath": "/sub", "subPathExpr": "$(PART)/b", "readOnly": false},
                {"name": "shared", "mountPath": "/all", "readOnly": true, "recursiveReadOnly": "Enabled"}, {"name": "fast", "mountPath": "/fast"},
                {"name": "image", "mountPath": "/image"}, {"name": "image", "mountPath": "/accounts", "subPath": "etc"}],
        }],
    }));
    let status = node
        .api
        .wait("job", "failed", |status| {
            status.phase.as_deref() == Some("Failed")
        })
        .await;
    let log = node.log("job", "main", 0, "1001").await;
    for text in [
        "made",
        "content",
        "10.244.1.2\tjob",
        "hello 10.244.1.2 <job>",
        "in-memory",
        "api 10.96.0.1 <443>",
        "F sub-path",
        "size=1024k",
        "team:x:1003",
        "not-written",
        "read-only",
        "F job.web.default.svc.cluster.local\n",
        "not-run",
        "not-apart",
        "as-it-is",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert_eq!(
        status.init_container_statuses.unwrap()[0]
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap()
            .reason
            .as_deref(),
        Some("Completed")
    );
    assert_eq!(
        status.pod_ip.as_deref(),
        Some("10.244.1.2"),
        "a finished pod keeps its address in the status"
    );

    // With the node's processes: this one is among them.
    let mut good = spec(&format!("test -d /proc/{}", std::process::id()), "Never");
    good["hostPID"] = json!(true);
    node.api.create("good", good);
    let status = node
        .api
        .wait("good", "succeeded", |status| {
            status.phase.as_deref() == Some("Succeeded")
        })
        .await;
    assert!(!is_ready(&status));
    for pod in ["job", "good"] {
        node.api.delete(pod, 0);
        node.api.wait_gone(pod).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_honoured_is_refused_with_a_reason() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    let mut unmasked = spec("true", "Always");
    unmasked["containers"][0]["securityContext"] = json!({"procMount": "Unmasked"});
    node.api.create("unmasked", unmasked);
    let status = node
        .api
        .wait("unmasked", "refused", |status| {
            waiting(status).as_deref() == Some("CreateContainerConfigError")
        })
        .await;
    assert_eq!(status.phase.as_deref(), Some("Pending"));

    let mut missing = spec("true", "Always");
    missing["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "absent"}}]);
    node.api.create("missing", missing);
    node.api
        .wait("missing", "refused", |status| {
            waiting(status).as_deref() == Some("CreateContainerConfigError")
        })
        .await;

    let mut never = spec("true", "Always");
    never["containers"][0]["image"] = json!("absent:v1");
    never["containers"][0]["imagePullPolicy"] = json!("Never");
    node.api.create("never", never);
    node.api
        .wait("never", "without image", |status| {
            waiting(status).as_deref() == Some("ErrImageNeverPull")
        })
        .await;

    // Of a volume's image: only the container that has it waits.
    let mut data = spec("test -s /data/etc/passwd && sleep 1000", "Always");
    data["volumes"] =
        json!([{"name": "data", "image": {"reference": "absent:v1", "pullPolicy": "Never"}}]);
    let mut other = data["containers"][0].clone();
    other["name"] = json!("other");
    other["args"] = json!([FOREVER]);
    data["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    data["containers"].as_array_mut().unwrap().push(other);
    let mut lost = data.clone();
    lost["volumes"][0]["image"]["reference"] = json!("busybox:test");
    lost["containers"][0]["volumeMounts"][0]["subPath"] = json!("no/such");
    for (name, spec, reason) in [
        ("data", data, "ErrImageNeverPull"),
        ("lost", lost, "CreateContainerConfigError"),
    ] {
        node.api.create(name, spec);
        let waits = |status: &PodStatus| {
            let containers = status.container_statuses.iter().flatten();
            let others = containers.skip(1).filter_map(|it| it.state.as_ref());
            waiting(status).as_deref() == Some(reason)
                && others.into_iter().all(|state| state.running.is_some())
        };
        node.api.wait(name, reason, waits).await;
    }
    told(
        &node,
        "Failed: Error: volume \"data\": subPath no/such: No such file or directory",
    )
    .await;

    busybox_archive(
        &node.daemon.path().join("images/late.tar"),
        "absent:v1",
        json!({"Entrypoint": ["/bin/sleep"], "Cmd": ["1000"]}),
    );
    node.api.change("never", |pod| {
        pod["spec"]["containers"][0]["args"] = json!(["1000"])
    });
    node.api
        .wait("never", "ready once the image was dropped in", is_ready)
        .await;
    node.api
        .wait("data", "ready with its image", is_ready)
        .await;

    let mut broken = spec("true", "Never");
    broken["containers"][0]["command"] = json!(["/no/such"]);
    node.api.create("broken", broken);
    let status = node
        .api
        .wait("broken", "failed", |status| {
            status.phase.as_deref() == Some("Failed")
        })
        .await;
    let end = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (end.exit_code, end.reason.as_deref()),
        (128, Some("StartError"))
    );
    for pod in ["unmasked", "missing", "never", "data", "lost", "broken"] {
        node.api.delete(pod, 0);
        node.api.wait_gone(pod).await;
    }
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_restart_without_the_api_and_orphans_go_after_it_is_back() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    node.api.create("alone", spec(FOREVER, "Always"));
    node.api.create("orphan", spec(FOREVER, "Always"));
    for pod in ["alone", "orphan"] {
        node.api.wait(pod, "ready", is_ready).await;
    }
    node.api.set_away(true);
    let before = node.pids().await;
    for container in node.daemon.client().list().await.unwrap() {
        if container.pod.name == "alone" {
            node.daemon
                .client()
                .signal(&container.id, libc::SIGKILL)
                .await
                .unwrap();
        }
    }
    node.log("alone", "main", 1, "up").await;
    assert_eq!(node.pids().await.len(), 2);
    drop(agent);

    // While no agent runs and the API is away, one pod is removed.
    node.api.remove("orphan");
    let _agent = node.agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let during = node.pids().await;
    assert_eq!(
        during.len(),
        2,
        "nothing is concluded from an API that does not answer"
    );
    assert!(during.iter().any(|pid| before.contains(pid)));
    node.api.set_away(false);
    let begun = Instant::now();
    while node.pids().await.len() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = node
        .api
        .wait("alone", "restarted once", |status| {
            status
                .container_statuses
                .as_ref()
                .is_some_and(|list| list[0].restart_count == 1)
        })
        .await;
    assert!(is_ready(&status));
    node.api.delete("alone", 0);
    node.api.wait_gone("alone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_when_a_pod_is_ready_and_when_a_container_restarts() {
    let Some(node) = Node::new().await else {
        return;
    };
    let agent = node.agent();
    let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = web.local_addr().unwrap().port();
    let (code, answers) = tokio::sync::watch::channel("503 No");
    tokio::spawn(answer_all(web, answers));
    let mut probed = spec(script, "Always");
    probed["containers"][0]["startupProbe"] =
        json!({"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1});
    probed["containers"][0]["readinessProbe"] = json!({
        "httpGet": {"host": "127.0.0.1", "port": port, "path": "/ready"},
        "periodSeconds": 1, "failureThreshold": 1,
    });
    probed["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["/bin/sh", "-c", "test ! -e /dead"]},
        "periodSeconds": 1, "failureThreshold": 1,
    });
    node.api.create("probed", probed);
    node.api
        .wait("probed", "started and not ready", |status| {
            let container = status.container_statuses.iter().flatten().next();
            container.is_some_and(|c| c.started == Some(true) && !c.ready) && !is_ready(status)
        })
        .await;
    told(
        &node,
        "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 503",
    )
    .await;
    code.send_replace("200 OK");
    node.api.wait("probed", "ready", is_ready).await;

    drop(agent);
    let mut changes = node.api.changes();
    let _agent = node.agent();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    while let Ok(change) = changes.try_recv() {
        let status = &change["object"]["status"];
        assert_eq!(
            status["containerStatuses"][0]["ready"], true,
            "a new agent does not doubt it: {status}"
        );
    }
    code.send_replace("500 No");
    node.api
        .wait("probed", "unready", |status| !is_ready(status))
        .await;
    code.send_replace("302 Elsewhere");
    node.api.wait("probed", "ready again", is_ready).await;

    let client = node.daemon.client();
    let container = client.list().await.unwrap().remove(0);
    let touch = ["/bin/sh", "-c", ": > /dead"].map(str::to_owned);
    let done = client
        .exec(&container.id, &touch, Duration::from_secs(5))
        .await;
    assert_eq!(done.unwrap().code, 0);
    node.api
        .wait("probed", "ready after a restart", |status| {
            let container = status.container_statuses.iter().flatten().next();
            is_ready(status) && container.is_some_and(|c| c.restart_count == 1)
        })
        .await;
    told(&node, "Unhealthy: Liveness probe failed: ").await;
    told(
        &node,
        "Killing: Container main failed liveness probe, will be restarted",
    )
    .await;
    node.api.delete("probed", 0);
    node.api.wait_gone("probed").await;
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
}

/// A web server that gives everyone the same answer.
async fn answer_all(
    web: tokio::net::TcpListener,
    code: tokio::sync::watch::Receiver<&'static str>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    while let Ok((mut stream, _)) = web.accept().await {
        let answer = format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", *code.borrow());
        let mut request = [0; 1024];
        if matches!(stream.read(&mut request).await, Ok(length) if length > 0) {
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    let told = node.daemon.path().join("told");
    std::fs::create_dir(&told).unwrap();
    let tell = |what: &str| json!({"exec": {"command": ["/bin/sh", "-c", format!("echo > /told/{what}")]}});
    let mut hooked = spec("sleep 1000", "Always");
    hooked["volumes"] = json!([{"name": "told", "hostPath": {"path": told}}]);
    hooked["containers"][0]["volumeMounts"] = json!([{"name": "told", "mountPath": "/told"}]);
    hooked["containers"][0]["lifecycle"] =
        json!({"postStart": tell("started"), "preStop": tell("stopping")});
    node.api.create("hooked", hooked);
    node.api.wait("hooked", "ready", is_ready).await;
    for _ in 0..500 {
        if told.join("started").exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(told.join("started").exists());
    assert!(!told.join("stopping").exists());

    let mut failing = spec("sleep 1000", "Never");
    failing["containers"][0]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["/bin/false"]}}});
    failing["terminationGracePeriodSeconds"] = json!(0);
    node.api.create("failing", failing);
    let ended = |status: &PodStatus| status.phase.as_deref() == Some("Failed");
    node.api.wait("failing", "stopped by its hook", ended).await;
    let events = node.api.events();
    assert!(
        events
            .iter()
            .any(|event| event.contains("FailedPostStartHook")),
        "{events:#?}"
    );
    // The hook needs a moment, which a grace period of zero would not leave it.
    node.api.delete("hooked", 5);
    node.api.wait_gone("hooked").await;
    assert!(told.join("stopping").exists());
    node.api.delete("failing", 0);
    node.api.wait_gone("failing").await;
}
