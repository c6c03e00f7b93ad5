//! The quality-of-service class: how firmly a pod's resources are promised.

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

use super::whole;
use crate::resources::quantity::{Amounts, Quantity};

/// `Guaranteed`, `Burstable` or `BestEffort`. What the pod says as a whole counts, if it says anything.
pub fn class(spec: &PodSpec) -> &'static str {
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let all: Vec<Option<&ResourceRequirements>> = match whole::is_set(spec) {
        true => vec![spec.resources.as_ref()],
        false => containers.map(|it| it.resources.as_ref()).collect(),
    };
    let each = || all.iter().copied();
    if each().all(asks_nothing) {
        "BestEffort"
    } else if each().all(is_guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn amounts(resources: Option<&ResourceRequirements>) -> (Option<&Amounts>, Option<&Amounts>) {
    (
        resources.and_then(|resources| resources.requests.as_ref()),
        resources.and_then(|resources| resources.limits.as_ref()),
    )
}

fn amount(amounts: Option<&Amounts>, name: &str) -> Option<Quantity> {
    amounts?
        .get(name)?
        .0
        .parse()
        .ok()
        .filter(|quantity: &Quantity| !quantity.is_zero())
}

fn asks_nothing(resources: Option<&ResourceRequirements>) -> bool {
    let (requests, limits) = amounts(resources);
    ["cpu", "memory"]
        .iter()
        .all(|name| amount(requests, name).is_none() && amount(limits, name).is_none())
}

/// CPU and memory are limited, to just what is requested.
fn is_guaranteed(resources: Option<&ResourceRequirements>) -> bool {
    let (requests, limits) = amounts(resources);
    ["cpu", "memory"].iter().all(|name| {
        let (request, limit) = (amount(requests, name), amount(limits, name));
        limit.is_some() && (request.is_none() || request == limit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(resources: &[Value]) -> &'static str {
        let containers: Vec<_> = resources
            .iter()
            .map(|one| json!({ "name": "a", "resources": one }))
            .collect();
        class(&serde_json::from_value(json!({ "containers": containers })).unwrap())
    }

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        let full = json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1Gi" } });
        let some = json!({ "requests": { "cpu": "1" } });
        assert_eq!(
            of(&[json!({}), json!({ "requests": { "example.com/gpu": "1" } })]),
            "BestEffort"
        );
        assert_eq!(of(std::slice::from_ref(&full)), "Guaranteed");
        assert_eq!(
            of(&[json!({ "limits": { "cpu": "1", "memory": "1Gi" } })]),
            "Guaranteed"
        );
        assert_eq!(of(&[full.clone(), json!({})]), "Burstable");
        assert_eq!(of(&[full.clone(), some.clone()]), "Burstable");

        let as_a_whole = |resources: &Value, container: &Value| {
            let containers = [json!({ "name": "a", "resources": container })];
            let spec = json!({ "containers": containers, "resources": resources });
            class(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(as_a_whole(&full, &some), "Guaranteed");
        assert_eq!(as_a_whole(&some, &full), "Burstable");
        assert_eq!(as_a_whole(&some, &json!({})), "Burstable");
        assert_eq!(as_a_whole(&json!({}), &full), "Guaranteed");
    }
}
