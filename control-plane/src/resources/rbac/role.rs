//! Role and ClusterRole: lists of rules that say what may be done.

use k8s_openapi::api::rbac::v1::{AggregationRule, ClusterRole, PolicyRule, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::resources::{
    Column, FieldError, Strategy, print,
    validate::{NameRule, Path, labels, names},
};

const COLUMNS: &[Column] = &[
    Column::NAME,
    Column {
        kind: "date",
        ..Column::text("Created At", "When the object was created.")
    },
];

impl Strategy for Role {
    const SINGULAR: &'static str = "role";
    const COLUMNS: &'static [Column] = COLUMNS;
    const NAME_RULE: NameRule = names::path_segment;

    fn row(&self, _now: i64) -> Vec<Value> {
        row(&self.metadata)
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        rules(self.rules.as_deref(), true)
    }
}

impl Strategy for ClusterRole {
    const SINGULAR: &'static str = "clusterrole";
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = COLUMNS;
    const NAME_RULE: NameRule = names::path_segment;

    fn row(&self, _now: i64) -> Vec<Value> {
        row(&self.metadata)
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = rules(self.rules.as_deref(), false);
        errors.extend(self.aggregation_rule.iter().flat_map(aggregation));
        errors
    }
}

fn row(metadata: &ObjectMeta) -> Vec<Value> {
    let created = metadata.creation_timestamp.as_ref();
    let created = created.map_or_else(|| "<unknown>".to_owned(), |time| time.0.to_string());
    vec![json!(print::name(metadata)), json!(created)]
}

fn rules(rules: Option<&[PolicyRule]>, namespaced: bool) -> Vec<FieldError> {
    let (path, all) = (Path::new("rules"), rules.unwrap_or_default());
    let each = all.iter().enumerate();
    each.flat_map(|(index, one)| rule(&path.index(index), one, namespaced))
        .collect()
}

fn rule(path: &Path, rule: &PolicyRule, namespaced: bool) -> Vec<FieldError> {
    let list = |items: &Option<Vec<String>>| items.clone().unwrap_or_default();
    let (groups, resources) = (list(&rule.api_groups), list(&rule.resources));
    let urls = list(&rule.non_resource_urls);
    let mut errors = Vec::new();
    if rule.verbs.is_empty() {
        let path = path.child("verbs");
        errors.push(path.required("verbs must contain at least one value"));
    }
    if !urls.is_empty() {
        let path = path.child("nonResourceURLs");
        if namespaced {
            let detail = "namespaced rules cannot apply to non-resource URLs";
            errors.push(path.invalid(urls.clone(), detail));
        }
        if !(groups.is_empty() && resources.is_empty() && list(&rule.resource_names).is_empty()) {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(path.invalid(urls, detail));
        }
        return errors;
    }
    if groups.is_empty() {
        let path = path.child("apiGroups");
        errors.push(path.required("resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        let path = path.child("resources");
        errors.push(path.required("resource rules must supply at least one resource"));
    }
    errors
}

fn aggregation(rule: &AggregationRule) -> Vec<FieldError> {
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let selectors = rule.cluster_role_selectors.as_deref().unwrap_or_default();
    if selectors.is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        return vec![path.required(detail)];
    }
    let each = selectors.iter().enumerate();
    each.flat_map(|(index, one)| labels::selector(&path.index(index), one))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors<T: Strategy>(object: Value) -> Vec<String> {
        let object: T = serde_json::from_value(object).unwrap();
        let errors = Strategy::validate(&object, None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_is_about_resources_or_about_urls() {
        let good = json!([
            { "verbs": ["get"], "apiGroups": [""], "resources": ["pods/log", "*"], "resourceNames": ["a"] },
            { "verbs": ["*"], "nonResourceURLs": ["/healthz/*"] },
        ]);
        let none: Vec<String> = Vec::new();
        assert_eq!(errors::<ClusterRole>(json!({ "rules": good })), none);
        assert_eq!(errors::<Role>(json!({})), none);
        let bad = json!({ "rules": [
            { "verbs": [] },
            { "verbs": ["get"], "nonResourceURLs": ["/a"], "resources": ["pods"] },
        ]});
        let of_any = [
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ];
        let both = "rules[1].nonResourceURLs: Invalid value: [\"/a\"]: rules cannot apply to both regular resources and non-resource URLs";
        let within = "rules[1].nonResourceURLs: Invalid value: [\"/a\"]: namespaced rules cannot apply to non-resource URLs";
        let expected: Vec<&str> = of_any.into_iter().chain([both]).collect();
        assert_eq!(errors::<ClusterRole>(bad.clone()), expected);
        let expected: Vec<&str> = of_any.into_iter().chain([within, both]).collect();
        assert_eq!(errors::<Role>(bad), expected);
    }

    #[test]
    fn an_aggregated_role_selects_something() {
        assert_eq!(
            errors::<ClusterRole>(json!({ "aggregationRule": {} })),
            [
                "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil"
            ]
        );
        let near = json!({ "matchExpressions": [{ "key": "a", "operator": "Near" }] });
        let found = errors::<ClusterRole>(
            json!({ "aggregationRule": { "clusterRoleSelectors": [{}, near] } }),
        );
        assert_eq!(
            found,
            [
                "aggregationRule.clusterRoleSelectors[1].matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"
            ]
        );
    }

    #[test]
    fn the_row_says_when_it_was_made() {
        let role: Role = serde_json::from_value(
            json!({ "metadata": { "name": "a", "creationTimestamp": "2026-01-02T03:04:05Z" } }),
        )
        .unwrap();
        assert_eq!(Strategy::row(&role, 0), ["a", "2026-01-02T03:04:05Z"]);
    }
}
