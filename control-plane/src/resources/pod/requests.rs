//! What a pod takes at most at any time: its containers together, or one of its init containers beside the sidecars that
//! were started before it; of a resource of which the pod says something as a whole, that.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::whole;
use crate::resources::quantity::{self, Amounts, Sums};

/// The peak of what `of` says of each container, in any kind of amounts that can be added and raised. The pod's overhead
/// is not in it.
pub fn peak<T: Clone + Default>(
    spec: &PodSpec,
    of: impl Fn(&Container) -> T,
    add: impl Fn(&mut T, &T),
    raise: impl Fn(&mut T, &T),
) -> T {
    let (mut sidecars, mut peak) = (T::default(), T::default());
    for container in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        add(&mut now, &of(container));
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = now.clone();
        }
        raise(&mut peak, &now);
    }
    let mut total = sidecars;
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    raise(&mut total, &peak);
    total
}

type Of = fn(&Container) -> Option<&Amounts>;

pub(super) const REQUESTS: Of = |container| container.resources.as_ref()?.requests.as_ref();
pub(super) const LIMITS: Of = |container| container.resources.as_ref()?.limits.as_ref();

/// What the pod asks for, with its overhead.
pub fn requests(spec: &PodSpec) -> Sums {
    let mut total = of_containers(spec, REQUESTS);
    total.extend(quantity::sums(Some(&whole::requests(spec))));
    quantity::add(&mut total, &quantity::sums(spec.overhead.as_ref()));
    total
}

/// What the pod is limited to, with its overhead where there is a limit.
pub fn limits(spec: &PodSpec) -> Sums {
    let mut total = of_containers(spec, LIMITS);
    total.extend(quantity::sums(Some(&whole::limits(spec))));
    let mut overhead = quantity::sums(spec.overhead.as_ref());
    overhead.retain(|name, _| total.contains_key(name));
    quantity::add(&mut total, &overhead);
    total
}

/// The peak of one kind of amounts, whatever the pod says as a whole.
pub(super) fn of_containers(spec: &PodSpec, of: Of) -> Sums {
    peak(
        spec,
        |container| quantity::sums(of(container)),
        quantity::add,
        quantity::raise,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cpu(spec: Value) -> (String, String) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let text = |sums: Sums| sums.get("cpu").map_or(String::new(), ToString::to_string);
        (text(requests(&spec)), text(limits(&spec)))
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "a", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn containers_add_up_and_init_containers_take_turns() {
        let two = json!([container("100m"), container("200m")]);
        assert_eq!(
            cpu(json!({"containers": two})),
            ("300m".into(), String::new())
        );
        let spec =
            json!({"containers": two, "initContainers": [container("250m"), container("1")]});
        assert_eq!(cpu(spec).0, "1");
    }

    #[test]
    fn a_sidecar_stays_and_overhead_comes_on_top() {
        let mut sidecar = container("50m");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({
            "containers": [container("100m")], "initContainers": [sidecar, container("500m")],
            "overhead": {"cpu": "10m"},
        });
        assert_eq!(cpu(spec), ("560m".into(), String::new()));
        let limited = json!({
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}], "overhead": {"cpu": "10m"},
        });
        assert_eq!(cpu(limited).1, "1010m");
    }

    #[test]
    fn what_the_pod_says_as_a_whole_counts_with_its_overhead() {
        let spec = json!({
            "containers": [container("100m")], "overhead": {"cpu": "10m"},
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}},
        });
        assert_eq!(cpu(spec), ("1010m".into(), "2010m".into()));
    }
}
