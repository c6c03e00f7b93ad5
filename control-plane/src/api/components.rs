//! `componentstatuses`: the parts of the control plane, as they are at this moment.

use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::list::ListMeta;
use super::meta;
use super::options::ListOptions;
use super::stored;
use super::verbs::Input;
use crate::resources;
use crate::store::cache::Freshness;

/// How many seconds after its holder's last sign of life a Lease may be without one, if it does not say so.
const LEASE_SECONDS: i64 = 15;

/// Answers GET of all or of one; there is nothing else to do with them.
pub(super) async fn serve(api: &Api, input: &Input<'_>) -> Result<Response, ApiError> {
    if !matches!(input.request.verb, "get" | "list") || !input.request.subresource.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let presenter = input.presenter()?;
    input
        .warnings
        .add("v1 ComponentStatus is deprecated in v1.19+".to_owned());
    let components = all(api).await;
    if input.request.verb == "get" {
        let name = &input.request.name;
        let found = components
            .iter()
            .find(|one| meta::text(one, "name") == name);
        let found = found.ok_or_else(|| ApiError::not_found(input.kind, name))?;
        return presenter.stored(&Bytes::from(found.to_string()));
    }
    let options = ListOptions::parse(input.query)?;
    let chosen = components.iter().filter(|one| {
        let fields = [("metadata.name", meta::text(one, "name").to_owned())];
        options.fields.matches(&fields) && options.labels.matches(&[])
    });
    let items: Vec<Bytes> = chosen.map(|one| Bytes::from(one.to_string())).collect();
    presenter.list(&items, &ListMeta::default())
}

async fn all(api: &Api) -> Vec<Value> {
    let store = api.health.of_store(&*api.registry.store).await;
    vec![
        component(
            "controller-manager",
            part(api, "kube-controller-manager").await,
        ),
        component("etcd-0", store),
        component("scheduler", part(api, "kube-scheduler").await),
    ]
}

/// How a part is that runs here, or where its Lease is held.
async fn part(api: &Api, lease: &str) -> Result<(), &'static str> {
    if !api.health.elects() {
        // Were it not running, this process would have ended.
        return Ok(());
    }
    let kind = resources::find("coordination.k8s.io", "v1", "leases").ok_or("no Leases")?;
    let key = stored::key(kind, "kube-system", lease);
    let found = api.registry.cache.get(&key, Freshness::Any).await;
    let (Some(object), _) = found.map_err(|_| "its Lease cannot be read")? else {
        return Err("nobody runs it: it has no Lease");
    };
    let lease: Value = serde_json::from_slice(&object.json).map_err(|_| "its Lease is none")?;
    match is_held(&lease, meta::now()) {
        true => Ok(()),
        false => Err("nobody runs it: nobody holds its Lease"),
    }
}

fn is_held(lease: &Value, now: i64) -> bool {
    let spec = &lease["spec"];
    let renewed = spec["renewTime"].as_str().unwrap_or_default().parse();
    let renewed = renewed.map_or(0, |at: jiff::Timestamp| at.as_second());
    let seconds = spec["leaseDurationSeconds"].as_i64();
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    !holder.is_empty() && now <= renewed.saturating_add(seconds.unwrap_or(LEASE_SECONDS))
}

fn component(name: &str, health: Result<(), &'static str>) -> Value {
    let condition = match health {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(why) => json!({"type": "Healthy", "status": "False", "error": why}),
    };
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus",
        "metadata": {"name": name}, "conditions": [condition],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_for_as_long_as_it_says() {
        let lease = |holder: &str| {
            json!({"spec": {
                "holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:01:40.000000Z",
            }})
        };
        assert!(is_held(&lease("a"), 100) && is_held(&lease("a"), 115));
        assert!(!is_held(&lease("a"), 116));
        assert!(!is_held(&lease(""), 100));
        assert!(!is_held(&json!({}), 100));
    }
}
