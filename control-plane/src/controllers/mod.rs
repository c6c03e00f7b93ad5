//! One file a controller: a pure `reconcile`, and the loop that feeds it and performs what it says.

mod bootstrap_tokens;
pub(crate) mod cache;
mod caches;
mod certificates;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod driver;
mod endpoints;
mod event_expiry;
pub(crate) mod events;
mod expectations;
mod garbage;
mod job;
mod kinds;
mod load_balancer;
mod namespaces;
mod node;
mod pod_control;
pub(crate) mod pods;
mod replica_set;
mod resource_quota;
mod revisions;
mod role_aggregation;
mod root_ca;
#[cfg(test)]
mod scenarios;
mod service_accounts;
mod stateful_set;
#[cfg(test)]
pub(crate) mod testing;
mod token_secrets;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::cache::Key;
use self::caches::Caches;
use self::driver::Wakeups;

pub use self::certificates::Signer;
pub use self::node::{PodRanges, PodRangesError};
use crate::auth::csr::Reserved;
use crate::auth::tokens::Authority;

/// What service accounts get.
#[derive(Clone)]
pub struct Accounts {
    /// The certificate of the cluster's authority, PEM.
    pub authority: String,
    /// Makes tokens for Secrets.
    pub tokens: Arc<Authority>,
}

/// How the controllers shall behave.
#[derive(Clone)]
pub struct ControllersConfig {
    /// Every node's ranges of pod addresses are cut from them.
    pub pod_ranges: PodRanges,
    /// Where Services' addresses come from. No load balancer gets one of them.
    pub service_ranges: Vec<IpNet>,
    /// A node that gives no sign of life for so long is taken to be gone.
    pub node_grace_period: Duration,
    /// Pods of a Node that is deleted are removed after this, if it has not come back.
    pub orphan_quarantine: Duration,
    /// Events go after this.
    pub event_ttl: Duration,
    pub signer: Signer,
    pub accounts: Accounts,
    /// What no node gets a serving certificate for.
    pub reserved: Reserved,
}

impl ControllersConfig {
    /// Upstream's times.
    pub fn new(pod_ranges: PodRanges, accounts: Accounts, signer: Signer) -> Self {
        let grace = Duration::from_secs(40);
        Self {
            event_ttl: Duration::from_secs(3600),
            pod_ranges,
            service_ranges: Vec::new(),
            node_grace_period: grace,
            orphan_quarantine: grace,
            signer,
            accounts,
            reserved: Reserved::default(),
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

impl Context {
    /// Once the caches know everything, calls `reconcile` for the keys that `wakeups` names; see [`driver::drive`].
    async fn drive<F>(
        self,
        controller: &'static str,
        wakeups: Wakeups<Key>,
        workers: usize,
        reconcile: F,
    ) where
        F: AsyncFn(&Self, &Key) -> driver::Result<Option<Duration>>,
    {
        let shutdown = self.shutdown.clone();
        // Cancel-safe: it only waits.
        if shutdown
            .run_until_cancelled(self.caches.wait_synced())
            .await
            .is_none()
        {
            return;
        }
        driver::drive(controller, wakeups, workers, shutdown, |key| {
            let (context, reconcile) = (&self, &reconcile);
            async move { reconcile(context, &key).await }
        })
        .await;
    }
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
    tasks.spawn(daemon_set::start(&context));
    tasks.spawn(disruption::start(&context));
    tasks.spawn(disruption::stale::start(&context));
    tasks.spawn(endpoints::start(&context));
    tasks.spawn(job::start(&context));
    tasks.spawn(cron_job::start(&context));
    tasks.spawn(stateful_set::start(&context));
    tasks.spawn(load_balancer::start(&context));
    tasks.spawn(node::start(&context));
    tasks.spawn(certificates::start(&context));
    tasks.spawn(service_accounts::start(&context));
    tasks.spawn(root_ca::start(&context));
    tasks.spawn(token_secrets::start(&context));
    tasks.spawn(bootstrap_tokens::start(&context));
    tasks.spawn(role_aggregation::start(&context));
    tasks.spawn(namespaces::start(&context));
    tasks.spawn(garbage::start(&context));
    tasks.spawn(resource_quota::start(&context));
    tasks.spawn(event_expiry::start(&context));
    // Only now, so that each controller hears of every object.
    context
        .caches
        .start(&context.client, &context.shutdown, &mut tasks);
    tasks.join_all().await;
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use tokio::sync::Notify;
    use tower::service_fn;

    use super::*;

    /// A client of a server that is away. The other half hears of requests, and is gone when nobody has the client any more.
    fn client() -> (kube::Client, Weak<Notify>) {
        let asked = Arc::new(Notify::new());
        let weak = Arc::downgrade(&asked);
        let service = service_fn(move |_: Request<Body>| {
            asked.notify_one();
            async {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        (kube::Client::new(service, "default"), weak)
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_leader_that_leads_no_more() {
        let config = testing::config();
        for is_told in [true, false] {
            let (client, asked) = client();
            let shutdown = CancellationToken::new();
            let mut work = JoinSet::new();
            work.spawn(run(client, config.clone(), shutdown.clone()));
            asked.upgrade().unwrap().notified().await;
            if is_told {
                shutdown.cancel();
                // They need not end, as one that is still reading does not; that they had the time is enough.
                let _ = tokio::time::timeout(Duration::from_millis(100), work.join_next()).await;
            }
            drop(work);
            for _ in 0..6000 {
                if asked.strong_count() == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(asked.strong_count(), 0, "told: {is_told}");
        }
    }
}
