//! When a container of its own mind restarts: its policy, and its rules (KEP-5307).

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

use super::validate::RESTART_POLICIES;
use crate::resources::validate::{FieldError, Path};

/// As upstream.
const MOST_RULES: usize = 20;
const MOST_CODES: usize = 255;

/// The errors of the container at `path`.
pub(super) fn errors(path: &Path, container: &Container) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = container.restart_policy.as_deref();
    let unknown = policy.filter(|policy| !RESTART_POLICIES.contains(policy));
    let of_policy = path.child("restartPolicy");
    errors.extend(unknown.map(|policy| of_policy.unsupported(policy, RESTART_POLICIES)));
    let rules = container
        .restart_policy_rules
        .as_deref()
        .unwrap_or_default();
    if !rules.is_empty() && policy.is_none() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(of_policy.required(detail));
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > MOST_RULES {
        errors.push(path.too_many(rules.len(), MOST_RULES));
    }
    let rules = rules.iter().enumerate();
    errors.extend(rules.flat_map(|(index, rule)| of_rule(&path.index(index), rule)));
    errors
}

fn of_rule(path: &Path, rule: &ContainerRestartRule) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if rule.action != "Restart" {
        errors.push(path.child("action").unsupported(&rule.action, &["Restart"]));
    }
    let path = path.child("exitCodes");
    let Some(codes) = &rule.exit_codes else {
        errors.push(path.required(""));
        return errors;
    };
    if !matches!(&*codes.operator, "In" | "NotIn") {
        let path = path.child("operator");
        errors.push(path.unsupported(&codes.operator, &["In", "NotIn"]));
    }
    let count = codes.values.as_ref().map_or(0, Vec::len);
    if count > MOST_CODES {
        errors.push(path.child("values").too_many(count, MOST_CODES));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(container: Value) -> Vec<String> {
        let container: Container = serde_json::from_value(container).unwrap();
        let errors = errors(&Path::new("c"), &container);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_container_may_have_a_policy_and_rules_of_its_own() {
        let codes = json!({ "operator": "In", "values": [42] });
        let rule = json!({ "action": "Restart", "exitCodes": codes });
        for policy in ["Always", "OnFailure", "Never"] {
            let container =
                json!({ "name": "a", "restartPolicy": policy, "restartPolicyRules": [rule] });
            assert_eq!(told(container), Vec::<String>::new());
        }
        assert_eq!(
            told(json!({ "name": "a", "restartPolicy": "Often" })),
            [
                "c.restartPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"Never\", \"OnFailure\""
            ]
        );
        assert_eq!(
            told(json!({ "name": "a", "restartPolicyRules": [rule] })),
            [
                "c.restartPolicy: Required value: must specify restartPolicy when restart rules are used"
            ]
        );
    }

    #[test]
    fn a_rule_says_what_to_do_at_which_codes() {
        let of = |rules: Value| {
            told(json!({ "name": "a", "restartPolicy": "Never", "restartPolicyRules": rules }))
        };
        let many: Vec<i32> = (0..256).collect();
        assert_eq!(
            of(json!([
                { "action": "Stop" },
                { "action": "Restart", "exitCodes": { "operator": "Is", "values": many } },
            ])),
            [
                "c.restartPolicyRules[0].action: Unsupported value: \"Stop\": supported values: \"Restart\"",
                "c.restartPolicyRules[0].exitCodes: Required value",
                "c.restartPolicyRules[1].exitCodes.operator: Unsupported value: \"Is\": supported values: \"In\", \"NotIn\"",
                "c.restartPolicyRules[1].exitCodes.values: Too many: 256: must have at most 255 items",
            ]
        );
        let rule = json!({ "action": "Restart", "exitCodes": { "operator": "In", "values": [1] } });
        assert_eq!(
            of(json!(vec![rule; 21])),
            ["c.restartPolicyRules: Too many: 21: must have at most 20 items"]
        );
    }
}
