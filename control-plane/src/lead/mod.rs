//! Leader election by Leases, as upstream's: of the control planes that share a store, one runs the scheduler and one the
//! controllers. [`decide`] is the rule; here is the loop that follows it.
//!
//! ```text
//!  campaign ──the lease is free, or has not changed for 15 s──▶ term: the part runs, the lease is renewed every 2 s
//!     ▲                                                          │
//!     └──────the part has ended◀── not renewed for 10 s, or another has it
//! ```
//!
//! A leader whose term may be over does nothing more: its client refuses (see [`Term`]), and the part is told to end. That is
//! 5 s before another may take the lease, so no two work at a time, as long as their clocks run about equally fast.

mod decide;
mod lease;
mod term;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use decide::{Observed, Step, decide};
pub use term::Term;

/// Upstream's: a lease that has not changed for so long is free.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Upstream's: a leader that could not renew for so long steps back.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How long one try may take, so that a second one comes within the deadline; upstream's, too.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Upstream's: between two tries.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// How long a part that is told to end may take: less than what is left until another may lead.
const ENDING: Duration = Duration::from_secs(4);
const NAMESPACE: &str = "kube-system";

/// One candidate for one lease.
pub struct Candidate {
    api: Api<Lease>,
    /// The Lease's name in `kube-system`.
    lease: &'static str,
    /// Another for each run of the program.
    identity: String,
    observed: Option<Observed>,
}

/// Why the part of a term does not go on.
enum Over {
    /// It ended by itself.
    Ended,
    Lost,
    Told,
}

impl Candidate {
    /// `client` may read and write the Lease.
    pub fn new(client: kube::Client, lease: &'static str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, NAMESPACE),
            lease,
            identity,
            observed: None,
        }
    }

    /// Runs `part` whenever the lease is this candidate's, until `stop`. `part` gets the term that its client is bound to, and
    /// what tells it to end. Returns when told to stop, or when the part ends by itself.
    pub async fn run<F>(
        mut self,
        stop: CancellationToken,
        part: impl Fn(Term, CancellationToken) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        // Cancel-safe: a lease that was taken and not noticed is free again soon.
        while let Some(term) = stop.run_until_cancelled(self.campaign()).await {
            tracing::info!(lease = self.lease, "this control plane leads");
            let end = stop.child_token();
            let mut work = JoinSet::new();
            work.spawn(part(term.clone(), end.clone()));
            // Cancel-safe: a join set loses nothing when polled in vain, and of the others nothing is needed afterwards.
            let over = tokio::select! {
                _ = work.join_next() => Over::Ended,
                () = self.keep(&term) => Over::Lost,
                () = stop.cancelled() => Over::Told,
            };
            if matches!(over, Over::Lost) {
                term.end();
                tracing::warn!(lease = self.lease, "this control plane leads no more");
            }
            end.cancel();
            // What has not ended by then is dropped, and what it started elsewhere has no client any more.
            let _ = tokio::time::timeout(ENDING, work.join_next()).await;
            drop(work);
            term.end();
            match over {
                Over::Lost => {}
                Over::Ended => return,
                Over::Told => return self.release().await,
            }
        }
    }

    /// Tries until the lease is had.
    async fn campaign(&mut self) -> Term {
        loop {
            let asked = Instant::now();
            match tokio::time::timeout(ATTEMPT, self.attempt()).await {
                Ok(Ok(true)) => return Term::until(asked + RENEW_DEADLINE),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(lease = self.lease, %error, "cannot try to lead"),
                Err(_) => tracing::warn!(lease = self.lease, "cannot try to lead: no answer"),
            }
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews the lease until that fails for too long, or another has it.
    async fn keep(&mut self, term: &Term) {
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            let asked = Instant::now();
            match tokio::time::timeout(ATTEMPT.min(term.left(asked)), self.attempt()).await {
                Ok(Ok(true)) => term.extend(asked + RENEW_DEADLINE),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.lease, %error, "cannot renew the lease");
                }
                Err(_) => tracing::warn!(lease = self.lease, "cannot renew the lease: no answer"),
            }
            if !term.lasts(Instant::now()) {
                return;
            }
        }
    }

    /// Looks at the lease and takes or renews it if it may. Whether it is had.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(self.lease).await?;
        let now = Instant::now();
        let record = found.as_ref().map(lease::record);
        self.observed = Observed::next(self.observed.take(), record, now);
        let step = decide(self.observed.as_ref(), &self.identity, now);
        if step == Step::Wait {
            return Ok(false);
        }
        let is_new = found.is_none();
        let lease = lease::held(found, self.lease, &self.identity, lease::now());
        let params = PostParams::default();
        let written = if is_new {
            self.api.create(&params, &lease).await
        } else {
            // With the version that was read: if another was faster, this is refused.
            self.api.replace(self.lease, &params, &lease).await
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the lease back, so that another need not wait for its end. The part has ended.
    async fn release(&self) {
        let given_back = async {
            match self.api.get_opt(self.lease).await? {
                Some(found) if lease::record(&found).holder == self.identity => {
                    let free = lease::free(found, lease::now());
                    let params = PostParams::default();
                    self.api.replace(self.lease, &params, &free).await.map(drop)
                }
                _ => Ok(()),
            }
        };
        match tokio::time::timeout(RETRY_PERIOD, given_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(lease = self.lease, %error, "the lease ends by itself")
            }
            Err(_) => tracing::warn!(lease = self.lease, "the lease ends by itself: no answer"),
        }
    }
}
