//! RuntimeClass: by which handler of the node's runtime pods run, and what that costs.

use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age,
    kind::carry_generation,
    pod::validate::tolerations,
    print, quantity,
    validate::{Path, immutable, labels, names, resource_names},
};

impl Strategy for RuntimeClass {
    const SINGULAR: &'static str = "runtimeclass";
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Handler", "What the node's runtime is configured with."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(self.handler),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        let overhead = self.overhead.as_mut();
        quantity::canonicalize(overhead.and_then(|overhead| overhead.pod_fixed.as_mut()));
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        carry_generation(&mut self.metadata, &old.metadata, false);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("handler");
        let mut errors =
            path.invalid_all(&self.handler, names::dns1123_label(&self.handler, false));
        if let Some(overhead) = &self.overhead {
            let path = Path::new("overhead").child("podFixed");
            for name in overhead.pod_fixed.iter().flatten().map(|(name, _)| name) {
                errors.extend(
                    path.key(name)
                        .invalid_all(name, resource_names::of_container(name)),
                );
            }
            errors.extend(quantity::errors(&path, overhead.pod_fixed.as_ref()));
        }
        if let Some(scheduling) = &self.scheduling {
            let path = Path::new("scheduling");
            let at = path.child("nodeSelector");
            errors.extend(labels::labels(&at, scheduling.node_selector.as_ref()));
            let at = path.child("tolerations");
            let all = scheduling.tolerations.as_deref().unwrap_or_default();
            errors.extend(tolerations(&at, all));
            for (index, toleration) in all.iter().enumerate() {
                if all[..index].contains(toleration) {
                    let value = serde_json::to_value(toleration).unwrap_or_default();
                    errors.push(at.index(index).duplicate(value));
                }
            }
        }
        if let Some(old) = old {
            errors.extend(immutable(&path, &self.handler, &old.handler));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(class: Value) -> Vec<String> {
        let class: RuntimeClass = serde_json::from_value(class).unwrap();
        let errors = Strategy::validate(&class, None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_handler_is_a_label_and_its_cost_an_amount() {
        assert!(
            errors(json!({"handler": "kata", "overhead": {"podFixed": {"memory": "120Mi"}}}))
                .is_empty()
        );
        let found = errors(json!({
            "handler": "kata_1", "overhead": {"podFixed": {"disk": "1"}},
            "scheduling": {"tolerations": [{"key": "a"}, {"key": "a"}]},
        }));
        assert!(
            found[0].starts_with("handler: Invalid value: \"kata_1\": a lowercase RFC 1123 label")
        );
        assert_eq!(
            found[1],
            "overhead.podFixed[disk]: Invalid value: \"disk\": must be a standard resource for containers"
        );
        assert_eq!(
            found[2],
            "scheduling.tolerations[1]: Duplicate value: {\"key\":\"a\"}"
        );
    }

    #[test]
    fn the_handler_stays() {
        let class = |handler: &str| -> RuntimeClass {
            serde_json::from_value(json!({"handler": handler})).unwrap()
        };
        let errors = Strategy::validate(&class("b"), Some(&class("a")));
        assert_eq!(
            errors[0].to_string(),
            "handler: Invalid value: \"b\": field is immutable"
        );
    }
}
