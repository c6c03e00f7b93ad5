//! The `eviction` subresource: `policy/v1 Eviction`, a delete of a pod that a disruption budget may refuse.

mod budgets;

use axum::response::Response;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use self::budgets::Leave;
use super::apply::Manager;
use super::deletion::DeleteOptions;
use super::error::ApiError;
use super::meta;
use super::present;
use super::registry::{Call, Registry, Through, check_preconditions};
use super::stored;
use super::subresources::set_condition;
use super::verbs::Input;
use crate::auth::User;
use crate::resources::{self, Kind, form::EVICTION};
use crate::store::cache::Freshness;

/// How often a pod is looked at anew when it changes in between.
const ATTEMPTS: usize = 16;

pub async fn create(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let eviction = input.form(&EVICTION)?;
    let request = input.request;
    let options = options(&eviction, &request.namespace, &request.name)?;
    let mut call = input.call()?;
    call.dry_run |= options.dry_run;
    evict(registry, &call, &request.name, options).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(present::value(StatusCode::CREATED, &success))
}

/// How the pod `name` is to be deleted.
fn options(eviction: &Value, namespace: &str, name: &str) -> Result<DeleteOptions, ApiError> {
    for (field, on_url) in [("name", name), ("namespace", namespace)] {
        let own = meta::text(eviction, field);
        if !own.is_empty() && own != on_url {
            return Err(ApiError::bad_request(format!(
                "the {field} of the eviction ({own}) does not match the {field} on the URL ({on_url})"
            )));
        }
    }
    DeleteOptions::from_body(&eviction["deleteOptions"])
}

async fn evict(
    registry: &Registry,
    call: &Call<'_>,
    name: &str,
    options: DeleteOptions,
) -> Result<(), ApiError> {
    let mut conflict = None;
    for _ in 0..ATTEMPTS {
        let pod = registry
            .get(call.kind, call.namespace, name, Freshness::Latest)
            .await?;
        let pod: Pod = serde_json::from_slice(&pod.json).map_err(ApiError::internal)?;
        if !budgets::is_beyond_budgets(&pod) {
            return evict_running(registry, call, name, &pod, options).await;
        }
        // What might become ready in between would have to be counted.
        let unasked = options.resource_version.is_none();
        let mut options = options.clone();
        if unasked && budgets::may_become_ready(&pod) {
            options
                .resource_version
                .clone_from(&pod.metadata.resource_version);
        }
        match delete(registry, call, name, options).await {
            Err(error) if error.reason == "Conflict" && unasked => conflict = Some(error),
            outcome => return outcome,
        }
    }
    Err(conflict.unwrap_or_else(|| ApiError::modified(call.kind, name)))
}

async fn evict_running(
    registry: &Registry,
    call: &Call<'_>,
    name: &str,
    pod: &Pod,
    mut options: DeleteOptions,
) -> Result<(), ApiError> {
    let kind = budget_kind()?;
    let there = budgets_in(registry, kind, call.namespace).await?;
    let Some(budget) = budgets::guarding(pod, there)? else {
        return delete(registry, call, name, options).await;
    };
    let guard = budget.metadata.name.clone().unwrap_or_default();
    let unasked = options.resource_version.is_none();
    let leave = budgets::leave(pod, &budget);
    match leave {
        Leave::IfUnchanged if unasked => {
            options
                .resource_version
                .clone_from(&pod.metadata.resource_version);
        }
        Leave::IfUnchanged => {}
        Leave::Counted => spend(registry, call, kind, &guard, name).await?,
    }
    match delete(registry, call, name, options).await {
        // It may have become ready: the next look counts it.
        Err(error) if error.reason == "Conflict" && leave == Leave::IfUnchanged && unasked => {
            Err(budgets::in_progress(&guard))
        }
        outcome => outcome,
    }
}

fn budget_kind() -> Result<&'static Kind, ApiError> {
    resources::find("policy", "v1", "poddisruptionbudgets").ok_or_else(ApiError::no_route)
}

async fn budgets_in(
    registry: &Registry,
    kind: &'static Kind,
    namespace: &str,
) -> Result<Vec<PodDisruptionBudget>, ApiError> {
    let prefix = stored::prefix(kind, namespace);
    let listed = registry
        .cache
        .list(&prefix, Freshness::Latest)
        .await
        .map_err(stored::read_error)?;
    let read = |json: &[u8]| serde_json::from_slice(json).map_err(ApiError::internal);
    let objects = listed.objects.iter();
    objects.map(|object| read(&object.json)).collect()
}

/// Takes one disruption from the budget, if it has one left.
async fn spend(
    registry: &Registry,
    call: &Call<'_>,
    kind: &'static Kind,
    budget: &str,
    pod: &str,
) -> Result<(), ApiError> {
    let manager = Manager {
        subresource: "status".to_owned(),
        ..Manager::server(kind)
    };
    let own = Call {
        user: &User::api_server(),
        kind,
        namespace: call.namespace,
        dry_run: call.dry_run,
        manager: &manager,
        warnings: call.warnings,
    };
    let spent = |old: &Value| {
        let budget: PodDisruptionBudget =
            serde_json::from_value(old.clone()).map_err(ApiError::internal)?;
        let status = budgets::spend(&budget, pod, Timestamp::now())?;
        let mut new = old.clone();
        new["status"] = serde_json::to_value(status).map_err(ApiError::internal)?;
        Ok(new)
    };
    registry
        .update(&own, budget, Through::Status, spent)
        .await?;
    Ok(())
}

/// Says in the pod's status why it goes, and deletes it.
async fn delete(
    registry: &Registry,
    call: &Call<'_>,
    name: &str,
    mut options: DeleteOptions,
) -> Result<(), ApiError> {
    if !call.dry_run {
        let now = meta::rfc3339(meta::now());
        let told = registry
            .update(call, name, Through::Subresource("eviction"), |old| {
                check_preconditions(call.kind, name, old, &options)?;
                Ok(doomed(old, &now))
            })
            .await?;
        // That write was this request's own.
        if options.resource_version.is_some() {
            options.resource_version = Some(meta::text(&told, "resourceVersion").to_owned());
        }
    }
    registry.delete(call, name, &options).await?;
    Ok(())
}

/// The pod with the condition that says so.
fn doomed(pod: &Value, now: &str) -> Value {
    const TYPE: &str = "DisruptionTarget";
    let mut pod = pod.clone();
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut same = conditions.filter(|it| it["type"] == TYPE && it["status"] == "True");
    let since = same.next().map(|it| it["lastTransitionTime"].clone());
    let condition = json!({
        "type": TYPE, "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": since.unwrap_or_else(|| json!(now)),
    });
    set_condition(&mut pod, condition);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_says_how_to_delete() {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": "a"},
            "deleteOptions": {"gracePeriodSeconds": 5, "preconditions": {"uid": "u"}},
        });
        let read = options(&eviction, "a", "p").expect("options");
        assert_eq!((read.grace, read.uid.as_deref()), (Some(5), Some("u")));
        assert!(options(&eviction, "a", "q").is_err());
        assert!(options(&eviction, "b", "p").is_err());
        assert_eq!(options(&json!({}), "a", "p"), Ok(DeleteOptions::default()));
    }

    #[test]
    fn a_pod_that_is_evicted_twice_is_so_since_the_first_time() {
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let first = doomed(&pod, "2026-01-01T00:00:00Z");
        assert_eq!(
            first["status"]["conditions"][1]["reason"],
            "EvictionByEvictionAPI"
        );
        assert_eq!(doomed(&first, "2026-01-01T00:00:09Z"), first);
    }
}
