//! Taints that every cluster has to do with: a new pod tolerates a lost node for a while, a new node gets no pods before it
//! is ready.

use k8s_openapi::api::core::v1::Toleration;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Operation, Review};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long a pod stays on a node that is not ready or cannot be reached.
const STAY_SECONDS: i64 = 300;

/// Upstream's DefaultTolerationSeconds.
pub(super) fn of_pod(review: &Review<'_>, object: &mut Value) {
    if review.is("", "pods")
        && review.operation != Operation::Delete
        && review.subresource.is_empty()
        && object["spec"].is_object()
    {
        tolerate(&mut object["spec"]);
    }
}

fn tolerate(spec: &mut Value) {
    let own = Vec::<Toleration>::deserialize(&spec["tolerations"]).unwrap_or_default();
    for key in [NOT_READY, UNREACHABLE] {
        let tolerated = own.iter().any(|toleration| {
            let effect = toleration.effect.as_deref().unwrap_or_default();
            let known = toleration.key.as_deref().unwrap_or_default();
            matches!(effect, "" | "NoExecute") && (known.is_empty() || known == key)
        });
        if tolerated {
            continue;
        }
        let added = json!({
            "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY_SECONDS,
        });
        match spec["tolerations"].as_array_mut() {
            Some(all) => all.push(added),
            None => spec["tolerations"] = json!([added]),
        }
    }
}

/// Upstream's TaintNodesByCondition: the node's controller takes the taint away when the node is ready.
pub(super) fn of_node(review: &Review<'_>, object: &mut Value) {
    if review.is("", "nodes") && review.operation == Operation::Create {
        taint(object);
    }
}

fn taint(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let added = json!({"key": NOT_READY, "effect": "NoSchedule"});
    let is_it = |taint: &Value| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule";
    match node["spec"]["taints"].as_array_mut() {
        Some(all) if all.iter().any(is_it) => {}
        Some(all) => all.push(added),
        None => node["spec"]["taints"] = json!([added]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(mut spec: Value) -> usize {
        tolerate(&mut spec);
        spec["tolerations"].as_array().map_or(0, Vec::len)
    }

    #[test]
    fn a_new_pod_tolerates_a_lost_node_for_a_while() {
        let mut spec = json!({"containers": []});
        tolerate(&mut spec);
        assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
        assert_eq!(spec["tolerations"][1]["key"], UNREACHABLE);
        assert_eq!(count(spec), 2);
        assert_eq!(count(json!({"tolerations": [{"operator": "Exists"}]})), 1);
        let own = json!({"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        assert_eq!(count(json!({"tolerations": [own]})), 2);
        let other = json!({"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"});
        assert_eq!(count(json!({"tolerations": [other]})), 3);
    }

    #[test]
    fn a_new_node_is_not_ready() {
        let mut node = json!({"metadata": {"name": "n"}});
        taint(&mut node);
        let once = node.clone();
        taint(&mut node);
        assert_eq!(node, once);
        assert_eq!(
            node["spec"]["taints"],
            json!([{"key": NOT_READY, "effect": "NoSchedule"}])
        );
        let mut own = json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}});
        taint(&mut own);
        assert_eq!(own["spec"]["taints"].as_array().map(Vec::len), Some(2));
    }
}
