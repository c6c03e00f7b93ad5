//! The task that waits for a shutdown, and has the node's pods end before it.

use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::logind::{Lock, Logind, LogindError};
use super::order::{Group, Leaver, Steps, groups};
use crate::chain::chain;
use crate::events::{Events, Kind, Subject};
use crate::node::status::{Health, Part};
use crate::pod::{Demand, Demands, Eviction, PodTable, TERMINATED};

/// Between two attempts to reach logind.
const RETRY: Duration = Duration::from_secs(10);
/// Between two looks at whether pods have ended.
const LOOK: Duration = Duration::from_millis(100);

/// What pods that had to end show, as upstream.
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// What is needed to end pods in time.
pub struct Watcher {
    /// Where the system's bus listens.
    pub bus: PathBuf,
    /// logind's configuration, which may have to allow more.
    pub logind_config: PathBuf,
    pub steps: Steps,
    pub node: String,
    pub pods: PodTable,
    pub demands: Demands,
    /// Told that the node shuts down.
    pub health: watch::Sender<Health>,
    /// Told whether shutdowns wait for this node's pods.
    pub told: watch::Sender<Part>,
    pub events: Events,
}

impl Watcher {
    /// Waits for shutdowns until the task is dropped.
    pub async fn run(self) {
        loop {
            // It only ends by an error.
            if let Err(error) = self.watch().await {
                let why = chain(&error);
                let changed = self.told.send_if_modified(|told| {
                    let now = Part::Down(why.clone());
                    std::mem::replace(told, now.clone()) != now
                });
                if changed {
                    tracing::warn!(why, "a shutdown of this node does not wait for its pods");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn watch(&self) -> Result<(), LogindError> {
        let mut logind = Logind::connect(&self.bus).await?;
        logind
            .allow(self.steps.total(), &self.logind_config)
            .await?;
        let mut lock: Option<Lock> = Some(logind.inhibit().await?);
        // An agent that begins in the middle of a shutdown goes on with it.
        let mut is_ending = logind.is_ending().await?;
        self.told.send_replace(Part::Up);
        loop {
            self.tell(is_ending).await;
            if is_ending {
                self.end_pods().await;
                tracing::info!("the pods have ended, or had their time: the node goes down");
                lock = None;
            } else if lock.is_none() {
                lock = Some(logind.inhibit().await?);
            }
            // What was asked for may be told as well.
            let known = is_ending;
            while is_ending == known {
                is_ending = logind.next().await?;
            }
        }
    }

    async fn tell(&self, is_ending: bool) {
        let changed = self.health.send_if_modified(|health| {
            std::mem::replace(&mut health.is_shutting_down, is_ending) != is_ending
        });
        if !changed {
            return;
        }
        let message = match is_ending {
            true => "Shutdown manager detected shutdown event",
            false => "Shutdown manager detected shutdown cancellation",
        };
        tracing::info!(message);
        let subject = Subject::node(&self.node);
        let (reason, text) = ("NodeShutdown", message.to_owned());
        self.events.send(subject, None, Kind::Normal, reason, text);
        self.demands.ask(Demand::ShutDown(is_ending)).await;
    }

    async fn end_pods(&self) {
        let active = self.pods.active();
        let leavers = active.iter().map(|pod| Leaver {
            uid: pod.id.uid.clone(),
            priority: pod.priority(),
            grace: pod.grace(),
        });
        for group in groups(&self.steps, &leavers.collect::<Vec<_>>()) {
            for (uid, grace) in &group.pods {
                let by = Timestamp::now().saturating_add(*grace);
                let eviction = Eviction {
                    reason: TERMINATED,
                    message: MESSAGE.to_owned(),
                    by: by.unwrap_or(Timestamp::MAX),
                };
                let uid = uid.clone();
                self.demands.ask(Demand::Evict { uid, eviction }).await;
            }
            self.wait_for(&group).await;
        }
    }

    /// Until nothing of the group runs any more, or its time is up.
    async fn wait_for(&self, group: &Group) {
        let until = Instant::now() + positive(group.grace);
        while self.runs(group) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn runs(&self, group: &Group) -> bool {
        let pods = self.pods.list();
        let mut own = pods
            .iter()
            .filter(|pod| group.pods.iter().any(|(uid, _)| *uid == pod.uid));
        own.any(|pod| pod.containers.iter().any(|it| it.state == "running"))
    }
}

fn positive(duration: SignedDuration) -> Duration {
    duration.try_into().unwrap_or_default()
}
