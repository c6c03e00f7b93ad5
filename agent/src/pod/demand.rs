//! What the rest of the agent asks of pods' workers.

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::admission::is_shortage;
use super::{app_armor, node_affinity};
use crate::housekeeping::eviction::Pressures;

/// Pods whose demands wait for the manager.
const QUEUE: usize = 64;

/// The reason of a pod that had to go for want of something.
pub const EVICTED: &str = "Evicted";
/// That of one that had to end as the node went down.
pub const TERMINATED: &str = "Terminated";
/// That of one that came too late for that.
pub(super) const NODE_SHUTDOWN: &str = "NodeShutdown";
/// That of one that asks for kernel parameters which it may not set.
pub(super) const SYSCTL_FORBIDDEN: &str = "SysctlForbidden";

/// That of one that is for another operating system.
pub(super) const OS_NOT_SUPPORTED: &str = "PodOSNotSupported";

/// A pod has to go for a reason of the node's, and fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// One of the above.
    pub reason: &'static str,
    /// What its status says of it.
    pub message: String,
    /// Its processes are gone by then.
    pub by: Timestamp,
}

/// What is asked of workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    Evict {
        uid: String,
        eviction: Eviction,
    },
    /// What new pods are judged by from now on.
    Admit(Pressures),
    /// Whether new pods are refused as the node goes down.
    ShutDown(bool),
    /// What is left of containers that have ended goes, as far as nobody needs it to go on. Until then, if that takes a while.
    DiscardDead {
        until: Timestamp,
    },
}

/// Whether this is the reason of a pod that had to go.
pub(super) fn is_eviction(reason: &str) -> bool {
    let own = [EVICTED, TERMINATED, NODE_SHUTDOWN, SYSCTL_FORBIDDEN];
    let asked = [OS_NOT_SUPPORTED, app_armor::REASON, node_affinity::REASON];
    own.contains(&reason) || asked.contains(&reason) || is_shortage(reason)
}

/// Asks workers.
#[derive(Clone, Debug)]
pub struct Demands(mpsc::Sender<Demand>);

impl Demands {
    pub(crate) fn channel() -> (Demands, mpsc::Receiver<Demand>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Demands(sender), receiver)
    }

    /// Passes it on; false when nobody runs pods any more.
    pub async fn ask(&self, demand: Demand) -> bool {
        self.0.send(demand).await.is_ok()
    }
}
