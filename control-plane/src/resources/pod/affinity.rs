//! What a pod may say about the nodes and neighbours it wants. What could not be understood would be ignored silently, so it
//! is refused.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use serde_json::json;

use crate::resources::validate::{self, FieldError, Path, labels, names};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NODE_POLICIES: &[&str] = &["Honor", "Ignore"];

pub(super) fn errors(path: &Path, affinity: &Affinity) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(node) = &affinity.node_affinity {
        errors.extend(node_affinity(&path.child("nodeAffinity"), node));
    }
    if let Some(near) = &affinity.pod_affinity {
        errors.extend(neighbours(
            &path.child("podAffinity"),
            near.required_during_scheduling_ignored_during_execution
                .as_ref(),
            near.preferred_during_scheduling_ignored_during_execution
                .as_ref(),
        ));
    }
    if let Some(apart) = &affinity.pod_anti_affinity {
        errors.extend(neighbours(
            &path.child("podAntiAffinity"),
            apart
                .required_during_scheduling_ignored_during_execution
                .as_ref(),
            apart
                .preferred_during_scheduling_ignored_during_execution
                .as_ref(),
        ));
    }
    errors
}

fn node_affinity(path: &Path, affinity: &NodeAffinity) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        errors.extend(node_selector(&path.child(REQUIRED), required));
    }
    let preferred = &affinity.preferred_during_scheduling_ignored_during_execution;
    for (index, term) in preferred.iter().flatten().enumerate() {
        let path = path.child(PREFERRED).index(index);
        errors.extend(weight(&path, term.weight));
        errors.extend(node_term(&path.child("preference"), &term.preference));
    }
    errors
}

/// What is wrong with how nodes are described, for a pod or a volume.
pub fn node_selector(path: &Path, selector: &NodeSelector) -> Vec<FieldError> {
    let path = path.child("nodeSelectorTerms");
    let mut errors = Vec::new();
    if selector.node_selector_terms.is_empty() {
        errors.push(path.required("must have at least one node selector term"));
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        errors.extend(node_term(&path.index(index), term));
    }
    errors
}

fn node_term(path: &Path, term: &NodeSelectorTerm) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, it) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        errors.extend(requirement(&path, it));
        errors.extend(label_name(&path.child("key"), &it.key));
    }
    for (index, it) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        if !matches!(it.operator.as_str(), "In" | "NotIn") {
            let path = path.child("operator");
            errors.push(path.invalid(it.operator.as_str(), "not a valid selector operator"));
        } else if it.values.as_ref().is_none_or(|values| values.len() != 1) {
            let detail =
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(path.child("values").required(detail));
        }
        if it.key != "metadata.name" {
            let path = path.child("key");
            errors.push(path.invalid(it.key.as_str(), "not a valid field selector key"));
        }
    }
    errors
}

fn requirement(path: &Path, it: &NodeSelectorRequirement) -> Option<FieldError> {
    let count = it.values.as_ref().map_or(0, Vec::len);
    let values = path.child("values");
    match (it.operator.as_str(), count) {
        ("In" | "NotIn", 0) => {
            Some(values.required("must be specified when `operator` is 'In' or 'NotIn'"))
        }
        ("Exists" | "DoesNotExist", 1..) => Some(
            values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        ),
        ("Gt" | "Lt", 0 | 2..) => {
            Some(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"))
        }
        ("In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt", _) => None,
        (other, _) => Some(
            path.child("operator")
                .invalid(other, "not a valid selector operator"),
        ),
    }
}

fn neighbours(
    path: &Path,
    required: Option<&Vec<PodAffinityTerm>>,
    preferred: Option<&Vec<WeightedPodAffinityTerm>>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, term) in required.into_iter().flatten().enumerate() {
        errors.extend(pod_term(&path.child(REQUIRED).index(index), term));
    }
    for (index, term) in preferred.into_iter().flatten().enumerate() {
        let path = path.child(PREFERRED).index(index);
        errors.extend(weight(&path, term.weight));
        errors.extend(pod_term(
            &path.child("podAffinityTerm"),
            &term.pod_affinity_term,
        ));
    }
    errors
}

fn pod_term(path: &Path, term: &PodAffinityTerm) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, selector) in [
        ("labelSelector", &term.label_selector),
        ("namespaceSelector", &term.namespace_selector),
    ] {
        if let Some(selector) = selector {
            errors.extend(labels::selector(&path.child(field), selector));
        }
    }
    for name in term.namespaces.iter().flatten() {
        let path = path.child("namespace");
        errors.extend(path.invalid_all(name, names::dns1123_label(name, false)));
    }
    errors.extend(topology_key(path, &term.topology_key));
    errors
}

pub(super) fn spread_errors(
    path: &Path,
    constraints: &[TopologySpreadConstraint],
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let when = constraint.when_unsatisfiable.as_str();
        errors.extend(positive(&path.child("maxSkew"), constraint.max_skew));
        errors.extend(topology_key(&path, &constraint.topology_key));
        errors.extend(validate::one_of(
            &path.child("whenUnsatisfiable"),
            Some(when),
            &["DoNotSchedule", "ScheduleAnyway"],
        ));
        if !seen.insert((&constraint.topology_key, when)) {
            let value = json!(format!("{{{}, {when}}}", constraint.topology_key));
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(path.duplicate(value));
        }
        if let Some(domains) = constraint.min_domains {
            let path = path.child("minDomains");
            errors.extend(positive(&path, domains));
            if when != "DoNotSchedule" {
                errors.push(path.invalid(
                    domains,
                    format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"
                    ),
                ));
            }
        }
        for (field, policy) in [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ] {
            if let Some(policy) = policy {
                let path = path.child(field);
                errors.extend(validate::one_of(&path, Some(policy), NODE_POLICIES));
            }
        }
        if let Some(selector) = &constraint.label_selector {
            errors.extend(labels::selector(&path.child("labelSelector"), selector));
        }
    }
    errors
}

fn topology_key(path: &Path, key: &str) -> Vec<FieldError> {
    let path = path.child("topologyKey");
    match key {
        "" => vec![path.required("can not be empty")],
        key => label_name(&path, key),
    }
}

fn label_name(path: &Path, key: &str) -> Vec<FieldError> {
    path.invalid_all(key, names::qualified(key))
}

fn positive(path: &Path, value: i32) -> Option<FieldError> {
    (value <= 0).then(|| path.invalid(value, "must be greater than zero"))
}

fn weight(path: &Path, weight: i32) -> Option<FieldError> {
    let path = path.child("weight");
    (!(1..=100).contains(&weight)).then(|| path.invalid(weight, "must be in the range 1-100"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn texts(affinity: Value) -> Vec<String> {
        let affinity = serde_json::from_value(affinity).unwrap();
        let errors = errors(&Path::new("affinity"), &affinity);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn neighbours_are_described_so_that_they_can_be_found() {
        let fine = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}});
        assert!(texts(json!({"podAffinity": {REQUIRED: [fine]}})).is_empty());
        let bad = json!({
            "topologyKey": "", "namespaces": ["A"],
            "labelSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]},
        });
        let errors = texts(json!({"podAntiAffinity": {
            REQUIRED: [bad], PREFERRED: [{"weight": 0, "podAffinityTerm": fine}],
        }}));
        let required = format!("affinity.podAntiAffinity.{REQUIRED}[0]");
        assert_eq!(
            errors[0],
            format!(
                "{required}.labelSelector.matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator"
            )
        );
        assert!(errors[1].starts_with(&format!("{required}.namespace: Invalid value: \"A\"")));
        assert_eq!(
            errors[2..],
            [
                format!("{required}.topologyKey: Required value: can not be empty"),
                format!(
                    "affinity.podAntiAffinity.{PREFERRED}[0].weight: Invalid value: 0: must be in the range 1-100"
                ),
            ]
        );
    }

    #[test]
    fn nodes_are_described_so_that_they_can_be_found() {
        let errors = texts(json!({"nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": []},
            PREFERRED: [{"weight": 1, "preference": {
                "matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Gt", "values": ["1"]}],
                "matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}],
            }}],
        }}));
        let preference = format!("affinity.nodeAffinity.{PREFERRED}[0].preference");
        assert_eq!(
            errors,
            [
                format!(
                    "affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms: Required value: must have at least one node selector term"
                ),
                format!(
                    "{preference}.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
                format!(
                    "{preference}.matchFields[0].key: Invalid value: \"spec.x\": not a valid field selector key"
                ),
            ]
        );
    }

    #[test]
    fn a_spread_has_a_measure() {
        let rule = |skew: i32, when: &str| json!({"topologyKey": "zone", "maxSkew": skew, "whenUnsatisfiable": when});
        let texts = |rules: Value| {
            let rules: Vec<TopologySpreadConstraint> = serde_json::from_value(rules).unwrap();
            let errors = spread_errors(&Path::new("spread"), &rules);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let twice = json!([rule(1, "DoNotSchedule"), rule(2, "ScheduleAnyway")]);
        assert!(texts(twice).is_empty());
        let mut soft = rule(0, "ScheduleAnyway");
        soft["minDomains"] = json!(2);
        assert_eq!(
            texts(json!([soft, rule(1, "ScheduleAnyway"), rule(1, "Never")])),
            [
                "spread[0].maxSkew: Invalid value: 0: must be greater than zero",
                "spread[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
                "spread[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, ScheduleAnyway}\"",
                "spread[2].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
            ]
        );
    }
}
