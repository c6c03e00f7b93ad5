//! Keeps this node's part in announcing addresses. Level-triggered: each pass decides from all that is known. While the
//! cluster has no load balancer's address it costs nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::beats::Beats;
use super::election::{Decision, Dispute, Election, Own};
use super::formers::Formers;
use super::links::{Uplink, uplinks};
use super::shown::Announcements;
use super::speaker::{Claim, Speaker};
use super::wanted::Wanted;
use super::{Addresses, Pulse};
use crate::cluster::{Changes, Cluster, Name, Pending};
use crate::dataplane::Maps;
use crate::network::monitor::Monitor;
use crate::network::netlink::{Netlink, NetlinkError};

/// Between two passes: time alone makes announcements due, and nodes silent. Renewals of Leases wait for the next one, as
/// there are many.
const PASS: Duration = Duration::from_millis(100);
/// Our renewals come back so late at most, while the API server is well; after it the watch is opened anew.
const PATIENCE: Duration = Duration::from_secs(5);
/// After the kernel did not tell of its links.
const RETRY: Duration = Duration::from_secs(1);

/// What announcing takes.
pub struct Announcer {
    pub node: Name,
    pub cluster: Cluster,
    pub client: kube::Client,
    /// Who renews the node's Lease.
    pub pulse: watch::Sender<Pulse>,
    /// Whether the node is ready, and nobody wants it to be left out.
    pub fit: watch::Receiver<bool>,
    pub shown: Announcements,
    /// Where the programs are told which node had an address before.
    pub maps: Maps,
}

struct Links {
    netlink: Netlink,
    uplinks: Vec<Uplink>,
    /// Something has changed since they were read.
    changed: watch::Receiver<()>,
    _monitoring: AbortOnDropHandle<()>,
}

impl Announcer {
    /// Runs until the process ends.
    pub async fn run(mut self) -> Result<(), NetlinkError> {
        let mut links = Links::open()?;
        let mut changes = self.cluster.subscribe();
        let mut wanted = Wanted::default();
        loop {
            while wanted.is_empty() {
                self.update(&mut wanted, &changes.next().await);
            }
            self.announce(&mut links, &mut changes, &mut wanted).await;
            self.shown.set(Default::default());
            self.pulse.send_replace(Pulse::default());
        }
    }

    /// Announces until there is nothing left to announce.
    async fn announce(&mut self, links: &mut Links, changes: &mut Changes, wanted: &mut Wanted) {
        let mut election = Election::new(self.node.clone());
        let mut formers = Formers::new(self.node.clone());
        let mut beats = Beats::open(&self.client);
        let (mut speaker, mut claims) = Speaker::new();
        let mut pass = tokio::time::interval(PASS);
        pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !wanted.is_empty() {
            links.refresh().await;
            let fit = *self.fit.borrow();
            let decision = decide(&mut election, wanted, &links.uplinks, fit);
            speaker.set(&links.uplinks, &decision.mine, Instant::now());
            formers.update(&decision.announcers);
            formers.tell(&mut self.maps, &self.cluster);
            self.shown.set(decision.announcers);
            if decision.pulse.fast {
                beats.reopen_after(PATIENCE, election.own_heard_at());
            }
            self.pulse.send_if_modified(|pulse| {
                let differs = *pulse != decision.pulse;
                *pulse = decision.pulse;
                differs
            });
            loop {
                // Each arm may be dropped: what is not taken stays pending.
                tokio::select! {
                    _ = pass.tick() => break,
                    pending = changes.next() => {
                        self.update(wanted, &pending);
                        break;
                    }
                    () = beats.next(&mut election) => {}
                    claim = next_claim(&mut claims) => dispute(&mut election, &mut speaker, claim),
                }
            }
        }
        speaker.set(&[], &Addresses::new(), Instant::now());
    }

    fn update(&self, wanted: &mut Wanted, pending: &Pending) {
        wanted.update(&self.cluster.view(), pending.keys());
    }
}

fn decide(election: &mut Election, wanted: &Wanted, uplinks: &[Uplink], fit: bool) -> Decision {
    let networks: BTreeSet<_> = uplinks.iter().flat_map(|it| it.networks.clone()).collect();
    let networks: Vec<_> = networks.into_iter().collect();
    let own = Own {
        networks: &networks,
        fit,
    };
    election.decide(&wanted.addresses(), own, Instant::now())
}

fn dispute(election: &mut Election, speaker: &mut Speaker, claim: Claim) {
    match election.disputed(claim.address, Instant::now()) {
        Dispute::Defend => speaker.defend(claim, Instant::now()),
        Dispute::Yield => info!(
            address = %claim.address,
            "another machine has taken a load balancer's address over while the API server is out of reach"
        ),
    }
}

async fn next_claim(claims: &mut mpsc::Receiver<Claim>) -> Claim {
    match claims.recv().await {
        Some(claim) => claim,
        // The speaker holds a sender.
        None => std::future::pending().await,
    }
}

impl Links {
    fn open() -> Result<Self, NetlinkError> {
        let netlink = Netlink::open()?;
        let mut monitor = Monitor::open()?;
        let (sender, mut changed) = watch::channel(());
        changed.mark_changed();
        let monitoring = async move {
            loop {
                monitor.changed().await;
                sender.send_replace(());
            }
        };
        Ok(Self {
            netlink,
            uplinks: Vec::new(),
            changed,
            _monitoring: AbortOnDropHandle::new(tokio::spawn(monitoring)),
        })
    }

    /// Reads the links anew, if they may have changed.
    async fn refresh(&mut self) {
        // An error says that the monitoring has ended, with the process.
        if !self.changed.has_changed().unwrap_or(false) {
            return;
        }
        self.changed.mark_unchanged();
        match self.read().await {
            Ok(uplinks) => self.uplinks = uplinks,
            Err(error) => {
                warn!(%error, "cannot tell on which links addresses can be announced; trying again");
                self.changed.mark_changed();
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn read(&self) -> Result<Vec<Uplink>, NetlinkError> {
        let links = self.netlink.links().await?;
        Ok(uplinks(&links, &self.netlink.addresses().await?))
    }
}
