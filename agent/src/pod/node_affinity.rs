//! Whether a node is one that a pod asks for. The scheduler sees to that; not every pod is its. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

/// The reason of a pod on a node that it did not ask for, and upstream's words.
pub(super) const REASON: &str = "NodeAffinity";
pub(super) const WORDS: &str =
    "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";

/// The name of the only field that terms can be about.
const NAME: &str = "metadata.name";

/// Whether this takes more to know than the node's name.
pub(super) fn needs_labels(spec: &PodSpec) -> bool {
    let selects = spec.node_selector.as_ref();
    let by_label = |term: &NodeSelectorTerm| !is_empty(term.match_expressions.as_deref());
    selects.is_some_and(|labels| !labels.is_empty())
        || terms(spec).is_some_and(|terms| terms.iter().any(by_label))
}

/// Whether the node of this name, with these labels, is one that the pod asks for.
pub(super) fn matches(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let mut selected = spec.node_selector.iter().flatten();
    selected.all(|(key, value)| labels.get(key) == Some(value))
        && terms(spec).is_none_or(|terms| terms.iter().any(|term| fits(term, name, labels)))
}

fn terms(spec: &PodSpec) -> Option<&[NodeSelectorTerm]> {
    let of_nodes = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = &of_nodes.required_during_scheduling_ignored_during_execution;
    Some(&required.as_ref()?.node_selector_terms)
}

/// A term that says nothing fits nothing.
fn fits(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let (expressions, fields) = (
        term.match_expressions.as_deref().unwrap_or_default(),
        term.match_fields.as_deref().unwrap_or_default(),
    );
    let label = |it: &NodeSelectorRequirement| holds(it, labels.get(&it.key).map(String::as_str));
    let field = |it: &NodeSelectorRequirement| it.key == NAME && holds(it, Some(name));
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(label)
        && fields.iter().all(field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_in = value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let compared = || {
        let bound = values.first()?.parse::<i64>().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&bound))
    };
    match requirement.operator.as_str() {
        "In" => is_in,
        "NotIn" => !is_in,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|order| order.is_gt()),
        "Lt" => compared().is_some_and(|order| order.is_lt()),
        _ => false,
    }
}

fn is_empty<T>(list: Option<&[T]>) -> bool {
    list.unwrap_or_default().is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(terms: Value) -> PodSpec {
        let required = json!({"nodeSelectorTerms": terms});
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        serde_json::from_value(json!({"containers": [], "affinity": affinity})).unwrap()
    }

    fn labels() -> BTreeMap<String, String> {
        [("disk", "ssd"), ("cores", "8")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn each_operator_asks_its_question() {
        for (key, operator, values, fits) in [
            ("disk", "In", json!(["hdd", "ssd"]), true),
            ("disk", "In", json!(["hdd"]), false),
            ("disk", "NotIn", json!(["hdd"]), true),
            ("zone", "NotIn", json!(["a"]), true),
            ("disk", "Exists", json!([]), true),
            ("zone", "Exists", json!([]), false),
            ("zone", "DoesNotExist", json!([]), true),
            ("cores", "Gt", json!(["7"]), true),
            ("cores", "Gt", json!(["8"]), false),
            ("cores", "Lt", json!(["9"]), true),
            ("disk", "Lt", json!(["9"]), false),
            ("disk", "Like", json!(["ssd"]), false),
        ] {
            let expression = json!({"key": key, "operator": operator, "values": values});
            let spec = spec(json!([{"matchExpressions": [expression]}]));
            assert!(needs_labels(&spec));
            assert_eq!(
                matches(&spec, "n", &labels()),
                fits,
                "{key} {operator} {values}"
            );
        }
    }

    #[test]
    fn one_term_is_enough_and_all_of_it() {
        let own = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
        let zone = json!({"key": "zone", "operator": "Exists"});
        let of_daemon_set = spec(json!([{"matchFields": [own]}]));
        assert!(!needs_labels(&of_daemon_set));
        assert!(matches(&of_daemon_set, "n", &labels()));
        assert!(!matches(&of_daemon_set, "m", &labels()));
        let both = json!({"matchFields": [own], "matchExpressions": [zone]});
        assert!(!matches(&spec(json!([both])), "n", &labels()));
        assert!(matches(
            &spec(json!([both, {"matchFields": [own]}])),
            "n",
            &labels()
        ));
        assert!(!matches(&spec(json!([{}])), "n", &labels()), "nothing said");
        assert!(matches(&PodSpec::default(), "n", &labels()));
    }

    #[test]
    fn a_selector_names_labels() {
        let selects = |key: &str, value: &str| PodSpec {
            node_selector: Some([(key.to_owned(), value.to_owned())].into()),
            ..PodSpec::default()
        };
        assert!(matches(&selects("disk", "ssd"), "n", &labels()));
        assert!(!matches(&selects("disk", "hdd"), "n", &labels()));
        assert!(needs_labels(&selects("a", "b")) && !needs_labels(&PodSpec::default()));
    }
}
