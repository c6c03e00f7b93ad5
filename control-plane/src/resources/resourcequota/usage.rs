//! What objects use of quotas.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use serde::Deserialize;
use serde_json::Value;

use crate::resources::Kind;
use crate::resources::pod::requests;
use crate::resources::quantity::{self, Quantity, Sums};
use crate::resources::validate::resource_names;

const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Kinds that are counted under their plain plural, too.
const BY_PLURAL: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// The name under which objects of a kind are counted: `count/deployments.apps`.
pub fn count_name(kind: &Kind) -> String {
    format!("count/{}", kind.qualified_plural())
}

/// Whether quotas are about objects of the kind at all. Events come and go too fast to be counted, as upstream.
pub fn is_limited(kind: &Kind) -> bool {
    kind.namespaced && kind.kind != "Event"
}

/// Whether objects of the kind may use something of that name.
pub fn concerns(kind: &Kind, name: &str) -> bool {
    if name == count_name(kind) {
        return is_limited(kind);
    }
    if !kind.group.is_empty() {
        return false;
    }
    match kind.plural {
        "pods" => {
            let asked = name.strip_prefix("requests.").unwrap_or(name);
            let limited = name.strip_prefix("limits.").unwrap_or(asked);
            matches!(limited, "cpu" | "memory" | "ephemeral-storage")
                || name == "pods"
                || asked.starts_with("hugepages-")
                || name != asked && resource_names::is_extended(asked)
        }
        "services" => matches!(
            name,
            "services" | "services.nodeports" | "services.loadbalancers"
        ),
        "persistentvolumeclaims" => {
            let name = name.split_once(OF_CLASS).map_or(name, |(_, name)| name);
            matches!(name, "persistentvolumeclaims" | "requests.storage")
        }
        plural => plural == name && BY_PLURAL.contains(&plural),
    }
}

/// Whether an update of such objects can change what they use.
pub fn may_change(kind: &Kind) -> bool {
    kind.group.is_empty() && matches!(kind.plural, "services" | "persistentvolumeclaims")
}

/// What an object uses. `now` is seconds since the Unix epoch.
pub fn of(kind: &Kind, object: &Value, now: i64) -> Sums {
    let one = Quantity::count(1);
    let mut used = Sums::from([(count_name(kind), one)]);
    if !kind.group.is_empty() {
        return used;
    }
    if BY_PLURAL.contains(&kind.plural) {
        used.insert(kind.plural.to_owned(), one);
    }
    let more = match kind.plural {
        "pods" => Pod::deserialize(object).map(|pod| of_pod(&pod, now)),
        "services" => Service::deserialize(object).map(|service| of_service(&service)),
        "persistentvolumeclaims" => {
            PersistentVolumeClaim::deserialize(object).map(|claim| of_claim(&claim))
        }
        _ => Ok(Sums::new()),
    };
    // What cannot be read is refused elsewhere.
    quantity::add(&mut used, &more.unwrap_or_default());
    used
}

/// A pod that has ended, or whose time to stop is over, holds nothing any more.
fn of_pod(pod: &Pod, now: i64) -> Sums {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let deleted = pod.metadata.deletion_timestamp.as_ref();
    let grace = pod
        .metadata
        .deletion_grace_period_seconds
        .unwrap_or_default();
    let overdue = deleted.is_some_and(|time| time.0.as_second().saturating_add(grace) < now);
    if matches!(phase, Some("Succeeded" | "Failed")) || overdue {
        return Sums::new();
    }
    let mut used = Sums::from([("pods".to_owned(), Quantity::count(1))]);
    let Some(spec) = &pod.spec else {
        return used;
    };
    used.extend(of_resources(
        &requests::requests(spec),
        &requests::limits(spec),
    ));
    used
}

/// Requests and limits, under the names that quotas have for them.
pub fn of_resources(requests: &Sums, limits: &Sums) -> Sums {
    let mut used = Sums::new();
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-");
        if plain {
            used.insert(name.clone(), *amount);
        }
        if plain || resource_names::is_extended(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

fn of_service(service: &Service) -> Sums {
    let Some(spec) = &service.spec else {
        return Sums::new();
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let count = |ports: usize| Quantity::count(i64::try_from(ports).unwrap_or(i64::MAX));
    let mut used = Sums::new();
    match spec.type_.as_deref() {
        Some("NodePort") => {
            used.insert("services.nodeports".to_owned(), count(ports.len()));
        }
        Some("LoadBalancer") => {
            // Without ports on nodes only those count that it has all the same.
            let given = ports
                .iter()
                .filter(|p| p.node_port.is_some_and(|port| port != 0));
            let number = match spec.allocate_load_balancer_node_ports {
                Some(false) => given.count(),
                _ => ports.len(),
            };
            used.insert("services.nodeports".to_owned(), count(number));
            used.insert("services.loadbalancers".to_owned(), Quantity::count(1));
        }
        _ => {}
    }
    used
}

fn of_claim(claim: &PersistentVolumeClaim) -> Sums {
    let spec = claim.spec.as_ref();
    let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
    let class = class.filter(|class| !class.is_empty());
    let asked = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let given = claim.status.as_ref();
    let given = given.and_then(|status| status.allocated_resources.as_ref());
    let size = |amounts| quantity::sums(amounts).remove("storage");
    let mut used = Sums::new();
    if let Some(size) = size(asked).max(size(given)) {
        used.insert("requests.storage".to_owned(), size);
    }
    if let Some(class) = class {
        for (name, amount) in used.clone() {
            used.insert(format!("{class}{OF_CLASS}{name}"), amount);
        }
        let name = format!("{class}{OF_CLASS}persistentvolumeclaims");
        used.insert(name, Quantity::count(1));
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;
    use serde_json::json;

    fn used(group: &str, plural: &str, object: Value) -> Value {
        let kind = find(group, "v1", plural).unwrap();
        let used = of(kind, &object, 100);
        for name in used.keys() {
            assert!(concerns(kind, name), "{name}");
        }
        serde_json::to_value(quantity::written(&used)).unwrap()
    }

    #[test]
    fn a_pod_uses_what_it_asks_for_until_it_has_ended() {
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "100m", "example.com/gpu": "2"}, "limits": {"memory": "1Gi"},
        }}]}});
        assert_eq!(
            used("", "pods", pod.clone()),
            json!({
                "count/pods": "1", "pods": "1", "cpu": "100m", "requests.cpu": "100m", "limits.memory": "1Gi",
                "requests.example.com/gpu": "2",
            })
        );
        let mut over = pod.clone();
        over["status"] = json!({"phase": "Succeeded"});
        assert_eq!(used("", "pods", over), json!({"count/pods": "1"}));
        let mut late = pod;
        late["metadata"] = json!({"deletionTimestamp": "1970-01-01T00:01:00Z"});
        assert_eq!(used("", "pods", late), json!({"count/pods": "1"}));
    }

    #[test]
    fn services_use_ports_of_nodes() {
        let service =
            |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            used("", "services", service("NodePort")),
            json!({"count/services": "1", "services": "1", "services.nodeports": "2"})
        );
        let mut balanced = service("LoadBalancer");
        balanced["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        assert_eq!(
            used("", "services", balanced),
            json!({
                "count/services": "1", "services": "1", "services.nodeports": "0", "services.loadbalancers": "1",
            })
        );
    }

    #[test]
    fn a_claim_uses_storage_of_its_class() {
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}});
        assert_eq!(
            used("", "persistentvolumeclaims", claim),
            json!({
                "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "5Gi",
                "gold.storageclass.storage.k8s.io/requests.storage": "5Gi",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
            })
        );
    }

    #[test]
    fn everything_else_is_counted() {
        assert_eq!(
            used("apps", "deployments", json!({})),
            json!({"count/deployments.apps": "1"})
        );
        assert_eq!(
            used("", "secrets", json!({})),
            json!({"count/secrets": "1", "secrets": "1"})
        );
        let events = find("", "v1", "events").unwrap();
        assert!(!concerns(events, "count/events"));
        let pods = find("", "v1", "pods").unwrap();
        assert!(!concerns(pods, "services") && !concerns(pods, "count/services"));
        assert!(concerns(pods, "requests.hugepages-2Mi") && concerns(pods, "limits.cpu"));
    }
}
