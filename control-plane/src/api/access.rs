//! The authorizer's question about the cluster, answered: does a pod on this node refer to what the node asks for?

use serde_json::Value;

use super::error::ApiError;
use super::registry::Registry;
use super::stored;
use crate::auth::{self, Attributes, Decision, Referenced, User};
use crate::resources;
use crate::store::cache::Freshness;

/// Why the user may not do this; None if it may.
pub async fn refusal(
    registry: &Registry,
    user: &User,
    attributes: &Attributes<'_>,
) -> Result<Option<String>, ApiError> {
    Ok(match auth::authorize(user, attributes) {
        Decision::Allow => None,
        Decision::Deny(why) => Some(why),
        Decision::IfReferredTo {
            node,
            object,
            refusal,
        } => {
            let (namespace, name) = (attributes.namespace, attributes.name);
            let referred = is_referred_to(registry, &node, namespace, object, name).await?;
            (!referred).then_some(refusal)
        }
    })
}

/// Whether a pod that is bound to `node` refers to the object `name` in its namespace.
async fn is_referred_to(
    registry: &Registry,
    node: &str,
    namespace: &str,
    object: Referenced,
    name: &str,
) -> Result<bool, ApiError> {
    let pods = resources::find("", "v1", "pods").ok_or_else(ApiError::no_route)?;
    // The node learnt of its pods from this cache, or asks again soon.
    let listing = registry
        .cache
        .list(&stored::prefix(pods, namespace), Freshness::Any)
        .await
        .map_err(stored::read_error)?;
    for pod in listing.objects {
        let here = pod
            .fields
            .iter()
            .any(|(path, value)| *path == "spec.nodeName" && value == node);
        if !here {
            continue;
        }
        let pod: Value = serde_json::from_slice(&pod.json).map_err(ApiError::internal)?;
        if auth::references(&pod, object).contains(name) {
            return Ok(true);
        }
    }
    Ok(false)
}
