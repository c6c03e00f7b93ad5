//! One file a controller: a pure `reconcile`, and the loop that feeds it and performs what it says.

mod cache;
mod deployment;
mod driver;
mod events;
mod pods;
mod replica_set;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::cache::Cache;

/// How the controllers shall behave.
#[derive(Clone, Debug, Default)]
pub struct ControllersConfig {}

/// What the API server says, one watch a kind.
struct Caches {
    pods: Arc<Cache<Pod>>,
    deployments: Arc<Cache<Deployment>>,
    replica_sets: Arc<Cache<ReplicaSet>>,
}

impl Caches {
    fn new() -> Self {
        Self {
            pods: Cache::new(slim_pod, Some(pods::index)),
            deployments: Cache::new(|_| (), None),
            replica_sets: Cache::new(|_| (), None),
        }
    }

    fn start(&self, client: &kube::Client, shutdown: &CancellationToken, tasks: &mut JoinSet<()>) {
        tasks.spawn(
            self.pods
                .clone()
                .run(Api::all(client.clone()), shutdown.clone()),
        );
        tasks.spawn(
            self.deployments
                .clone()
                .run(Api::all(client.clone()), shutdown.clone()),
        );
        tasks.spawn(
            self.replica_sets
                .clone()
                .run(Api::all(client.clone()), shutdown.clone()),
        );
    }

    async fn wait_synced(&self) {
        self.pods.wait_synced().await;
        self.deployments.wait_synced().await;
        self.replica_sets.wait_synced().await;
    }
}

/// Keeps what controllers read of a pod; none of them writes a pod back whole.
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

/// What every controller works with.
#[derive(Clone)]
struct Context {
    client: kube::Client,
    caches: Arc<Caches>,
    config: Arc<ControllersConfig>,
    shutdown: CancellationToken,
}

/// Runs all controllers until `shutdown`. They survive errors of the API server and start from whatever they find.
pub async fn run(client: kube::Client, config: ControllersConfig, shutdown: CancellationToken) {
    let caches = Arc::new(Caches::new());
    let context = Context {
        client,
        caches,
        config: Arc::new(config),
        shutdown,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(deployment::start(&context));
    tasks.spawn(replica_set::start(&context));
    context
        .caches
        .start(&context.client, &context.shutdown, &mut tasks);
    tasks.join_all().await;
}
