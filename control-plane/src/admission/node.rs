//! What a node may write, beyond what the authorizer can see in a request: upstream's NodeRestriction. A node that fell into
//! wrong hands must not draw pods, traffic or trust to itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::auth::{self, MASTERS, Referenced};
use crate::resources::pod::MIRROR;

/// Labels in the domains of Kubernetes that a node sets on itself.
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
];
/// Domains of labels that are for nodes to set, those below them included.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Refuses what a node may not write. `old` is the present state for an update.
pub(super) fn restrict(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let refusal = |why: &str| ApiError::forbidden(review.kind.group, review.kind.plural, name, why);
    if ![old, Some(object)]
        .into_iter()
        .flatten()
        .all(|o| auth::node_may_touch(review.user, o))
    {
        return Err(refusal(&format!(
            "node \"{}\" is not allowed to modify it",
            review.user.name
        )));
    }
    let Some(node) = auth::node_name(review.user).filter(|_| !review.user.is_in(MASTERS)) else {
        return Ok(());
    };
    let why = match (review.operation, old) {
        (Operation::Update, Some(old)) if review.is("", "pods") => of_pod(object, old),
        (Operation::Create, _) if review.is("", "pods") => of_new_pod(object),
        (Operation::Create | Operation::Update, old) if review.is("", "nodes") => {
            of_node(object, old)
        }
        _ => None,
    };
    match why {
        Some(why) => Err(refusal(&format!("node \"{node}\" {why}"))),
        None => Ok(()),
    }
}

/// A node shows by mirrors what it runs from files. A pod that named more would let it read that.
fn of_new_pod(new: &Value) -> Option<String> {
    if !new["metadata"]["annotations"][MIRROR].is_string() {
        return Some(format!(
            "can only create mirror pods: it does not have the annotation {MIRROR}"
        ));
    }
    let named = [
        (Referenced::ServiceAccount, "a service account"),
        (Referenced::Secret, "secrets"),
        (Referenced::ConfigMap, "configmaps"),
    ];
    let mut named = named.into_iter();
    let found = named.find(|(kind, _)| !auth::references(new, *kind).is_empty());
    let claims = || {
        let mut volumes = new["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.any(|volume| !volume["persistentVolumeClaim"].is_null())
    };
    let found = found.map(|(_, what)| what);
    let found = found.or_else(|| claims().then_some("persistentvolumeclaims"));
    found.map(|what| format!("can not create pods that reference {what}"))
}

/// Pods belong to Services and ReplicaSets by their labels, and wait for others by their finalizers.
fn of_pod(new: &Value, old: &Value) -> Option<String> {
    ["labels", "annotations", "finalizers"]
        .into_iter()
        .find(|field| !same(&new["metadata"][field], &old["metadata"][field]))
        .map(|field| format!("cannot update {field} through pod status"))
}

/// Taints and the labels of roles and places say what the node is trusted with; with an owner that does not exist it would
/// be removed, and could come back with others.
fn of_node(new: &Value, old: Option<&Value>) -> Option<String> {
    let labels = forbidden_labels(new, old.unwrap_or(&Value::Null));
    let Some(old) = old else {
        return (!labels.is_empty())
            .then(|| format!("is not allowed to set the following labels: {labels}"));
    };
    if !same(&new["spec"]["taints"], &old["spec"]["taints"]) {
        return Some("is not allowed to modify taints".to_owned());
    }
    let owners = "ownerReferences";
    if !same(&new["metadata"][owners], &old["metadata"][owners]) {
        return Some("is not allowed to modify ownerReferences".to_owned());
    }
    (!labels.is_empty()).then(|| format!("is not allowed to modify labels: {labels}"))
}

/// The labels that differ and are not for nodes to set.
fn forbidden_labels(new: &Value, old: &Value) -> String {
    let (new, old) = (&new["metadata"]["labels"], &old["metadata"]["labels"]);
    let keys = [new, old].into_iter().filter_map(Value::as_object);
    let forbidden: BTreeSet<&str> = keys
        .flat_map(|labels| labels.keys())
        .filter(|key| new[key.as_str()] != old[key.as_str()] && !may_set(key))
        .map(String::as_str)
        .collect();
    forbidden.into_iter().collect::<Vec<_>>().join(", ")
}

fn may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| {
        domain
            .strip_suffix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    // What people label to keep pods away from nodes: not for nodes in any case.
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    !of_kubernetes || OWN_LABELS.contains(&label) || OWN_DOMAINS.into_iter().any(within)
}

/// Whether two lists or maps hold the same; one that is absent is as an empty one.
fn same(a: &Value, b: &Value) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    a == b || (empty(a) && empty(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Warnings;
    use crate::auth::{NODES, User};
    use crate::resources;
    use serde_json::json;

    fn write(
        plural: &str,
        subresource: &'static str,
        new: Value,
        old: Option<Value>,
    ) -> Result<(), String> {
        let user = User::authenticated("system:node:w1", [NODES.to_owned()]);
        let warnings = Warnings::default();
        let review = Review {
            user: &user,
            kind: resources::find("", "v1", plural).expect("a kind"),
            namespace: "",
            operation: if old.is_some() {
                Operation::Update
            } else {
                Operation::Create
            },
            subresource,
            dry_run: false,
            warnings: &warnings,
        };
        restrict(&review, &new, old.as_ref()).map_err(|error| error.message)
    }

    fn node(labels: Value, taints: Value) -> Value {
        json!({"kind": "Node", "metadata": {"name": "w1", "labels": labels}, "spec": {"taints": taints}})
    }

    #[test]
    fn a_node_reports_on_its_pods_and_changes_nothing_else_of_them() {
        let pod = |metadata: Value, phase: &str| json!({"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "w1"}, "status": {"phase": phase}});
        let old = pod(json!({"name": "a", "labels": {"app": "web"}}), "Pending");
        let report = pod(json!({"name": "a", "labels": {"app": "web"}}), "Running");
        assert_eq!(write("pods", "status", report, Some(old.clone())), Ok(()));
        for (field, metadata) in [
            ("labels", json!({"name": "a", "labels": {"app": "db"}})),
            ("labels", json!({"name": "a"})),
            (
                "annotations",
                json!({"name": "a", "labels": {"app": "web"}, "annotations": {"x": "y"}}),
            ),
            (
                "finalizers",
                json!({"name": "a", "labels": {"app": "web"}, "finalizers": ["x/y"]}),
            ),
        ] {
            let outcome = write(
                "pods",
                "status",
                pod(metadata, "Running"),
                Some(old.clone()),
            );
            let why = format!(
                "pods \"a\" is forbidden: node \"w1\" cannot update {field} through pod status"
            );
            assert_eq!(outcome, Err(why));
        }
    }

    #[test]
    fn a_node_creates_mirrors_of_its_own_pods_which_bring_nothing_along() {
        let pod = |node: &str, annotations: Value, spec: Value| {
            let mut pod = json!({
                "kind": "Pod", "metadata": {"name": "a", "annotations": annotations}, "spec": spec,
            });
            pod["spec"]["nodeName"] = json!(node);
            write("pods", "", pod, None)
        };
        let mirror = || json!({MIRROR: "hash"});
        assert_eq!(
            pod("w1", mirror(), json!({"volumes": [{"emptyDir": {}}]})),
            Ok(())
        );
        for (outcome, why) in [
            (
                pod("w2", mirror(), json!({})),
                "is not allowed to modify it",
            ),
            (
                pod("w1", json!({}), json!({})),
                "can only create mirror pods",
            ),
            (
                pod("w1", mirror(), json!({"serviceAccountName": "robot"})),
                "reference a service account",
            ),
            (
                pod(
                    "w1",
                    mirror(),
                    json!({"volumes": [{"secret": {"secretName": "s"}}]}),
                ),
                "reference secrets",
            ),
            (
                pod(
                    "w1",
                    mirror(),
                    json!({"volumes": [{"configMap": {"name": "c"}}]}),
                ),
                "reference configmaps",
            ),
            (
                pod(
                    "w1",
                    mirror(),
                    json!({"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}),
                ),
                "reference persistentvolumeclaims",
            ),
        ] {
            let error = outcome.expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_node_does_not_say_what_it_is_trusted_with() {
        let plain = || node(json!({"kubernetes.io/hostname": "w1"}), json!([]));
        let taint = json!([{"key": "a", "effect": "NoSchedule"}]);
        // It registers with taints, and cannot lift them later.
        let tainted = node(json!({"kubernetes.io/hostname": "w1"}), taint);
        assert_eq!(write("nodes", "", tainted.clone(), None), Ok(()));
        assert_eq!(
            write("nodes", "", plain(), Some(tainted)),
            Err("nodes \"w1\" is forbidden: node \"w1\" is not allowed to modify taints".into())
        );
        for (allowed, label) in [
            (true, "example.com/disk"),
            (true, "rack"),
            (true, "topology.kubernetes.io/zone"),
            (true, "node.kubernetes.io/anything"),
            (true, "a.kubelet.kubernetes.io/b"),
            (false, "node-role.kubernetes.io/control-plane"),
            (false, "node-restriction.kubernetes.io/secure"),
            (false, "team.node-restriction.kubernetes.io/secure"),
            (false, "kubernetes.io/anything"),
            (false, "x.k8s.io/y"),
        ] {
            let labelled = node(
                json!({"kubernetes.io/hostname": "w1", label: "x"}),
                json!(null),
            );
            for (subresource, new, old) in [
                ("", labelled.clone(), None),
                ("", labelled.clone(), Some(plain())),
                ("status", labelled.clone(), Some(plain())),
                ("", plain(), Some(labelled)),
            ] {
                let outcome = write("nodes", subresource, new, old);
                assert_eq!(outcome.is_ok(), allowed, "{label}: {outcome:?}");
            }
        }
        let mut owned = plain();
        owned["metadata"]["ownerReferences"] = json!([{"kind": "Pod", "name": "gone"}]);
        assert!(write("nodes", "", owned, Some(plain())).is_err());
    }
}
