//! Namespace lifecycle: nothing new in a namespace that is not there or is going; some namespaces stay.

use serde_json::Value;

use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::stored;
use crate::resources;
use crate::store::Store;
use crate::store::cache::Freshness;

/// Namespaces that the cluster cannot do without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Gives how new the answers to what follows must be: for what is new in a namespace, as new as the namespace was read here.
pub(super) async fn lifecycle(
    review: &Review<'_>,
    object: &Value,
    store: &dyn Store,
) -> Result<Freshness, ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if review.operation == Operation::Delete
        && review.is("", "namespaces")
        && IMMORTAL.contains(&name)
    {
        return Err(ApiError::forbidden(
            "",
            "namespaces",
            name,
            "this namespace may not be deleted",
        ));
    }
    if review.operation != Operation::Create || review.namespace.is_empty() {
        return Ok(Freshness::Latest);
    }
    let Some(kind) = resources::find("", "v1", "namespaces") else {
        return Ok(Freshness::Latest);
    };
    let key = stored::key(kind, "", review.namespace);
    let (entry, revision) = store.get(&key).await.map_err(stored::store_error)?;
    let entry = entry.ok_or_else(|| ApiError::not_found(kind, review.namespace))?;
    let namespace = stored::object_of(kind, &entry)?;
    if namespace["metadata"]["deletionTimestamp"].is_string() {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            review.namespace
        );
        let cause = format!("namespace {} is being terminated", review.namespace);
        return Err(
            ApiError::forbidden(review.kind.group, review.kind.plural, name, &why)
                .with_cause("NamespaceTerminating", &cause),
        );
    }
    Ok(Freshness::NotOlderThan(revision))
}
