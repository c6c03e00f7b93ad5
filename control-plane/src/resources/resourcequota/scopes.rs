//! Scopes: which pods a quota is about.

use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, PodSpec, ResourceQuotaSpec, ScopedResourceSelectorRequirement,
};
use serde_json::{Value, json};

use crate::resources::pod::qos;
use crate::resources::validate::{FieldError, Path};

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
];
/// Those of which there is nothing more to say than that they hold.
const PLAIN: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "CrossNamespacePodAffinity",
];
/// No pod is in both.
const OPPOSITES: [(&str, &str); 2] = [
    ("BestEffort", "NotBestEffort"),
    ("Terminating", "NotTerminating"),
];
/// What may be counted of the pods in a scope.
const OF_PODS: &[&str] = &[
    "pods",
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "limits.cpu",
    "limits.memory",
];

/// What is wrong with the scopes of a quota, at `spec`.
pub(super) fn errors(path: &Path, spec: &ResourceQuotaSpec) -> Vec<FieldError> {
    let hard: Vec<&str> = spec
        .hard
        .iter()
        .flatten()
        .map(|(n, _)| n.as_str())
        .collect();
    let mut errors = Vec::new();
    let scopes = spec.scopes.as_deref().unwrap_or_default();
    let at = path.child("scopes");
    for scope in scopes {
        errors.extend(unfit(&at, json!(scopes), scope, &hard));
    }
    let names = scopes.iter().map(String::as_str).collect::<Vec<_>>();
    if conflict(&names) {
        errors.push(at.invalid(json!(scopes), "conflicting scopes"));
    }
    let Some(selector) = &spec.scope_selector else {
        return errors;
    };
    let at = path.child("scopeSelector").child("matchExpressions");
    let terms = selector.match_expressions.as_deref().unwrap_or_default();
    for (index, term) in terms.iter().enumerate() {
        let path = at.index(index);
        let name = term.scope_name.as_str();
        errors.extend(unfit(&path.child("scopeName"), json!(name), name, &hard));
        errors.extend(operator(&path, term));
    }
    let names = terms
        .iter()
        .map(|t| t.scope_name.as_str())
        .collect::<Vec<_>>();
    if conflict(&names) {
        errors.push(at.invalid(json!(terms), "conflicting scopes"));
    }
    errors
}

fn unfit(path: &Path, shown: Value, scope: &str, hard: &[&str]) -> Vec<FieldError> {
    if !SCOPES.contains(&scope) {
        return vec![path.invalid(shown, "unsupported scope")];
    }
    let allowed = if scope == "BestEffort" {
        &OF_PODS[..1]
    } else {
        OF_PODS
    };
    let wrong = hard.iter().filter(|name| !allowed.contains(name));
    wrong
        .map(|_| path.invalid(shown.clone(), "unsupported scope applied to resource"))
        .collect()
}

fn operator(path: &Path, term: &ScopedResourceSelectorRequirement) -> Vec<FieldError> {
    let operator = term.operator.as_str();
    let values = term.values.as_deref().unwrap_or_default();
    let (at, values_at) = (path.child("operator"), path.child("values"));
    let mut errors = Vec::new();
    if PLAIN.contains(&term.scope_name.as_str()) && operator != "Exists" {
        errors.push(at.invalid(operator, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"));
    }
    match operator {
        "In" | "NotIn" if values.is_empty() => errors.push(values_at.required(
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(values_at.invalid(
            json!(values),
            "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.push(at.invalid(other, "not a valid selector operator")),
    }
    errors
}

fn conflict(scopes: &[&str]) -> bool {
    let both = |(a, b): &(&str, &str)| scopes.contains(a) && scopes.contains(b);
    OPPOSITES.iter().any(both)
}

/// Whether the quota has any scope.
pub fn has_any(spec: &ResourceQuotaSpec) -> bool {
    terms(spec).next().is_some()
}

/// Whether a pod is in all scopes of a quota.
pub fn hold(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let empty = PodSpec::default();
    let pod = pod.spec.as_ref().unwrap_or(&empty);
    terms(spec).all(|(scope, operator, values)| holds(scope, operator, values, pod))
}

fn terms(spec: &ResourceQuotaSpec) -> impl Iterator<Item = (&str, &str, &[String])> {
    let plain = spec.scopes.iter().flatten();
    let plain = plain.map(|scope| (scope.as_str(), "Exists", &[][..]));
    let selected = spec.scope_selector.iter();
    let selected = selected.flat_map(|selector| selector.match_expressions.iter().flatten());
    plain.chain(selected.map(|term| {
        (
            term.scope_name.as_str(),
            term.operator.as_str(),
            term.values.as_deref().unwrap_or_default(),
        )
    }))
}

fn holds(scope: &str, operator: &str, values: &[String], pod: &PodSpec) -> bool {
    let ends = pod
        .active_deadline_seconds
        .is_some_and(|seconds| seconds >= 0);
    let best_effort = || qos::class(pod) == "BestEffort";
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        "PriorityClass" => {
            let class = pod.priority_class_name.as_ref();
            let class = class.filter(|class| !class.is_empty());
            match operator {
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                "In" => class.is_some_and(|class| values.contains(class)),
                "NotIn" => class.is_none_or(|class| !values.contains(class)),
                _ => false,
            }
        }
        _ => false,
    }
}

fn crosses_namespaces(pod: &PodSpec) -> bool {
    let affinity = pod.affinity.as_ref();
    let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let apart = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let required = [
        near.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        }),
        apart.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        }),
    ];
    let preferred = [
        near.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }),
        apart.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }),
    ];
    let crosses = |term: &PodAffinityTerm| {
        term.namespace_selector.is_some() || term.namespaces.iter().flatten().next().is_some()
    };
    required.into_iter().flatten().flatten().any(crosses)
        || preferred
            .into_iter()
            .flatten()
            .flatten()
            .any(|weighted| crosses(&weighted.pod_affinity_term))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(spec: Value) -> Vec<String> {
        let spec: ResourceQuotaSpec = serde_json::from_value(spec).unwrap();
        let errors = errors(&Path::new("spec"), &spec);
        errors.iter().map(ToString::to_string).collect()
    }

    fn quota(spec: Value) -> ResourceQuotaSpec {
        serde_json::from_value(spec).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn scopes_are_known_and_agree() {
        assert_eq!(
            texts(json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort", "Big"]})),
            [
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Big\"]: unsupported scope",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Big\"]: conflicting scopes",
            ]
        );
        assert_eq!(
            texts(json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]
        );
        let term = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values},
            ]}})
        };
        assert_eq!(texts(term("In", json!(["high"]))), Vec::<String>::new());
        assert_eq!(
            texts(term("In", json!([]))),
            [
                "spec.scopeSelector.matchExpressions[0].values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
            ]
        );
    }

    #[test]
    fn a_pod_is_in_the_scopes_that_fit_it() {
        let plain = pod(json!({"containers": [{"name": "a"}]}));
        let short = pod(json!({"containers": [{"name": "a"}], "activeDeadlineSeconds": 5}));
        let high = pod(
            json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}], "priorityClassName": "high"}),
        );
        let is = |scope: &str, pod: &Pod| hold(&quota(json!({"scopes": [scope]})), pod);
        assert!(is("BestEffort", &plain) && !is("BestEffort", &high));
        assert!(is("NotBestEffort", &high) && !is("NotBestEffort", &plain));
        assert!(is("Terminating", &short) && !is("Terminating", &plain));
        assert!(is("NotTerminating", &plain));
        assert!(is("PriorityClass", &high) && !is("PriorityClass", &plain));
        let class = |operator: &str| {
            quota(json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]},
            ]}}))
        };
        assert!(hold(&class("In"), &high) && !hold(&class("In"), &plain));
        assert!(!hold(&class("NotIn"), &high) && hold(&class("NotIn"), &plain));
        assert!(hold(&quota(json!({})), &plain) && !has_any(&quota(json!({}))));
    }

    #[test]
    fn an_affinity_may_look_into_other_namespaces() {
        let near = |term: Value| {
            pod(json!({"containers": [], "affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term],
            }}}))
        };
        let crosses = quota(json!({"scopes": ["CrossNamespacePodAffinity"]}));
        assert!(!hold(&crosses, &near(json!({"topologyKey": "k"}))));
        assert!(hold(
            &crosses,
            &near(json!({"topologyKey": "k", "namespaces": ["b"]}))
        ));
    }
}
