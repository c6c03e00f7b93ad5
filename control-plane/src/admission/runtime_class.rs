//! RuntimeClass: what a pod's class costs and where it can run, written into the pod.

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::Deserialize;
use serde_json::{Value, json};

use super::lookup::Lookup;
use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::meta;
use crate::resources::quantity;

pub(super) async fn admit(
    review: &Review<'_>,
    object: &mut Value,
    lookup: &Lookup<'_>,
) -> Result<(), ApiError> {
    if !review.is("", "pods")
        || review.operation != Operation::Create
        || !review.subresource.is_empty()
        || !object["spec"].is_object()
    {
        return Ok(());
    }
    let named = object["spec"]["runtimeClassName"].as_str();
    let class = match named.unwrap_or_default() {
        "" => None,
        name => match lookup.get::<RuntimeClass>("", name).await? {
            Some(class) => Some(class),
            None => {
                let why = format!("pod rejected: RuntimeClass \"{name}\" not found");
                return Err(ApiError::forbidden(
                    "",
                    "pods",
                    meta::text(object, "name"),
                    &why,
                ));
            }
        },
    };
    let name = meta::text(object, "name").to_owned();
    give(&mut object["spec"], class.as_ref())
        .map_err(|why| ApiError::forbidden("", "pods", &name, &format!("pod rejected: {why}")))
}

/// Writes a class into a pod, or says what of the pod contradicts it.
fn give(spec: &mut Value, class: Option<&RuntimeClass>) -> Result<(), String> {
    // What cannot be read is refused by validation.
    let pod = PodSpec::deserialize(&*spec).unwrap_or_default();
    let overhead = class.and_then(|class| class.overhead.as_ref()?.pod_fixed.as_ref());
    match (
        overhead,
        pod.overhead.as_ref().filter(|own| !own.is_empty()),
    ) {
        (None, Some(_)) => {
            return Err(
                "Pod Overhead set without corresponding RuntimeClass defined Overhead".into(),
            );
        }
        (Some(fixed), Some(own)) if quantity::sums(Some(fixed)) != quantity::sums(Some(own)) => {
            return Err("Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        (Some(fixed), _) => spec["overhead"] = json!(fixed),
        (None, None) => {}
    }
    let Some(scheduling) = class.and_then(|class| class.scheduling.as_ref()) else {
        return Ok(());
    };
    let own = pod.node_selector.unwrap_or_default();
    for (key, value) in scheduling.node_selector.iter().flatten() {
        if let Some(own) = own.get(key).filter(|own| *own != value) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        if !spec["nodeSelector"].is_object() {
            spec["nodeSelector"] = json!({});
        }
        spec["nodeSelector"][key] = json!(value);
    }
    let mut tolerations = pod.tolerations.unwrap_or_default();
    for toleration in scheduling.tolerations.iter().flatten() {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    if !tolerations.is_empty() {
        spec["tolerations"] = json!(tolerations);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> RuntimeClass {
        serde_json::from_value(json!({
            "handler": "kata", "overhead": {"podFixed": {"memory": "120Mi"}},
            "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [{"key": "kata", "operator": "Exists"}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_class_adds_its_cost_and_its_place() {
        let mut spec = json!({"containers": []});
        give(&mut spec, Some(&class())).unwrap();
        assert_eq!(
            spec,
            json!({
                "containers": [], "overhead": {"memory": "120Mi"}, "nodeSelector": {"kata": "yes"},
                "tolerations": [{"key": "kata", "operator": "Exists"}],
            })
        );
        let once = spec.clone();
        give(&mut spec, Some(&class())).unwrap();
        assert_eq!(spec, once);
    }

    #[test]
    fn a_pod_does_not_contradict_its_class() {
        let with = |field: &str, value: Value| {
            let mut spec = json!({"containers": []});
            spec[field] = value;
            spec
        };
        let refused =
            |mut spec: Value, class: Option<&RuntimeClass>| give(&mut spec, class).unwrap_err();
        let cost = with("overhead", json!({"memory": "1Mi"}));
        assert_eq!(
            refused(cost.clone(), Some(&class())),
            "Pod's Overhead doesn't match RuntimeClass's defined Overhead"
        );
        assert_eq!(
            refused(cost, None),
            "Pod Overhead set without corresponding RuntimeClass defined Overhead"
        );
        assert_eq!(
            refused(with("nodeSelector", json!({"kata": "no"})), Some(&class())),
            "conflict: runtimeClass.scheduling.nodeSelector[kata] = yes; pod.spec.nodeSelector[kata] = no"
        );
    }
}
