//! What the manager, the workers and those who work for them have in common.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::sync::{Notify, Semaphore, watch};

use super::demand::Eviction;
use super::env::LastRead;
use super::events::Events;
use super::host_ports::Teller;
use super::mirror::Mirror;
use super::paths::Paths;
use super::resize::Grants;
use super::spec::PodView;
use super::sysctls::Allowed;
use super::table::PodTable;
use super::volumes::Tokens;
use crate::cluster::Cluster;
use crate::dns::resolv_conf::ClusterDns;
use crate::network::PodNetwork;
use crate::runtime::Runtime;

/// What the pod half is told about the node.
#[derive(Clone)]
pub struct Settings {
    pub node_name: String,
    /// The node's addresses, the one that pods show as `hostIP` first.
    pub host_addresses: Vec<IpAddr>,
    pub paths: Paths,
    /// Where files of pods are, if there are any.
    pub static_pods: Option<PathBuf>,
    /// How often they are read.
    pub file_check: Duration,
    /// What the node gives its pods, by resource.
    pub allocatable: BTreeMap<String, Quantity>,
    /// The kernel confines processes by AppArmor profiles.
    pub app_armor: bool,
    /// So many processes and threads each pod may have.
    pub pod_max_pids: Option<u64>,
    /// Kernel parameters that pods may set beyond the safe ones.
    pub allowed_sysctls: Vec<Allowed>,
    /// Tells which services there are.
    pub cluster: Cluster,
    /// What the node offers its pods, as of the call.
    pub dns: Arc<dyn Fn() -> ClusterDns + Send + Sync>,
}

/// What every worker uses.
pub(super) struct Shared {
    pub(super) client: kube::Client,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) network: Arc<dyn PodNetwork>,
    pub(super) settings: Settings,
    pub(super) events: Events,
    pub(super) table: PodTable,
    pub(super) host_ports: Teller,
    /// Bytes.
    pub(super) node_memory: f64,
    /// True once the archives that were there at start are imported.
    pub(super) archives_imported: watch::Receiver<bool>,
    pub(super) pokes: Pokes,
    /// Of pods' service accounts.
    pub(super) tokens: Tokens,
    pub(super) grants: Mutex<Grants>,
    pub(super) last_env: LastRead,
    /// So many images are pulled at once.
    pub(super) pulls: Semaphore,
}

/// Whom to wake when something happens to a container, by its id.
#[derive(Default)]
pub(super) struct Pokes(Mutex<HashMap<String, Arc<Notify>>>);

impl Pokes {
    /// To be called before the container can run, so that not even a sudden end goes unheard.
    pub(super) fn listen(&self, id: &str, poke: &Arc<Notify>) {
        self.lock().insert(id.to_owned(), poke.clone());
    }

    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    pub(super) fn wake(&self, id: &str) {
        if let Some(poke) = self.lock().get(id) {
            poke.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        // Each change is one call that cannot stop half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the manager wants of a worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    /// The newest object; `None` for a pod that only the runtime knows.
    pub(super) pod: Option<Arc<PodView>>,
    /// The object is gone from the API, and the pod has to be gone by then.
    pub(super) vanished_by: Option<Timestamp>,
    /// Another pod of the node has its host ports.
    pub(super) is_rejected: bool,
    /// By which the API shows a pod from a file.
    pub(super) mirror: Option<Mirror>,
    /// It has to go for want of something.
    pub(super) evicted: Option<Eviction>,
    /// Until then it keeps no containers that have ended.
    pub(super) discard_until: Option<Timestamp>,
    /// Rises when images were imported: what failed for want of one is tried again.
    pub(super) imports: u64,
}
