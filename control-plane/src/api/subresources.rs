//! The subresources that change an object in a way of their own: binding a pod, approving a certificate request,
//! finalizing a namespace.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::apply::Part;
use super::applying;
use super::body::{self, FieldValidation};
use super::content;
use super::error::ApiError;
use super::meta;
use super::patching::{self, Patch};
use super::present;
use super::registry::{self, EPHEMERAL, RESIZE, Registry, Through};
use super::verbs::Input;
use crate::resources::{
    Kind,
    form::BINDING,
    pod::{ephemeral, resize},
};

/// POST of a `Binding`: puts a pod on a node.
pub async fn bind(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let binding = input.form(&BINDING)?;
    let own = meta::text(&binding, "name");
    let name = if input.request.name.is_empty() {
        own
    } else {
        &input.request.name
    };
    if !own.is_empty() && own != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({name})"
        )));
    }
    let now = meta::rfc3339(meta::now());
    let through = Through::Subresource(registry::BINDING);
    registry
        .update(&input.call()?, name, through, |pod| {
            bound(input.kind, pod, &binding, &now)
        })
        .await?;
    Ok(created())
}

fn bound(kind: &Kind, pod: &Value, binding: &Value, now: &str) -> Result<Value, ApiError> {
    let name = meta::text(pod, "name");
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    if node.is_empty() || !matches!(target["kind"].as_str(), None | Some("" | "Node")) {
        return Err(ApiError::bad_request(
            "target: Required value: a binding's target is a Node with a name",
        ));
    }
    let present = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !present.is_empty() {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} is already assigned to node \"{present}\""),
        ));
    }
    if meta::is_terminating(pod) {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let gates = pod["spec"]["schedulingGates"].as_array();
    if gates.is_some_and(|gates| !gates.is_empty()) {
        return Err(ApiError::conflict(
            kind,
            name,
            &format!("pod {name} has non-empty .spec.schedulingGates"),
        ));
    }
    let asked = meta::text(binding, "uid");
    if !asked.is_empty() && asked != meta::text(pod, "uid") {
        return Err(ApiError::conflict(
            kind,
            name,
            "Precondition failed: UID in precondition is not the pod's",
        ));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = json!(node);
    for field in ["annotations", "labels"] {
        if let Some(extra) = binding["metadata"][field].as_object() {
            for (key, value) in extra {
                pod["metadata"][field][key] = value.clone();
            }
        }
    }
    set_condition(
        &mut pod,
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}),
    );
    Ok(pod)
}

/// What is answered when nothing was made that could be shown.
fn created() -> Response {
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    present::value(StatusCode::CREATED, &success)
}

/// Puts a condition in the place of the one of its type.
pub(super) fn set_condition(object: &mut Value, condition: Value) {
    let conditions = &mut object["status"]["conditions"];
    match conditions {
        Value::Array(all) => {
            all.retain(|c| c["type"] != condition["type"]);
            all.push(condition);
        }
        other => *other = json!([condition]),
    }
}

/// PUT or PATCH of `approval`: only the conditions of a certificate request change.
pub async fn approve(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let part = &["status", "conditions"];
    change(registry, input, ("approval", part), |old, new| {
        let mut next = old.clone();
        next["status"]["conditions"] = new["status"]["conditions"].clone();
        Ok(next)
    })
    .await
}

/// PUT of `finalize`: only the finalizers in a namespace's spec change.
pub async fn finalize(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let part = &["spec", "finalizers"];
    change(registry, input, ("finalize", part), |old, new| {
        let mut next = old.clone();
        if !next["spec"].is_object() {
            next["spec"] = json!({});
        }
        next["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
        Ok(next)
    })
    .await
}

/// PUT or PATCH of `ephemeralcontainers`: only those of the pod change, and only by more of them.
pub async fn add_ephemeral(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let kind = input.kind;
    let part = &["spec", "ephemeralContainers"];
    change(registry, input, (EPHEMERAL, part), |old, new| {
        let mut next = old.clone();
        next["spec"]["ephemeralContainers"] = new["spec"]["ephemeralContainers"].clone();
        (kind.default)(&mut next);
        let errors = ephemeral::errors(&next, old);
        if !errors.is_empty() {
            let name = meta::text(old, "name");
            return Err(ApiError::invalid(kind.group, kind.kind, name, &errors));
        }
        Ok(next)
    })
    .await
}

/// PUT or PATCH of `resize`: only the resources of the pod's containers change.
pub async fn resize(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let kind = input.kind;
    let part: &[&str] = &["spec"];
    change(registry, input, (RESIZE, part), |old, new| {
        let mut next = resize::resized(old, new);
        (kind.default)(&mut next);
        let errors = resize::errors(&next, old);
        if !errors.is_empty() {
            let name = meta::text(old, "name");
            return Err(ApiError::invalid(kind.group, kind.kind, name, &errors));
        }
        Ok(next)
    })
    .await
}

/// What a client sent to change a part of an object.
enum Sent {
    Whole(Value),
    Patch(Patch),
    /// The configuration of a server-side apply.
    Config(Value),
}

impl Sent {
    fn read(input: &Input<'_>) -> Result<Self, ApiError> {
        if input.request.verb != "patch" {
            let encoding = content::encoding(input.headers)?;
            let sent = body::object(input.kind, &input.body, encoding, FieldValidation::Ignore)?;
            return Ok(Self::Whole(sent.object));
        }
        if applying::is_apply(input.headers) {
            return applying::configuration(input).map(Self::Config);
        }
        patching::patch_of(input.headers, &input.body).map(Self::Patch)
    }

    /// What the client wants of the object.
    fn wanted(&self, input: &Input<'_>, old: &Value, part: Part) -> Result<Value, ApiError> {
        match self {
            Self::Whole(object) => Ok(object.clone()),
            Self::Config(config) => applying::applied(input, old, config, part),
            Self::Patch(patch) => {
                let patched = patching::apply(patch, Some(input.kind), old)?;
                let decoded =
                    body::typed(input.kind, patched, Vec::new(), FieldValidation::Ignore)?;
                Ok(decoded.object)
            }
        }
    }
}

/// Updates a part of an object with what the client sent: `take` makes the next state of the present one and the wanted one.
async fn change(
    registry: &Registry,
    input: &Input<'_>,
    (subresource, part): (&'static str, &'static [&'static str]),
    take: impl Fn(&Value, &Value) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let sent = Sent::read(input)?;
    let updated = registry
        .update(
            &input.call()?,
            &input.request.name,
            Through::Subresource(subresource),
            |old| {
                let new = sent.wanted(input, old, Part::Below(part))?;
                let mut next = take(old, &new)?;
                let asked = meta::text(&new, "resourceVersion");
                meta::of(&mut next).insert("resourceVersion".to_owned(), json!(asked));
                if let Sent::Config(_) = sent {
                    next["metadata"]["managedFields"] = new["metadata"]["managedFields"].clone();
                }
                // What was null before stays away.
                body::typed(input.kind, next, Vec::new(), FieldValidation::Ignore).map(|d| d.object)
            },
        )
        .await?;
    Ok(presenter.object(StatusCode::OK, updated))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;

    #[test]
    fn a_pod_is_bound_once() {
        let kind = resources::find("", "v1", "pods").expect("a kind");
        let pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        let binding = json!({"target": {"kind": "Node", "name": "n1"}, "metadata": {"annotations": {"a": "b"}}});
        let once = bound(kind, &pod, &binding, "now").expect("bound");
        assert_eq!(once["spec"]["nodeName"], "n1");
        assert_eq!(once["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            once["status"]["conditions"].as_array().map(Vec::len),
            Some(1)
        );
        let again = bound(kind, &once, &binding, "now").map_err(|e| e.message);
        assert_eq!(
            again,
            Err("Operation cannot be fulfilled on pods \"p\": pod p is already assigned to node \"n1\"".into())
        );
        assert!(bound(kind, &pod, &json!({}), "now").is_err());
        let mut gated = pod.clone();
        gated["spec"]["schedulingGates"] = json!([{"name": "wait"}]);
        let refused = bound(kind, &gated, &binding, "now").map_err(|e| (e.code, e.message));
        assert_eq!(
            refused,
            Err((
                StatusCode::CONFLICT,
                "Operation cannot be fulfilled on pods \"p\": pod p has non-empty .spec.schedulingGates".into()
            ))
        );
    }
}
