//! The node's heartbeat: a Lease in kube-node-lease, renewed often and cheaply. A node that announces load balancers'
//! addresses renews it faster, and says there that it does.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::announce::{self, Pulse, election::BEAT};

const NAMESPACE: &str = "kube-node-lease";
/// Who watches the node waits so long for the next heartbeat before it is taken for lost.
const DURATION_SECONDS: i32 = 40;
/// A quarter of that, so that a few may fail.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// After a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long a renewal may take: less than the interval of the next, and several fit into the lease's duration.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same while it is renewed fast.
const FAST_PATIENCE: Duration = Duration::from_secs(1);

/// A renewal that failed.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("the API server did not answer in time")]
    NoAnswer(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Renews the Lease until the process ends, as `pulse` says.
pub(super) async fn keep(client: kube::Client, name: String, mut pulse: watch::Receiver<Pulse>) {
    let leases = Api::namespaced(client.clone(), NAMESPACE);
    let nodes = Api::all(client);
    // The API server's last answer, whose resourceVersion the next renewal names.
    let mut held: Option<Lease> = None;
    let mut failing = false;
    loop {
        let now = pulse.borrow_and_update().clone();
        let (interval, retry, patience) = match now.fast {
            true => (BEAT, BEAT, FAST_PATIENCE),
            false => (RENEW_INTERVAL, RETRY_INTERVAL, PATIENCE),
        };
        let started = Instant::now();
        // Dropping a request that hangs gives up its connection: the next one is made on another.
        let renewal = renew(&leases, &nodes, &name, held.take(), &now);
        let renewal = timeout(patience, renewal).await;
        let renewal = renewal.map_err(LeaseError::from);
        let pause = match renewal.and_then(|answer| Ok(answer?)) {
            Ok(lease) => {
                if std::mem::take(&mut failing) {
                    info!("the node's lease is renewed again");
                }
                held = Some(lease);
                interval
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "cannot renew the node's lease; trying again");
                }
                retry
            }
        };
        // Either arm may be dropped: the next renewal reads the pulse.
        tokio::select! {
            () = sleep_until(started + pause) => {}
            Ok(()) = pulse.changed() => {}
        }
    }
}

async fn renew(
    leases: &Api<Lease>,
    nodes: &Api<Node>,
    name: &str,
    held: Option<Lease>,
    pulse: &Pulse,
) -> kube::Result<Lease> {
    let present = match held {
        Some(lease) => Some(lease),
        None => leases.get_opt(name).await?,
    };
    // The owner is looked up once: when the Node goes, its Lease goes too.
    let owner = match present
        .as_ref()
        .and_then(|lease| lease.metadata.owner_references.as_ref())
    {
        Some(_) => None,
        None => nodes.get_opt(name).await?.and_then(|node| owner(&node)),
    };
    let exists = present.is_some();
    let mut lease = renewed(present, name, owner, Timestamp::now());
    announce::write_networks(&mut lease.metadata.annotations, &pulse.networks);
    if exists {
        leases.replace(name, &PostParams::default(), &lease).await
    } else {
        leases.create(&PostParams::default(), &lease).await
    }
}

/// The Lease with a fresh time. Pure.
fn renewed(
    present: Option<Lease>,
    name: &str,
    owner: Option<OwnerReference>,
    now: Timestamp,
) -> Lease {
    let mut lease = present.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    if let Some(owner) = owner {
        lease.metadata.owner_references = Some(vec![owner]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(name.to_owned());
    spec.lease_duration_seconds = Some(DURATION_SECONDS);
    spec.renew_time = Some(MicroTime(now));
    lease
}

fn owner(node: &Node) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_changes_the_time_and_keeps_the_rest() {
        let now = Timestamp::from_second(1000).unwrap();
        let node = Node {
            metadata: ObjectMeta {
                name: Some("worker-1".into()),
                uid: Some("abc".into()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        let mut first = renewed(None, "worker-1", owner(&node), now);
        assert_eq!(
            first.metadata.owner_references.as_ref().unwrap()[0].uid,
            "abc"
        );
        assert_eq!(
            first.spec.as_ref().unwrap().lease_duration_seconds,
            Some(40)
        );

        first.metadata.resource_version = Some("7".into());
        let later = Timestamp::from_second(1010).unwrap();
        let second = renewed(Some(first.clone()), "worker-1", None, later);
        assert_eq!(second.metadata, first.metadata);
        assert_eq!(second.spec.unwrap().renew_time, Some(MicroTime(later)));
    }
}
