//! Keeps the Node object true: registration, status and Lease. Level-triggered: each pass reads the object afresh.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Api, Patch, PatchParams, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::announce::Pulse;
use crate::events::{Events, Kind, Subject};

use super::facts::{Facts, FactsError};
use super::lease;
use super::registration::register;
use super::reserve::KeptBack;
use super::status::{Health, Identity, desired, happenings, needs_write};

/// A pass without anything having happened, to see what the machine has left.
const PASS_INTERVAL: Duration = Duration::from_secs(10);
/// Until the next pass after one that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Label of nodes to which load balancers shall send nothing.
const NO_LOAD_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// How long a pass may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is needed to keep the Node object.
#[derive(Clone)]
pub struct Upkeep {
    pub client: kube::Client,
    pub identity: Identity,
    /// Tells which file system's room is the node's.
    pub root_dir: PathBuf,
    /// What is not for pods.
    pub kept_back: KeptBack,
    /// What the rest of the agent says of itself.
    pub health: watch::Receiver<Health>,
    /// How the node's Lease is to be renewed.
    pub pulse: watch::Receiver<Pulse>,
    /// Told whether load balancers may send traffic to the node.
    pub fit: watch::Sender<bool>,
    /// Told what becomes of the node.
    pub events: Events,
}

/// A pass that failed; the next one reads everything afresh.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("the API server did not take the node's status: {0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", PATIENCE.as_secs())]
    NoAnswer(#[from] tokio::time::error::Elapsed),
    #[error("the Node object is gone")]
    Gone,
}

impl Upkeep {
    /// Registers the node, then keeps its status and its Lease until the process ends.
    pub async fn run(mut self) -> Result<(), FactsError> {
        let facts = Facts::read(&self.root_dir)?;
        self.tell(Kind::Normal, "Starting", "Starting kubelet.".to_owned());
        self.register(&facts).await;
        let name = self.identity.name.clone();
        let lease = lease::keep(self.client.clone(), name, self.pulse.clone());
        let mut lease = AbortOnDropHandle::new(tokio::spawn(lease));
        let mut failing = false;
        loop {
            let pass = tokio::time::timeout(PATIENCE, self.pass(&facts)).await;
            let pause = match pass.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        info!("the node's status is reported again");
                    }
                    PASS_INTERVAL
                }
                Err(PassError::Gone) => {
                    warn!("the Node object is gone; registering the node again");
                    self.register(&facts).await;
                    continue;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "cannot report the node's status; trying again");
                    }
                    RETRY_INTERVAL
                }
            };
            // Either arm may be dropped: the next pass reads everything.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // It ends by a panic only, which is not to go unnoticed.
                ended = &mut lease => if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
                    std::panic::resume_unwind(panic);
                },
                changed = self.health.changed() => {
                    if changed.is_err() {
                        // Nobody will say more: only time causes further passes.
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }

    async fn register(&mut self, facts: &Facts) -> Node {
        let status = self.desired(facts, &NodeStatus::default());
        register(&self.client, &self.identity, facts, &status).await
    }

    async fn pass(&mut self, facts: &Facts) -> Result<(), PassError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = api
            .get_opt(&self.identity.name)
            .await?
            .ok_or(PassError::Gone)?;
        let excluded = node.labels().contains_key(NO_LOAD_BALANCERS);
        let present = node.status.unwrap_or_default();
        let wanted = self.desired(facts, &present);
        let fit = !excluded && is_ready(&wanted);
        self.fit.send_if_modified(|known| {
            let differs = *known != fit;
            *known = fit;
            differs
        });
        if needs_write(&present, &wanted, Timestamp::now()) {
            // Strategic, so that conditions of others stay.
            let mut patch = json!({"status": wanted});
            // Addresses are merged by their type, of which there is one for each family.
            if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
                addresses.push(json!({"$patch": "replace"}));
            }
            let patch = Patch::Strategic(patch);
            api.patch_status(&self.identity.name, &PatchParams::default(), &patch)
                .await?;
            for (kind, reason, message) in happenings(&self.identity.name, &present, &wanted) {
                self.tell(kind, reason, message);
            }
        }
        Ok(())
    }

    fn tell(&self, kind: Kind, reason: &'static str, message: String) {
        let subject = Subject::node(&self.identity.name);
        self.events.send(subject, None, kind, reason, message);
    }

    fn desired(&mut self, facts: &Facts, present: &NodeStatus) -> NodeStatus {
        let health = self.health.borrow_and_update();
        let now = Timestamp::now();
        desired(
            &self.identity,
            facts,
            &self.kept_back,
            &health,
            present,
            now,
        )
    }
}

fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
