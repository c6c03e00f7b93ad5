//! One file a controller: a pure `reconcile`, and the loop that feeds it and performs what it says.

pub(crate) mod cache;
mod caches;
mod deployment;
mod driver;
mod endpoints;
pub(crate) mod events;
mod pods;
mod replica_set;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::caches::Caches;

/// How the controllers shall behave.
#[derive(Clone, Debug, Default)]
pub struct ControllersConfig {}

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
    tasks.spawn(endpoints::start(&context));
    // Only now, so that each controller hears of every object.
    context
        .caches
        .start(&context.client, &context.shutdown, &mut tasks);
    tasks.join_all().await;
}
