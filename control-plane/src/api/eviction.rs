//! The `eviction` subresource: `policy/v1 Eviction`, a delete of a pod that a disruption budget could refuse. There are no
//! budgets, so none does.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::body;
use super::content;
use super::deletion::DeleteOptions;
use super::error::ApiError;
use super::meta;
use super::present;
use super::registry::Registry;
use super::verbs::Input;

pub async fn create(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    content::require_json(input.headers)?;
    let eviction = body::parse(&input.body, content::encoding(input.headers)?)?;
    let request = input.request;
    let options = options(&eviction, &request.namespace, &request.name)?;
    let mut call = input.call()?;
    call.dry_run |= options.dry_run;
    registry.delete(&call, &request.name, &options).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(present::value(StatusCode::CREATED, &success))
}

/// How the pod `name` is to be deleted.
fn options(eviction: &Value, namespace: &str, name: &str) -> Result<DeleteOptions, ApiError> {
    let text = |field: &str| eviction[field].as_str().unwrap_or_default();
    if !matches!(text("kind"), "" | "Eviction")
        || !matches!(text("apiVersion"), "" | "policy/v1" | "policy/v1beta1")
    {
        return Err(ApiError::bad_request(format!(
            "the body of the request is a {} {}, not a policy/v1 Eviction",
            text("apiVersion"),
            text("kind")
        )));
    }
    for (field, on_url) in [("name", name), ("namespace", namespace)] {
        let own = meta::text(eviction, field);
        if !own.is_empty() && own != on_url {
            return Err(ApiError::bad_request(format!(
                "the {field} of the eviction ({own}) does not match the {field} on the URL ({on_url})"
            )));
        }
    }
    DeleteOptions::from_body(&eviction["deleteOptions"]).map_err(ApiError::bad_request)
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
        assert!(options(&json!({"kind": "Pod"}), "a", "p").is_err());
        assert_eq!(options(&json!({}), "a", "p"), Ok(DeleteOptions::default()));
    }
}
