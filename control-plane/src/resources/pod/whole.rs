//! What a pod says of the resources of its containers together (KEP-2837). Where it says something of a resource, that counts,
//! and not what its containers say one by one.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{containers, requests};
use crate::resources::quantity::{self, Amounts};
use crate::resources::validate::{FieldError, Path};

const SUPPORTED: [&str; 2] = ["cpu", "memory"];

/// Whether a pod may say something of this resource.
pub fn is_supported(resource: &str) -> bool {
    SUPPORTED.contains(&resource) || resource.starts_with("hugepages-")
}

/// What is requested, as far as it is something that a pod may say.
pub fn requests(spec: &PodSpec) -> Amounts {
    supported(spec.resources.as_ref().and_then(|it| it.requests.as_ref()))
}

/// The limits, in the same way.
pub fn limits(spec: &PodSpec) -> Amounts {
    supported(spec.resources.as_ref().and_then(|it| it.limits.as_ref()))
}

fn supported(amounts: Option<&Amounts>) -> Amounts {
    let mut amounts = amounts.cloned().unwrap_or_default();
    amounts.retain(|name, _| is_supported(name));
    amounts
}

/// Whether it says anything.
pub fn is_set(spec: &PodSpec) -> bool {
    !requests(spec).is_empty() || !limits(spec).is_empty()
}

/// What a pod requests as a whole where it does not say it: what its containers request together, or its limit.
pub(super) fn default_requests(spec: &mut PodSpec) {
    if !is_set(spec) {
        return;
    }
    let of_containers = quantity::written(&requests::of_containers(spec, requests::REQUESTS));
    let limits = limits(spec);
    let requests = spec
        .resources
        .get_or_insert_default()
        .requests
        .get_or_insert_default();
    for (name, amount) in of_containers.into_iter().chain(limits) {
        if is_supported(&name) {
            requests.entry(name).or_insert(amount);
        }
    }
}

pub(super) fn errors(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let Some(resources) = &spec.resources else {
        return Vec::new();
    };
    let own = path.child("resources");
    let mut errors = Vec::new();
    if resources.claims.as_ref().is_some_and(|it| !it.is_empty()) {
        let claims = own.child("claims");
        errors.push(claims.forbidden("claims are not supported for pod-level resources"));
    }
    for (field, amounts) in [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ] {
        let path = own.child(field);
        let names = amounts.iter().flat_map(|amounts| amounts.keys());
        let bad = names.filter(|name| !is_supported(name));
        errors.extend(bad.map(|name| path.key(name).unsupported(name, &SUPPORTED)));
        errors.extend(quantity::errors(&path, amounts.as_ref()));
    }
    errors.extend(containers::beyond_limits(&own, resources));
    let asked = quantity::sums(Some(&requests(spec)));
    for (name, sum) in requests::of_containers(spec, requests::REQUESTS) {
        if let Some(request) = asked.get(&name).filter(|request| **request < sum) {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {sum}");
            let path = own.child("requests").key(&name);
            errors.push(path.invalid(request.to_string(), detail));
        }
    }
    let limits = quantity::sums(Some(&limits(spec)));
    let lists: [(&str, &[Container]); 2] = [
        ("containers", &spec.containers),
        (
            "initContainers",
            spec.init_containers.as_deref().unwrap_or_default(),
        ),
    ];
    for (field, list) in lists {
        for (index, container) in list.iter().enumerate() {
            let path = path.child(field).index(index).child("resources");
            for (name, limit) in quantity::sums(requests::LIMITS(container)) {
                if let Some(most) = limits.get(&name).filter(|most| **most < limit) {
                    let detail = format!("must be less than or equal to pod limits of {most}");
                    let path = path.child("limits").key(&name);
                    errors.push(path.invalid(limit.to_string(), detail));
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(resources: Value, containers: &[Value]) -> PodSpec {
        let containers: Vec<Value> = containers
            .iter()
            .map(|of_one| json!({ "name": "a", "image": "b", "resources": of_one }))
            .collect();
        let spec = json!({ "resources": resources, "containers": containers });
        serde_json::from_value(spec).unwrap()
    }

    fn defaulted(resources: Value, containers: &[Value]) -> Value {
        let mut spec = spec(resources, containers);
        super::super::defaults::pod(&mut spec);
        json!(spec.resources)
    }

    #[test]
    fn requests_are_those_of_the_containers_or_else_the_limits() {
        let limits = json!({ "limits": { "cpu": "2.0", "memory": "1Gi" } });
        assert_eq!(
            defaulted(limits.clone(), &[json!({}), json!({})]),
            json!({ "limits": { "cpu": "2", "memory": "1Gi" }, "requests": { "cpu": "2", "memory": "1Gi" } })
        );
        let some = json!({ "requests": { "cpu": "250m" } });
        assert_eq!(
            defaulted(limits, &[some.clone(), some.clone()])["requests"],
            json!({ "cpu": "500m", "memory": "1Gi" })
        );
        let asked = json!({ "requests": { "cpu": "1" } });
        assert_eq!(defaulted(asked.clone(), &[some.clone()]), asked);
        assert_eq!(
            defaulted(json!({}), &[some]),
            json!({}),
            "without a word nothing is filled in"
        );
    }

    #[test]
    fn a_pod_says_no_less_than_its_containers() {
        let texts = |resources, containers: &[Value]| -> Vec<String> {
            let mut spec = spec(resources, containers);
            super::super::defaults::pod(&mut spec);
            let errors = errors(&Path::new("spec"), &spec);
            errors.iter().map(ToString::to_string).collect()
        };
        let full = json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } });
        assert_eq!(texts(full.clone(), std::slice::from_ref(&full)), [""; 0]);
        let half = json!({ "requests": { "cpu": "750m" }, "limits": { "cpu": "750m" } });
        assert_eq!(
            texts(full.clone(), &[half.clone(), half]),
            [
                "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1500m"
            ]
        );
        assert_eq!(
            texts(
                full,
                &[json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "3" } })]
            ),
            [
                "spec.containers[0].resources.limits[cpu]: Invalid value: \"3\": must be less than or equal to pod limits of 2"
            ]
        );
        assert_eq!(
            texts(
                json!({ "requests": { "cpu": "2", "ephemeral-storage": "1Gi" }, "limits": { "cpu": "1" } }),
                &[json!({})]
            ),
            [
                "spec.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"memory\"",
                "spec.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
            ]
        );
    }
}
