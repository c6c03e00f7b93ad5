//! PodTemplate: a template of pods, kept for later use.

use k8s_openapi::api::core::v1::PodTemplate;
use serde_json::{Value, json};

use super::{Column, FieldError, Strategy, kind::carry_generation, pod, print, validate::Path};

impl Strategy for PodTemplate {
    const SINGULAR: &'static str = "podtemplate";
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Containers", "Names of the template's containers."),
        Column::text("Images", "Images of the template's containers."),
        Column::text("Pod Labels", "Labels of the template's pods."),
    ];

    fn row(&self, _now: i64) -> Vec<Value> {
        let pods = print::template(self.template.as_ref());
        let metadata = self.template.as_ref().and_then(|it| it.metadata.as_ref());
        vec![
            json!(print::name(&self.metadata)),
            json!(pods.0),
            json!(pods.1),
            json!(print::labels(metadata.and_then(|it| it.labels.as_ref()))),
        ]
    }

    fn set_defaults(&mut self) {
        let template = self.template.get_or_insert_default();
        pod::defaults::template(template.spec.get_or_insert_default());
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        let changed = self.template != old.template;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let template = self.template.clone().unwrap_or_default();
        pod::validate::template(&Path::new("template"), &template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_one_of_valid_pods() {
        let mut kept: PodTemplate = serde_json::from_value(json!({
            "metadata": { "name": "t" },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c" }] } },
        }))
        .unwrap();
        kept.set_defaults();
        let errors = Strategy::validate(&kept, None);
        assert_eq!(
            errors[0].to_string(),
            "template.spec.containers[0].image: Required value"
        );
        assert_eq!(Value::from(kept.row(0)), json!(["t", "c", "", "a=b"]));
    }
}
