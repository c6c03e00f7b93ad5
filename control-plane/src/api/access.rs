//! The authorizer's question about the cluster, answered: does a pod on this node refer to what the node asks for?

use serde_json::Value;

use super::error::ApiError;
use super::registry::Registry;
use super::stored;
use crate::auth::{self, Attributes, Decision, Referenced, User};
use crate::resources;
use crate::store::cache::Freshness;

/// The authorizer's answer, complete.
pub enum Access {
    /// And why, where there is more to say than who the user is.
    Allowed(String),
    /// And why, where there is more to say than that nothing allows it.
    Refused(String),
}

/// Why the user may not do this, as a sentence; None if it may.
pub async fn refusal(
    registry: &Registry,
    user: &User,
    attributes: &Attributes<'_>,
) -> Result<Option<String>, ApiError> {
    Ok(match decide(registry, user, attributes).await? {
        Access::Allowed(_) => None,
        Access::Refused(hint) => Some(auth::refusal(user, attributes, &hint)),
    })
}

/// Whether the user may do this.
pub async fn decide(
    registry: &Registry,
    user: &User,
    attributes: &Attributes<'_>,
) -> Result<Access, ApiError> {
    let policy = registry.policies.current();
    Ok(match auth::authorize(&policy, user, attributes) {
        Decision::Allow(why) => Access::Allowed(why),
        Decision::Deny { hint } => Access::Refused(hint),
        Decision::IfReferredTo { node, object, hint } => {
            let (namespace, name) = (attributes.namespace, attributes.name);
            match is_referred_to(registry, &node, namespace, object, name).await? {
                true => Access::Allowed(String::new()),
                false => Access::Refused(hint),
            }
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
