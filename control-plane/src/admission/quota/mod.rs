//! ResourceQuota: what a request adds is charged to each quota that it concerns, by compare-and-swap on the quota's status,
//! and refused where that would be too much.
//!
//! What a write that fails afterwards has charged is given back at once if nobody charged the quota in between; else, and for
//! what is deleted, a controller counts anew.

mod decide;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::{Value, json};

use super::lookup::{Lookup, kind};
use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::registry::RESIZE;
use crate::api::{meta, stored};
use crate::resources::Kind;
use crate::resources::quantity;
use crate::resources::resourcequota::usage;
use crate::store::{Entry, Expect, Revision, Store, StoreError};
use decide::{Change, Charge, charge};

/// How often a charge is tried anew when others change the quota in between.
const ATTEMPTS: usize = 16;

/// Charges of one namespace wait for each other: each would otherwise be tried anew for each other one.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let present = turns.get(namespace).and_then(Weak::upgrade);
        present.unwrap_or_else(|| {
            let turn = Arc::default();
            turns.insert(namespace.to_owned(), Arc::downgrade(&turn));
            turn
        })
    }
}

/// What a request has charged: each quota's key, its state before, and when it was charged.
#[derive(Debug, Default)]
pub struct Charges(Vec<(String, Bytes, Revision)>);

impl Charges {
    /// For a write that did not happen. A quota that changed since is left to its controller, which may have counted anew.
    pub async fn give_back(self, store: &dyn Store) {
        for (key, before, charged) in self.0 {
            if let Err(error) = store.put(&key, before, Expect::Modified(charged)).await {
                tracing::debug!(key, %error, "a charge stays until the quota is counted anew");
            }
        }
    }
}

/// Charges a request, or refuses it.
pub(super) async fn admit(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
    lookup: &Lookup<'_>,
    store: &dyn Store,
    turns: &Turns,
) -> Result<Charges, ApiError> {
    let is_new = review.operation == Operation::Create;
    let is_resize = review.is("", "pods") && review.subresource == RESIZE;
    let may_change = is_resize || usage::may_change(review.kind);
    let changed = review.operation == Operation::Update && may_change;
    let limited = usage::is_limited(review.kind) && (is_resize || review.subresource.is_empty());
    if !limited || !(is_new || changed) {
        return Ok(Charges::default());
    }
    let quotas: Vec<ResourceQuota> = lookup.list(review.namespace).await?;
    if quotas.is_empty() {
        return Ok(Charges::default());
    }
    let (kind, now) = (kind::<ResourceQuota>()?, meta::now());
    let change = Change {
        kind: review.kind,
        new: object,
        old,
        now,
    };
    let name = meta::text(object, "name");
    let refusal =
        |why: String| ApiError::forbidden(review.kind.group, review.kind.plural, name, &why);
    if review.dry_run {
        for quota in &quotas {
            charge(quota, &change).map_err(refusal)?;
        }
        return Ok(Charges::default());
    }
    let turn = turns.of(review.namespace);
    let _turn = turn.lock().await;
    let keys = quotas
        .iter()
        .filter_map(|quota| quota.metadata.name.as_deref());
    let keys = keys.map(|name| stored::key(kind, review.namespace, name));
    let mut done = Charges::default();
    match charge_all(kind, keys.collect(), &change, store, &mut done).await {
        Ok(()) => Ok(done),
        Err(refused) => {
            done.give_back(store).await;
            Err(match refused {
                Refused::Because(why) => refusal(why),
                Refused::Failed(error) => error,
            })
        }
    }
}

/// Why a change was not charged.
enum Refused {
    Because(String),
    Failed(ApiError),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Refused::Failed(error)
    }
}

/// Charges the quotas under the keys, and notes in `done` which.
async fn charge_all(
    kind: &'static Kind,
    mut keys: Vec<String>,
    change: &Change<'_>,
    store: &dyn Store,
    done: &mut Charges,
) -> Result<(), Refused> {
    for _ in 0..ATTEMPTS {
        // First all are asked, so that what one refuses is charged to none.
        let mut charges = Vec::new();
        for key in &keys {
            let (entry, _) = store.get(key).await.map_err(stored::store_error)?;
            let Some(entry) = entry else { continue };
            let quota: ResourceQuota = serde_json::from_value(stored::object_of(kind, &entry)?)
                .map_err(ApiError::internal)?;
            if let Some(charge) = charge(&quota, change).map_err(Refused::Because)? {
                charges.push((key.clone(), entry, charge));
            }
        }
        keys.clear();
        for (key, entry, charge) in charges {
            let bytes = charged(&entry, &charge)?;
            match store
                .put(&key, bytes, Expect::Modified(entry.modified))
                .await
            {
                Ok(revision) => done.0.push((key, entry.value, revision)),
                Err(StoreError::Conflict { .. }) => keys.push(key),
                Err(error) => return Err(stored::store_error(error).into()),
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
    }
    let name = keys.first().and_then(|key| key.rsplit('/').next());
    Err(ApiError::modified(kind, name.unwrap_or_default()).into())
}

/// The stored quota with what is used now.
fn charged(entry: &Entry, charge: &Charge) -> Result<Bytes, ApiError> {
    let mut quota: Value = serde_json::from_slice(&entry.value).map_err(ApiError::internal)?;
    if !quota["status"].is_object() {
        quota["status"] = json!({});
    }
    quota["status"]["used"] = json!(quantity::written(&charge.used));
    let bytes = serde_json::to_vec(&quota).map_err(ApiError::internal)?;
    Ok(bytes.into())
}
