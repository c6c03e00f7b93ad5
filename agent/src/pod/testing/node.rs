//! A node of a test's own: the pod half, a real containerd, and an API server in the test's process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

use super::{FakeApi, uid};
use crate::cluster::{Cluster, ObjectKey, Protocol, Service, ServicePort};
use crate::dns::resolv_conf::{ClusterDns, ResolvConf};
use crate::network::{NetworkError, PodNetwork};
use crate::pod::{Manager, Paths, PodTable, Settings};
use crate::runtime::testing::{Daemon, busybox_archive};
use crate::runtime::{ContainerState, Runtime};

/// Connects nothing; hands out addresses in order and remembers who has one. Panics once if the flag is set.
#[derive(Default)]
pub(in crate::pod) struct FakeNetwork(
    pub(in crate::pod) Mutex<Vec<String>>,
    pub(in crate::pod) AtomicBool,
);

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
pub(in crate::pod) const MAX_PIDS: u64 = 1234;

pub(in crate::pod) struct Node {
    pub(in crate::pod) daemon: Daemon,
    pub(in crate::pod) api: FakeApi,
    pub(in crate::pod) network: Arc<FakeNetwork>,
}

impl Node {
    pub(in crate::pod) async fn new() -> Option<Node> {
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
    pub(in crate::pod) fn agent(&self) -> Manager {
        Manager::start(
            self.api.client(),
            self.settings(),
            Arc::new(self.daemon.client()),
            self.network.clone(),
            PodTable::default(),
        )
    }

    pub(in crate::pod) fn settings(&self) -> Settings {
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

    pub(in crate::pod) async fn pids(&self) -> Vec<u32> {
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

    pub(in crate::pod) fn left_on_disk(&self) -> Vec<String> {
        [
            "run/netns",
            "run/ipc",
            "run/uts",
            "run/userns",
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

    pub(in crate::pod) async fn log(
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

pub(in crate::pod) fn spec(script: &str, policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "main", "image": "busybox:test", "args": [script]}],
    })
}

pub(in crate::pod) fn is_ready(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(in crate::pod) const FOREVER: &str =
    "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";

pub(in crate::pod) async fn told(node: &Node, text: &str) {
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
