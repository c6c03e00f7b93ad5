//! Controllers and scheduler at work on the real API server, in one process over an embedded store. Only the nodes are
//! played: they hold their Lease, start what is bound to them, and stop what is deleted.

mod daemons;
mod edges;
mod jobs;
mod load_balancers;
mod quotas;
mod stateful;
mod stories;
mod workloads;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, ResourceExt};
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Accounts, ControllersConfig, Signer};
use crate::api::{local_client, router, testing};
use crate::auth::csr::sign_csr;
use crate::auth::tokens::{Authority, Keys};
use crate::auth::{MASTERS, User};
use crate::scheduler::{self, SchedulerConfig};

/// Long enough for a busy machine; a story that works waits far less.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    client: kube::Client,
    router: axum::Router,
    shutdown: CancellationToken,
    /// Nodes that gave up.
    silent: Arc<Mutex<BTreeSet<String>>>,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    async fn new(nodes: &[&str]) -> Self {
        Self::with_pods_in("10.244.0.0/16", nodes).await
    }

    async fn with_pods_in(ranges: &str, nodes: &[&str]) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let (api, pki) = testing::start(dir.path()).await;
        let keys = Keys::open(&dir.path().join("pki")).unwrap();
        let accounts = Accounts {
            authority: "the authority".to_owned(),
            tokens: Arc::new(Authority::new(keys, testing::ISSUER.to_owned())),
        };
        let router = router(api);
        let admin = User::authenticated("admin", [MASTERS.to_owned()]);
        let cluster = Self {
            client: local_client(router.clone(), admin),
            router,
            shutdown: CancellationToken::new(),
            silent: Arc::default(),
            _dir: dir,
        };
        for node in nodes {
            cluster.join(node).await;
        }
        let signer: Signer = Arc::new(move |request, now| sign_csr(&pki.ca, request, now));
        let mut config = ControllersConfig::new(ranges.parse().unwrap(), accounts, signer);
        config.service_ranges = vec![testing::SERVICES.parse().unwrap()];
        config.node_grace_period = Duration::from_secs(4);
        config.orphan_quarantine = Duration::from_millis(200);
        cluster.start(config);
        cluster
    }

    fn start(&self, config: ControllersConfig) {
        let controllers = local_client(self.router.clone(), User::controller_manager());
        tokio::spawn(super::run(controllers, config, self.shutdown.clone()));
        let scheduler = local_client(self.router.clone(), User::scheduler());
        tokio::spawn(scheduler::run(
            scheduler,
            SchedulerConfig::default(),
            self.shutdown.clone(),
        ));
        tokio::spawn(play_kubelets(
            self.client.clone(),
            self.silent.clone(),
            self.shutdown.clone(),
        ));
    }

    async fn join(&self, name: &str) {
        let api: Api<Node> = self.cluster_wide();
        let has = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": format!("zone-{name}")}},
        }))
        .unwrap();
        let made = api.create(&PostParams::default(), &node).await.unwrap();
        node.metadata = made.metadata;
        let status = json!({"status": {
            "capacity": has, "allocatable": has,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()}],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
        }});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
        self.silent.lock().unwrap().remove(name);
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let (client, silent, shutdown) = (leases, self.silent.clone(), self.shutdown.clone());
        let (name, nodes) = (name.to_owned(), api);
        tokio::spawn(async move {
            while !shutdown.is_cancelled() && !silent.lock().unwrap().contains(&name) {
                renew(&client, &name).await;
                report_ready(&nodes, &name).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    fn silence(&self, node: &str) {
        self.silent.lock().unwrap().insert(node.to_owned());
    }

    fn cluster_wide<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn default_namespace<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn apply<K>(&self, object: serde_json::Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.default_namespace()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }
}

fn now() -> serde_json::Value {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    json!(now.to_string())
}

/// A node that was taken to be gone, and is not, says so.
async fn report_ready(nodes: &Api<Node>, name: &str) {
    let Ok(node) = nodes.get(name).await else {
        return;
    };
    let conditions = node
        .status
        .unwrap_or_default()
        .conditions
        .unwrap_or_default();
    if conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
    {
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": now(), "lastTransitionTime": now()});
        let status = json!({"status": {"conditions": [ready]}});
        let _ = nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
            .await;
    }
}

async fn renew(api: &Api<Lease>, name: &str) {
    let mut lease = Lease::default();
    lease.metadata.name = Some(name.to_owned());
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(name.to_owned()),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    });
    let patch = json!({"spec": lease.spec});
    if api
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .is_err()
    {
        let _ = api.create(&PostParams::default(), &lease).await;
    }
}

/// Waits until `check` gives something.
async fn until<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let started = tokio::time::Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn list<K>(api: &Api<K>, labels: &str) -> Vec<K>
where
    K: Clone + DeserializeOwned + Debug,
{
    api.list(&ListParams::default().labels(labels))
        .await
        .unwrap()
        .items
}

/// What all nodes' kubelets would do.
async fn play_kubelets(
    client: kube::Client,
    silent: Arc<Mutex<BTreeSet<String>>>,
    shutdown: CancellationToken,
) {
    let events = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default());
    let mut events = std::pin::pin!(events);
    let mut host = 1_u32;
    while !shutdown.is_cancelled() {
        let Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) =
            events.next().await
        else {
            continue;
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let name = pod.name_any();
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            continue;
        };
        if silent.lock().unwrap().contains(&node) {
            continue;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api
                .delete(&name, &DeleteParams::default().grace_period(0))
                .await;
        } else if pod
            .status
            .as_ref()
            .is_none_or(|status| status.pod_ip.is_none())
        {
            host += 1;
            let ip = format!("10.244.{}.{}", host / 250, host % 250 + 2);
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let (phase, ready, code) = match container.image.as_deref() {
                Some("broken") => ("Running", "False", None),
                Some("done") => ("Succeeded", "False", Some(0)),
                Some("fails") => ("Failed", "False", Some(1)),
                _ => ("Running", "True", None),
            };
            let ended = code.map(|code| {
                let state = json!({"terminated": {"exitCode": code, "finishedAt": now()}});
                json!({"name": container.name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
            });
            let status = json!({"status": {
                "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now()}],
                "containerStatuses": ended.into_iter().collect::<Vec<_>>(),
            }});
            let _ = api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(status))
                .await;
        }
    }
}
