//! The pod half against a real containerd, with a small API server in the test's process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

use super::testing::{FakeApi, uid};
use super::{Manager, Paths, PodTable, Settings};
use crate::cluster::{Cluster, ObjectKey, Protocol, Service, ServicePort};
use crate::dns::resolv_conf::{ClusterDns, ResolvConf};
use crate::network::{NetworkError, PodNetwork};
use crate::runtime::testing::{Daemon, busybox_archive};
use crate::runtime::{ContainerState, Runtime};

/// Connects nothing; hands out addresses in order and remembers who has one. Panics once if the flag is set.
#[derive(Default)]
pub(super) struct FakeNetwork(pub(super) Mutex<Vec<String>>, pub(super) AtomicBool);

#[async_trait::async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, pod_uid: &str, _netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        assert!(!self.1.swap(false, SeqCst), "a panic that a test asked for");
        let mut attached = self.0.lock().unwrap();
        if !attached.iter().any(|uid| uid == pod_uid) {
            attached.push(pod_uid.to_owned());
        }
        let at = attached.iter().position(|uid| uid == pod_uid).unwrap();
        Ok(vec![format!("10.244.1.{}", at + 2).parse().unwrap()])
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        self.0.lock().unwrap().retain(|uid| uid != pod_uid);
        Ok(())
    }
}

/// More than any pod of these tests has.
pub(super) const MAX_PIDS: u64 = 1234;

pub(super) struct Node {
    pub(super) daemon: Daemon,
    pub(super) api: FakeApi,
    pub(super) network: Arc<FakeNetwork>,
}

impl Node {
    pub(super) async fn new() -> Option<Node> {
        let daemon = Daemon::start().await?;
        let images = daemon.path().join("images");
        std::fs::create_dir_all(&images).unwrap();
        let command = json!({"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["sleep 1000"]});
        busybox_archive(&images.join("busybox.tar"), "busybox:test", command);
        Some(Node {
            daemon,
            api: FakeApi::new(),
            network: Arc::default(),
        })
    }

    /// A new agent, which knows nothing of earlier ones.
    pub(super) fn agent(&self) -> Manager {
        Manager::start(
            self.api.client(),
            self.settings(),
            Arc::new(self.daemon.client()),
            self.network.clone(),
            PodTable::default(),
        )
    }

    pub(super) fn settings(&self) -> Settings {
        let cluster = Cluster::default();
        cluster.update(|view| {
            let service = Service {
                cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                ports: vec![ServicePort {
                    name: "https".into(),
                    protocol: Protocol::Tcp,
                    port: 443,
                    node_port: None,
                }],
                ..Service::default()
            };
            let key = ObjectKey::new("default", "kubernetes");
            view.set_service(key, Some(service)).into_iter().collect()
        });
        cluster.set_synced();
        Settings {
            node_name: "node-1".into(),
            host_addresses: vec!["192.0.2.1".parse().unwrap()],
            paths: Paths::new(
                self.daemon.path().into(),
                self.daemon.path().join("run"),
                self.daemon.cgroup(),
            ),
            file_check: Duration::from_millis(200),
            static_pods: Some(self.daemon.path().join("manifests")),
            allocatable: BTreeMap::new(),
            app_armor: false,
            pod_max_pids: Some(MAX_PIDS),
            allowed_sysctls: Vec::new(),
            cluster,
            dns: Arc::new(|| ClusterDns {
                addresses: vec!["10.244.1.1".parse().unwrap()],
                domain: "cluster.local".into(),
                node: ResolvConf::default(),
            }),
        }
    }

    pub(super) async fn pids(&self) -> Vec<u32> {
        let containers = self.daemon.client().list().await.unwrap();
        let pid = |state: &ContainerState| match state {
            ContainerState::Running { pid } => Some(*pid),
            _ => None,
        };
        containers
            .iter()
            .filter_map(|container| pid(&container.state))
            .collect()
    }

    pub(super) fn left_on_disk(&self) -> Vec<String> {
        [
            "run/netns",
            "run/ipc",
            "run/uts",
            "run/mounts",
            "pods",
            "logs",
        ]
        .iter()
        .flat_map(|dir| {
            std::fs::read_dir(self.daemon.path().join(dir))
                .into_iter()
                .flatten()
                .flatten()
        })
        .map(|entry| entry.path().display().to_string())
        .collect()
    }

    pub(super) async fn log(
        &self,
        pod: &str,
        container: &str,
        attempt: u32,
        wanted: &str,
    ) -> String {
        let path = self.daemon.path().join(format!(
            "logs/default_{pod}_{}/{container}/{attempt}.log",
            uid(pod)
        ));
        for _ in 0..250 {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.contains(wanted) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "{wanted:?} is not in {}: {:?}",
            path.display(),
            std::fs::read_to_string(&path)
        );
    }
}

pub(super) fn spec(script: &str, policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "main", "image": "busybox:test", "args": [script]}],
    })
}

pub(super) fn is_ready(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn waiting(status: &PodStatus) -> Option<String> {
    let container = status.container_statuses.as_ref()?.first()?;
    container.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

pub(super) const FOREVER: &str =
    "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";

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
                cat /accounts/group; touch /image/new || echo not-written; touch /all/x || echo read-only; /image/bin/true || echo not-run; id -u; cat /sys/x"],
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

pub(super) async fn told(node: &Node, text: &str) {
    for _ in 0..250 {
        if node
            .api
            .events()
            .iter()
            .any(|event| event.starts_with(text))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{text:?} is not among {:#?}", node.api.events());
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
