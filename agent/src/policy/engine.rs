//! Keeps the maps as policies want them. Level-triggered: each pass compiles what is known now, and writes what differs.
//!
//! A pod's row is in the map before its link is up: closed, until a pass has found its policies. A pass is made only when
//! the watches have listed everything and the links of this node are known; until then what is pinned holds.
//!
//! Of a pod that nothing isolates the programs remember no conversations. When it becomes isolated, those that are open are
//! written down first: their answers belong to them, whatever the new rules say.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::abi::policy::{FLOW_PORTS, FlowKey, FlowRow, PodRules};
use agent_ebpf::policy::Direction;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::compile::{Local, LocalLink, compile};
use super::state::{PolicyOp, PolicyState};
use super::watch::Known;
use crate::chain::chain;
use crate::dataplane::{OpenConversation, PolicyMapError, PolicyTables, monotonic_ns};

/// Longer than a program takes: when it is over, none is under way that read the generation before.
const UNDER_WAY: Duration = Duration::from_millis(20);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);

/// A handle on it. Clones share it.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

/// Tells which conversations are open in the pod at the link of that name.
pub type Sockets = Box<dyn Fn(&str) -> Vec<OpenConversation> + Send + Sync>;

struct Shared {
    known: Known,
    sockets: Sockets,
    inner: Mutex<Inner>,
    /// The node's links or addresses are not as they were.
    local: watch::Sender<()>,
    /// A pass is over.
    passed: watch::Sender<()>,
}

struct Inner {
    state: PolicyState,
    maps: Box<dyn PolicyTables>,
    local: Local,
    /// All links that were there at the start have been told: those that come from now on are new pods'.
    links_known: bool,
    /// Why the last pass failed.
    problem: Option<String>,
}

impl Engine {
    /// Over maps that hold what `state` says.
    pub fn new(
        known: Known,
        state: PolicyState,
        maps: Box<dyn PolicyTables>,
        sockets: Sockets,
    ) -> Self {
        Self(Arc::new(Shared {
            known,
            sockets,
            inner: Mutex::new(Inner {
                state,
                maps,
                local: Local::default(),
                links_known: false,
                problem: None,
            }),
            local: watch::Sender::new(()),
            passed: watch::Sender::new(()),
        }))
    }

    /// What is known of policies.
    pub fn known(&self) -> &Known {
        &self.0.known
    }

    /// Looks at what is connected to this node, and at the maps.
    pub fn look<T>(&self, look: impl FnOnce(&Local, &PolicyState) -> T) -> T {
        let inner = self.inner();
        look(&inner.local, &inner.state)
    }

    /// A pod's link is there, and will be up when this is done.
    pub fn connected(
        &self,
        index: LinkIndex,
        name: &str,
        addresses: &[IpAddr],
    ) -> Result<(), PolicyMapError> {
        let mut inner = self.inner();
        // Pods from before policies were first looked at stay as they are until that is done.
        if inner.links_known || !inner.state.pinned().is_new() {
            let op = inner.state.admit(index);
            inner.perform(op.as_slice())?;
        }
        let link = LocalLink {
            index,
            addresses: addresses.to_vec(),
        };
        let before = inner.local.links.insert(name.into(), link.clone());
        drop(inner);
        if before.as_ref() != Some(&link) {
            self.0.local.send_replace(());
        }
        Ok(())
    }

    /// A link has gone.
    pub fn disconnected(&self, index: LinkIndex) {
        self.retain(|link| link != index);
    }

    /// These are all the links that were there at the start.
    pub fn links_are_known(&self, links: &[LinkIndex]) {
        self.inner().links_known = true;
        self.retain(|link| links.contains(&link));
    }

    fn retain(&self, stays: impl Fn(LinkIndex) -> bool) {
        let links = &mut self.inner().local.links;
        links.retain(|_, link| stays(link.index));
        self.0.local.send_replace(());
    }

    /// The node's own addresses are these.
    pub fn set_node_addresses(&self, addresses: BTreeSet<IpAddr>) {
        let mut inner = self.inner();
        if inner.local.node != addresses {
            inner.local.node = addresses;
            drop(inner);
            self.0.local.send_replace(());
        }
    }

    /// Waits until the policies of a link's pod are in force. It may stay closed for longer than anybody waits.
    pub async fn settled(&self, name: &str) {
        let mut passed = self.0.passed.subscribe();
        while self.is_pending(name) {
            if passed.changed().await.is_err() {
                return;
            }
        }
    }

    fn is_pending(&self, name: &str) -> bool {
        let inner = self.inner();
        let pinned = inner.state.pinned();
        let link = inner.local.links.get(name);
        let row = link.and_then(|link| pinned.pods.get(&link.index));
        row.is_some_and(|row| pinned.rules_of(row) == PodRules::PENDING)
    }

    /// Why policies are not as they should be, if so.
    pub fn problem(&self) -> Option<String> {
        let failing = self.0.known.failing();
        if let Some((kind, error)) = failing.first_key_value() {
            return Some(format!("cannot watch {kind}: {error}"));
        }
        if !self.0.known.view().complete {
            return Some("not everything has been listed yet: new pods wait".to_owned());
        }
        self.inner().problem.clone()
    }

    /// Makes passes until the process ends.
    pub async fn run(self) {
        let mut known = self.0.known.subscribe();
        let mut local = self.0.local.subscribe();
        loop {
            // All of it is read below.
            known.borrow_and_update();
            local.borrow_and_update();
            let engine = self.clone();
            let done = tokio::task::spawn_blocking(move || engine.pass()).await;
            self.0.passed.send_replace(());
            let failed = match done {
                Ok(Ok(false)) => false,
                Ok(Ok(true)) => {
                    tokio::time::sleep(UNDER_WAY).await;
                    let engine = self.clone();
                    let swept = tokio::task::spawn_blocking(move || engine.sweep()).await;
                    !matches!(swept, Ok(Ok(())))
                }
                Ok(Err(_)) | Err(_) => true,
            };
            // Any arm may be dropped: the next pass reads everything.
            tokio::select! {
                _ = known.changed() => {}
                _ = local.changed() => {}
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    }

    /// Brings the maps to where they should be. Returns whether anything is left to be removed.
    fn pass(&self) -> Result<bool, PolicyMapError> {
        let view = self.0.known.view();
        let mut inner = self.inner();
        if !view.complete || !inner.links_known {
            return Ok(false);
        }
        let desired = compile(&view, &inner.local);
        drop(view);
        let ops = inner.state.plan(&desired);
        debug!(writes = ops.len(), "network policies are looked at");
        // Twice: what is opened while the rows are written is open under the old rules, too.
        let isolated = inner.newly_isolated(&ops);
        inner.remember_open(&isolated, &self.0.sockets);
        let done = inner.perform(&ops);
        inner.remember_open(&isolated, &self.0.sockets);
        inner.note(done)?;
        Ok(!inner.leftovers().is_empty())
    }

    /// Removes what nothing reads any more.
    fn sweep(&self) -> Result<(), PolicyMapError> {
        let mut inner = self.inner();
        let ops = inner.leftovers();
        let done = inner.perform(&ops);
        inner.note(done)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What was written is noted write by write, so the state is sound after a panic, too.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Performs writes in order up to the first that fails.
    fn perform(&mut self, ops: &[PolicyOp]) -> Result<(), PolicyMapError> {
        for op in ops {
            self.maps.apply(op)?;
            self.state.done(op);
        }
        Ok(())
    }

    /// The links of pods that are open, and will not be after `ops`.
    fn newly_isolated(&self, ops: &[PolicyOp]) -> Vec<(Box<str>, LinkIndex)> {
        let closed = |index: &LinkIndex| {
            ops.iter().any(|op| {
                matches!(op, PolicyOp::PutPod(row) if row.link == *index
                    && row.before == PodRules::OPEN && row.now != PodRules::OPEN)
            })
        };
        let links = self.local.links.iter();
        let links = links.filter(|(_, link)| closed(&link.index));
        links
            .map(|(name, link)| (name.clone(), link.index))
            .collect()
    }

    fn remember_open(&mut self, links: &[(Box<str>, LinkIndex)], sockets: &Sockets) {
        for (name, link) in links {
            let flows = sockets(name).into_iter().map(|open| {
                let key = FlowKey {
                    pod: *link,
                    peer: open.peer,
                    pod_port: open.own_port,
                    peer_port: open.peer_port,
                    protocol: open.protocol,
                    kind: FLOW_PORTS,
                    pad: [0; 2],
                };
                let opened = match open.was_called {
                    true => Direction::Ingress,
                    false => Direction::Egress,
                };
                let row = FlowRow {
                    seen_ns: monotonic_ns(),
                    // Older than the rules to come: datagrams that the pod sends are asked about again.
                    generation: 0,
                    opened: opened as u32,
                };
                (key, row)
            });
            let flows: Vec<_> = flows.collect();
            self.maps.remember(&flows);
        }
    }

    fn leftovers(&self) -> Vec<PolicyOp> {
        let links = self.local.links.values().map(|link| link.index);
        let links: BTreeSet<LinkIndex> = links.collect();
        self.state.collect(|link| links.contains(link))
    }

    fn note(&mut self, done: Result<(), PolicyMapError>) -> Result<(), PolicyMapError> {
        let problem = done.as_ref().err().map(|error| chain(error));
        if let Some(problem) = &problem
            && self.problem.as_ref() != Some(problem)
        {
            warn!(
                problem,
                "network policies are not all in force; trying again"
            );
        }
        self.problem = problem;
        done
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
