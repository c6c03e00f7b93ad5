//! What the API server says, one watch a kind for all controllers of the process, without the fields that none of them reads.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::{endpoints, pods};

/// Where nodes keep their Leases.
pub(super) const NODE_LEASES: &str = "kube-node-lease";

pub(super) struct Caches {
    pub(super) csrs: Arc<Cache<CertificateSigningRequest>>,
    pub(super) deployments: Arc<Cache<Deployment>>,
    pub(super) endpoints: Arc<Cache<Endpoints>>,
    pub(super) leases: Arc<Cache<Lease>>,
    pub(super) namespaces: Arc<Cache<Namespace>>,
    pub(super) nodes: Arc<Cache<Node>>,
    pub(super) pods: Arc<Cache<Pod>>,
    pub(super) replica_sets: Arc<Cache<ReplicaSet>>,
    pub(super) service_accounts: Arc<Cache<ServiceAccount>>,
    pub(super) services: Arc<Cache<Service>>,
    pub(super) slices: Arc<Cache<EndpointSlice>>,
}

impl Caches {
    pub(super) fn new() -> Self {
        Self {
            csrs: Cache::new(|_| (), None),
            deployments: Cache::new(|_| (), None),
            endpoints: Cache::new(|_| (), None),
            leases: Cache::new(|_| (), None),
            namespaces: Cache::new(|_| (), None),
            nodes: Cache::new(slim_node, None),
            pods: Cache::new(slim_pod, Some(pods::index)),
            replica_sets: Cache::new(|_| (), None),
            service_accounts: Cache::new(|_| (), None),
            services: Cache::new(|_| (), Some(endpoints::service_index)),
            slices: Cache::new(|_| (), Some(endpoints::slice_index)),
        }
    }

    /// Starts to follow the API server. All handlers have to be there by now.
    pub(super) fn start(
        &self,
        client: &kube::Client,
        shutdown: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) {
        follow(&self.csrs, Api::all(client.clone()), shutdown, tasks);
        follow(&self.deployments, Api::all(client.clone()), shutdown, tasks);
        follow(&self.endpoints, Api::all(client.clone()), shutdown, tasks);
        follow(
            &self.leases,
            Api::namespaced(client.clone(), NODE_LEASES),
            shutdown,
            tasks,
        );
        follow(&self.namespaces, Api::all(client.clone()), shutdown, tasks);
        follow(&self.nodes, Api::all(client.clone()), shutdown, tasks);
        follow(&self.pods, Api::all(client.clone()), shutdown, tasks);
        follow(
            &self.replica_sets,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(
            &self.service_accounts,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(&self.services, Api::all(client.clone()), shutdown, tasks);
        follow(&self.slices, Api::all(client.clone()), shutdown, tasks);
    }

    /// Until everything was listed once. A decision on less could take what is not yet seen for missing.
    pub(super) async fn wait_synced(&self) {
        self.csrs.wait_synced().await;
        self.deployments.wait_synced().await;
        self.endpoints.wait_synced().await;
        self.leases.wait_synced().await;
        self.namespaces.wait_synced().await;
        self.nodes.wait_synced().await;
        self.pods.wait_synced().await;
        self.replica_sets.wait_synced().await;
        self.service_accounts.wait_synced().await;
        self.services.wait_synced().await;
        self.slices.wait_synced().await;
    }
}

fn follow<K>(
    cache: &Arc<Cache<K>>,
    api: Api<K>,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    tasks.spawn(cache.clone().run(api, shutdown.clone()));
}

/// None of the controllers writes a pod back whole.
fn slim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.affinity = None;
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            let ports = container.ports.take();
            let name = std::mem::take(&mut container.name);
            let restart_policy = container.restart_policy.take();
            *container = Default::default();
            (container.name, container.ports, container.restart_policy) =
                (name, ports, restart_policy);
        }
    }
    if let Some(status) = &mut pod.status {
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
        for container in status.container_statuses.iter_mut().flatten() {
            let restart_count = container.restart_count;
            *container = Default::default();
            container.restart_count = restart_count;
        }
    }
}

/// The images are most of a node.
fn slim_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}
