//! What the rest of the agent may ask of the running proxy.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::feedback::Watch;
use super::state::LbState;
use crate::cluster::ObjectKey;

/// A read-only look at the proxy's state. Clones share it.
#[derive(Clone, Debug)]
pub struct ProxyHandle(Arc<RwLock<Inner>>);

/// The state and what went wrong with it.
#[derive(Debug)]
pub struct Inner {
    pub state: LbState,
    /// What is seen of the backends that have traffic.
    pub watch: Watch,
    /// Services whose last write failed. They are tried again.
    pub problems: BTreeMap<ObjectKey, ServiceProblem>,
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
}

impl ProxyHandle {
    /// A proxy that starts from `state`.
    pub fn new(state: LbState) -> Self {
        let mut watch = Watch::default();
        watch.adopt(&state);
        Self(Arc::new(RwLock::new(Inner {
            state,
            watch,
            problems: BTreeMap::new(),
        })))
    }

    /// A look at the state. Hold it briefly and never across an await: the writer waits for it.
    pub fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
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
            first_error: error.map(|(service, problem)| format!("{service}: {}", problem.error)),
        }
    }
}
