//! Leader election by a Lease, as client-go's `leaderelection` does it: who sees that a Lease has not changed for as long as
//! it says may take it, and writes lose that were decided upon an older one.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};

/// For how long a Lease is good that is not renewed.
const TERM: Duration = Duration::from_secs(3);
const RENEWAL: Duration = Duration::from_millis(500);

pub struct Candidate {
    leases: Api<Lease>,
    lease: &'static str,
    name: String,
    /// The revision of the Lease that was seen last, and since when.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    pub fn new(leases: Api<Lease>, lease: &'static str, name: &str) -> Candidate {
        Candidate {
            leases,
            lease,
            name: name.to_owned(),
            seen: None,
        }
    }

    /// Returns when it leads.
    pub async fn win(&mut self) {
        while !matches!(self.attempt().await, Ok(true)) {
            tokio::time::sleep(RENEWAL).await;
        }
    }

    /// Renews, and returns when it could not for nearly a term, or lost.
    pub async fn lead(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < TERM * 2 / 3 {
            tokio::time::sleep(RENEWAL).await;
            match self.attempt().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return,
                Err(_) => {}
            }
        }
    }

    /// Whether it holds the Lease after one look.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let found = self.leases.get_opt(self.lease).await?;
        let written = match found {
            None => {
                let lease = self.claim(Lease {
                    metadata: ObjectMeta {
                        name: Some(self.lease.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: None,
                });
                self.leases.create(&PostParams::default(), &lease).await
            }
            Some(lease) if !self.may_take(&lease) => return Ok(false),
            Some(lease) => {
                let lease = self.claim(lease);
                let replace = &PostParams::default();
                self.leases.replace(self.lease, replace, &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn may_take(&mut self, lease: &Lease) -> bool {
        if holder(lease) == Some(&self.name) {
            return true;
        }
        let revision = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == revision => since.elapsed() > TERM,
            _ => {
                self.seen = Some((revision, Instant::now()));
                false
            }
        }
    }

    /// The Lease as this candidate's.
    fn claim(&self, mut lease: Lease) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let before = lease.spec.take().unwrap_or_default();
        let same = before.holder_identity.as_ref() == Some(&self.name);
        let transitions = before.lease_transitions.map_or(0, |n| n + i32::from(!same));
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(TERM.as_secs() as i32),
            acquire_time: if same {
                before.acquire_time
            } else {
                now.clone()
            },
            renew_time: now,
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        });
        lease
    }
}

pub fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}
