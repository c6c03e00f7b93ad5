//! What the API server says, one watch a kind for all controllers of the process, without the fields that none of them reads.

use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, ContainerState, ContainerStateTerminated, Endpoints, Namespace, Node,
    PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, Resource};
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::{endpoints, load_balancer, pods, root_ca, token_secrets};
use crate::auth::bootstrap_token;

/// Where nodes keep their Leases.
pub(super) const NODE_LEASES: &str = "kube-node-lease";

/// Hears of objects that are gone, of whatever kind, by their namespace. Garbage collection sees all of them.
#[derive(Default)]
pub(super) struct Gone(RwLock<Vec<OnGone>>);

type OnGone = Box<dyn Fn(&str) + Send + Sync>;

impl Gone {
    pub(super) fn on(&self, handler: impl Fn(&str) + Send + Sync + 'static) {
        let mut handlers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        handlers.push(Box::new(handler));
    }

    pub(super) fn tell(&self, namespace: &str) {
        let handlers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        handlers.iter().for_each(|handler| handler(namespace));
    }
}

pub(super) struct Caches {
    /// Those that hold a bootstrap token.
    pub(super) bootstrap_tokens: Arc<Cache<Secret>>,
    pub(super) cluster_roles: Arc<Cache<ClusterRole>>,
    pub(super) controller_revisions: Arc<Cache<ControllerRevision>>,
    pub(super) cron_jobs: Arc<Cache<CronJob>>,
    pub(super) csrs: Arc<Cache<CertificateSigningRequest>>,
    pub(super) daemon_sets: Arc<Cache<DaemonSet>>,
    pub(super) deployments: Arc<Cache<Deployment>>,
    pub(super) endpoints: Arc<Cache<Endpoints>>,
    /// Tells when an object of any kind is gone.
    pub(super) gone: Gone,
    pub(super) jobs: Arc<Cache<Job>>,
    pub(super) leases: Arc<Cache<Lease>>,
    /// The one that names the load balancers' addresses.
    pub(super) load_balancer_pools: Arc<Cache<ConfigMap>>,
    pub(super) namespaces: Arc<Cache<Namespace>>,
    pub(super) nodes: Arc<Cache<Node>>,
    pub(super) pod_disruption_budgets: Arc<Cache<PodDisruptionBudget>>,
    pub(super) pods: Arc<Cache<Pod>>,
    /// Who owns them is all that is asked of them.
    pub(super) volume_claims: Arc<Cache<PersistentVolumeClaim>>,
    pub(super) replica_sets: Arc<Cache<ReplicaSet>>,
    pub(super) resource_quotas: Arc<Cache<ResourceQuota>>,
    pub(super) replication_controllers: Arc<Cache<ReplicationController>>,
    /// The ConfigMaps that hold the authority's certificate.
    pub(super) root_cas: Arc<Cache<ConfigMap>>,
    pub(super) service_accounts: Arc<Cache<ServiceAccount>>,
    pub(super) services: Arc<Cache<Service>>,
    pub(super) slices: Arc<Cache<EndpointSlice>>,
    pub(super) stateful_sets: Arc<Cache<StatefulSet>>,
    /// Those that hold a token of a service account.
    pub(super) token_secrets: Arc<Cache<Secret>>,
}

impl Caches {
    pub(super) fn new() -> Self {
        Self {
            bootstrap_tokens: Cache::new(|_| (), None),
            cluster_roles: Cache::new(|_| (), None),
            controller_revisions: Cache::new(|_| (), Some(revision_index)),
            cron_jobs: Cache::new(|_| (), None),
            csrs: Cache::new(|_| (), None),
            daemon_sets: Cache::new(|_| (), None),
            deployments: Cache::new(|_| (), None),
            endpoints: Cache::new(|_| (), None),
            gone: Gone::default(),
            jobs: Cache::new(|_| (), None),
            leases: Cache::new(|_| (), None),
            load_balancer_pools: Cache::new(|_| (), None),
            namespaces: Cache::new(|_| (), None),
            nodes: Cache::new(slim_node, None),
            pod_disruption_budgets: Cache::new(|_| (), None),
            pods: Cache::new(slim_pod, Some(pods::index)),
            volume_claims: Cache::new(slim_volume_claim, None),
            replica_sets: Cache::new(|_| (), None),
            resource_quotas: Cache::new(|_| (), None),
            replication_controllers: Cache::new(|_| (), None),
            root_cas: Cache::new(|_| (), None),
            service_accounts: Cache::new(|_| (), None),
            services: Cache::new(|_| (), Some(endpoints::service_index)),
            slices: Cache::new(|_| (), Some(endpoints::slice_index)),
            stateful_sets: Cache::new(|_| (), None),
            token_secrets: Cache::new(|_| (), None),
        }
    }

    /// Starts to follow the API server. All handlers have to be there by now.
    pub(super) fn start(
        &self,
        client: &kube::Client,
        shutdown: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) {
        follow(
            &self.cluster_roles,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(
            &self.controller_revisions,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(&self.cron_jobs, Api::all(client.clone()), shutdown, tasks);
        follow(&self.csrs, Api::all(client.clone()), shutdown, tasks);
        follow(&self.daemon_sets, Api::all(client.clone()), shutdown, tasks);
        follow(&self.deployments, Api::all(client.clone()), shutdown, tasks);
        follow(&self.endpoints, Api::all(client.clone()), shutdown, tasks);
        follow(&self.jobs, Api::all(client.clone()), shutdown, tasks);
        follow(
            &self.leases,
            Api::namespaced(client.clone(), NODE_LEASES),
            shutdown,
            tasks,
        );
        let one = format!("metadata.name={}", load_balancer::CONFIG_MAP);
        tasks.spawn(self.load_balancer_pools.clone().run_selected(
            Api::namespaced(client.clone(), load_balancer::NAMESPACE),
            watcher::Config::default().fields(&one),
            shutdown.clone(),
        ));
        follow(&self.namespaces, Api::all(client.clone()), shutdown, tasks);
        follow(&self.nodes, Api::all(client.clone()), shutdown, tasks);
        follow(
            &self.pod_disruption_budgets,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(&self.pods, Api::all(client.clone()), shutdown, tasks);
        follow(
            &self.volume_claims,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(
            &self.replica_sets,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(
            &self.resource_quotas,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        follow(
            &self.replication_controllers,
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
        follow(
            &self.stateful_sets,
            Api::all(client.clone()),
            shutdown,
            tasks,
        );
        let named = format!("metadata.name={}", root_ca::NAME);
        tasks.spawn(self.root_cas.clone().run_selected(
            Api::all(client.clone()),
            watcher::Config::default().fields(&named),
            shutdown.clone(),
        ));
        let typed = format!("type={}", bootstrap_token::TYPE);
        tasks.spawn(self.bootstrap_tokens.clone().run_selected(
            Api::namespaced(client.clone(), bootstrap_token::NAMESPACE),
            watcher::Config::default().fields(&typed),
            shutdown.clone(),
        ));
        let typed = format!("type={}", token_secrets::TYPE);
        tasks.spawn(self.token_secrets.clone().run_selected(
            Api::all(client.clone()),
            watcher::Config::default().fields(&typed),
            shutdown.clone(),
        ));
    }

    /// Until everything was listed once. A decision on less could take what is not yet seen for missing.
    pub(super) async fn wait_synced(&self) {
        self.bootstrap_tokens.wait_synced().await;
        self.cluster_roles.wait_synced().await;
        self.controller_revisions.wait_synced().await;
        self.cron_jobs.wait_synced().await;
        self.csrs.wait_synced().await;
        self.daemon_sets.wait_synced().await;
        self.deployments.wait_synced().await;
        self.endpoints.wait_synced().await;
        self.jobs.wait_synced().await;
        self.leases.wait_synced().await;
        self.load_balancer_pools.wait_synced().await;
        self.namespaces.wait_synced().await;
        self.nodes.wait_synced().await;
        self.pod_disruption_budgets.wait_synced().await;
        self.pods.wait_synced().await;
        self.volume_claims.wait_synced().await;
        self.replica_sets.wait_synced().await;
        self.resource_quotas.wait_synced().await;
        self.replication_controllers.wait_synced().await;
        self.root_cas.wait_synced().await;
        self.service_accounts.wait_synced().await;
        self.services.wait_synced().await;
        self.slices.wait_synced().await;
        self.stateful_sets.wait_synced().await;
        self.token_secrets.wait_synced().await;
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
    let manager = pods::controller_of(&pod.metadata);
    // A daemon's affinity says which node it is for.
    let is_daemon = manager.is_some_and(|manager| manager.kind == "DaemonSet");
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        if !is_daemon {
            spec.affinity = None;
        }
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
        status.ephemeral_container_statuses = None;
        let init = status.init_container_statuses.iter_mut().flatten();
        let main = status.container_statuses.iter_mut().flatten();
        for container in init.chain(main) {
            let whole = std::mem::take(container);
            container.name = whole.name;
            container.restart_count = whole.restart_count;
            // How it ended, and when.
            let ended = whole.state.and_then(|state| state.terminated);
            container.state = ended.map(|ended| ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: ended.exit_code,
                    finished_at: ended.finished_at,
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            });
        }
    }
}

/// Revisions are looked for by whose they are.
fn revision_index(revision: &ControllerRevision) -> Vec<String> {
    let owner = pods::controller_of(&revision.metadata);
    owner
        .map(|owner| pods::owned_by(&owner.uid))
        .into_iter()
        .collect()
}

/// None of the controllers writes a claim back whole.
fn slim_volume_claim(claim: &mut PersistentVolumeClaim) {
    claim.spec = None;
    claim.status = None;
}

/// The images are most of a node.
fn slim_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}
