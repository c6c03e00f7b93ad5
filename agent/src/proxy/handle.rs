//! What the rest of the agent may ask of the running proxy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::feedback::Watch;
use super::state::LbState;
use crate::cluster::ObjectKey;

/// How often the writes of a service are tried before the tables count as complete without it.
const TRIES: u32 = 5;

/// A read-only look at the proxy's state. Clones share it.
#[derive(Clone, Debug)]
pub struct ProxyHandle {
    inner: Arc<RwLock<Inner>>,
    complete: watch::Sender<bool>,
    /// Other programs than ours read other tables than ours.
    waiting: Arc<AtomicBool>,
}

/// The state and what went wrong with it.
#[derive(Debug)]
pub struct Inner {
    pub state: LbState,
    /// What is seen of the backends that have traffic.
    pub watch: Watch,
    /// Services whose last write failed. They are tried again.
    pub problems: BTreeMap<ObjectKey, ServiceProblem>,
    /// When the worker's last pass ended. Each pass takes all changes that are queued.
    pub(super) passed: Instant,
}

/// Why a service is not in the maps as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceProblem {
    pub error: String,
    /// How many tries have failed in a row.
    pub attempts: u32,
}

/// How the proxy is, in one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub synced: bool,
    pub addresses: usize,
    pub backends: usize,
    pub problems: usize,
    /// Ports and addresses left out, with the reason.
    pub ignored: Vec<(usize, &'static str)>,
    /// One of the errors, to show.
    pub first_error: Option<String>,
    /// Since the last pass over what changed: no change has been queued for longer.
    pub since_pass: Duration,
}

impl ProxyHandle {
    /// A proxy that starts from `state`.
    pub fn new(state: LbState) -> Self {
        let mut feedback = Watch::default();
        feedback.adopt(&state);
        Self {
            inner: Arc::new(RwLock::new(Inner {
                state,
                watch: feedback,
                problems: BTreeMap::new(),
                passed: Instant::now(),
            })),
            complete: watch::Sender::new(false),
            waiting: Arc::default(),
        }
    }

    /// A look at the state. Hold it briefly and never across an await: the writer waits for it.
    pub fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the maps hold all that the cluster was seen to want: only then may programs that were not running
    /// begin to read them. A service whose writes fail again and again is not waited for.
    pub async fn complete(&self) {
        // The sender is part of this handle, so it is there.
        let _ = self
            .complete
            .subscribe()
            .wait_for(|complete| *complete)
            .await;
    }

    /// Whether programs of another version serve still. What a flip left behind stays meanwhile: it closes no socket and
    /// removes no backend of which rows have yet to be carried over.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Release);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// All that was pending was written, or tried.
    pub(super) fn tell_complete(&self) {
        let complete = {
            let inner = self.read();
            let late = |problem: &ServiceProblem| problem.attempts < TRIES;
            inner.state.is_synced() && !inner.problems.values().any(late)
        };
        self.complete
            .send_if_modified(|told| complete && !std::mem::replace(told, true));
    }

    /// Whether the services are known, and the time since the last pass: what is cheap to ask of [`Self::health`].
    pub fn pulse(&self) -> (bool, Duration) {
        let inner = self.read();
        (inner.state.is_synced(), inner.passed.elapsed())
    }

    pub fn health(&self) -> Health {
        let inner = self.read();
        let error = inner.problems.iter().next();
        Health {
            synced: inner.state.is_synced(),
            addresses: inner.state.frontends().count(),
            backends: inner.state.backend_count(),
            problems: inner.problems.len(),
            ignored: inner
                .state
                .ignored()
                .into_iter()
                .map(|(why, count)| (count, why.reason()))
                .collect(),
            since_pass: inner.passed.elapsed(),
            first_error: error.map(|(service, problem)| format!("{service}: {}", problem.error)),
        }
    }
}
