//! The admission chain: what changes or refuses a request after it was authorized and before it is stored.
//!
//! The chain has two parts. [`Admission::admit`] is a list of functions of which each sees the [`Review`] and the object, and
//! may change the object or refuse; what one of them took from a pool is given back unless the write succeeds. Then the object
//! is validated, and [`Admission::check`] judges the result: its functions refuse, or warn, and change nothing but quotas.

mod certificates;
mod default_class;
mod escalation;
mod limit_ranger;
mod lookup;
mod namespace;
mod node;
mod pod_security;
mod priority;
mod quota;
pub mod reservations;
mod runtime_class;
mod service_account;
pub mod service_ip;
mod tolerations;
mod warnings;

use std::sync::Arc;

use serde_json::Value;

use crate::api::error::ApiError;
use crate::auth::User;
use crate::auth::rbac::Policies;
use crate::resources::Kind;
use crate::store::cache::{Cache, Freshness};
use crate::store::{Store, StoreError};
use lookup::Lookup;
pub use quota::Charges;
use quota::Turns;
use service_ip::{Held, ServiceAddresses};
pub use warnings::Warnings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// A write, as admission sees it.
pub struct Review<'a> {
    pub user: &'a User,
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub operation: Operation,
    /// Empty for the object itself.
    pub subresource: &'static str,
    pub dry_run: bool,
    /// Takes what is said to the client although nothing is refused.
    pub warnings: &'a Warnings,
}

impl Review<'_> {
    /// Whether this is about the plural of a group.
    fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.group == group && self.kind.plural == plural
    }
}

/// The chain and what it needs to know.
pub struct Admission {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    addresses: Arc<ServiceAddresses>,
    policies: Arc<Policies>,
    turns: Turns,
}

/// What the first part of the chain leaves for the second, and for the write.
pub struct Admitted {
    pub held: Held,
    /// How new the answers must be that are looked up for this request.
    fresh: Freshness,
}

impl Admission {
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        addresses: Arc<ServiceAddresses>,
        policies: Arc<Policies>,
    ) -> Self {
        Admission {
            store,
            cache,
            addresses,
            policies,
            turns: Turns::default(),
        }
    }

    /// Runs the part that may change the object. `old` is the present state for an update. For a deletion `object` is what
    /// is to be deleted.
    pub async fn admit(
        &self,
        review: &Review<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Admitted, ApiError> {
        let fresh = namespace::lifecycle(review, object, self.store.as_ref()).await?;
        let lookup = self.lookup(fresh);
        certificates::identify(review, object);
        certificates::restrict(review, object)?;
        certificates::decide(review, object, old, &self.policies.current())?;
        node::restrict(review, object, old)?;
        escalation::refuse(review, object, old, &self.policies.current())?;
        limit_ranger::give(review, object, &lookup).await?;
        service_account::admit(review, object, self.store.as_ref()).await?;
        tolerations::of_node(review, object);
        priority::admit(review, object, old, &lookup).await?;
        tolerations::of_pod(review, object);
        default_class::admit(review, object, &lookup).await?;
        runtime_class::admit(review, object, &lookup).await?;
        let held = if review.is("", "services") && review.operation != Operation::Delete {
            self.addresses.admit(review, object, old)?
        } else {
            Held::nothing()
        };
        Ok(Admitted { held, fresh })
    }

    /// Runs the part that only judges, on the valid object as it is to be stored. Gives what was charged to quotas.
    pub async fn check(
        &self,
        review: &Review<'_>,
        object: &Value,
        old: Option<&Value>,
        admitted: &Admitted,
    ) -> Result<Charges, ApiError> {
        let lookup = self.lookup(admitted.fresh);
        limit_ranger::check(review, object, &lookup).await?;
        pod_security::admit(review, object, old, &lookup, review.warnings).await?;
        // Last, so that what is refused is not charged.
        let store = self.store.as_ref();
        quota::admit(review, object, old, &lookup, store, &self.turns).await
    }

    /// Another API server took `key` of the reservations first: it is not to be given for now.
    pub async fn lost(&self, key: &str) -> Result<(), StoreError> {
        self.addresses.lost(self.store.as_ref(), key).await
    }

    fn lookup(&self, fresh: Freshness) -> Lookup<'_> {
        Lookup {
            cache: &self.cache,
            fresh,
        }
    }
}
