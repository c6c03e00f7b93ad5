//! The admission chain: what changes or refuses a request after it was authorized and before it is stored.
//!
//! The chain is a list of functions in [`Admission::admit`]; each sees the [`Review`] and the object, and may change the
//! object or refuse. What one of them took from a pool is given back unless the write succeeds.

mod certificates;
mod escalation;
mod namespace;
mod node;
mod service_account;
pub mod service_ip;

use std::sync::Arc;

use serde_json::Value;

use crate::api::error::ApiError;
use crate::auth::User;
use crate::auth::rbac::Policies;
use crate::resources::Kind;
use crate::store::Store;
use service_ip::{Held, ServiceAddresses};

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
    addresses: Arc<ServiceAddresses>,
    policies: Arc<Policies>,
}

impl Admission {
    pub fn new(
        store: Arc<dyn Store>,
        addresses: Arc<ServiceAddresses>,
        policies: Arc<Policies>,
    ) -> Self {
        Admission {
            store,
            addresses,
            policies,
        }
    }

    /// Runs the chain. `old` is the present state for an update. For a deletion `object` is what is to be deleted.
    pub async fn admit(
        &self,
        review: &Review<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Held, ApiError> {
        namespace::lifecycle(review, object, self.store.as_ref()).await?;
        certificates::identify(review, object);
        node::restrict(review, object, old)?;
        escalation::refuse(review, object, old, &self.policies.current())?;
        service_account::admit(review, object, self.store.as_ref()).await?;
        if review.is("", "services") && review.operation != Operation::Delete {
            return self.addresses.admit(review, object, old);
        }
        Ok(Held::nothing())
    }
}
