//! ReplicationController: what ReplicaSets replaced.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerStatus};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    pod, print,
    validate::{Path, none_negative},
};

impl Strategy for ReplicationController {
    const SINGULAR: &'static str = "replicationcontroller";
    const SHORT_NAMES: &'static [&'static str] = &["rc"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Scale];
    const ORPHANS: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::integer("Desired", "Pods that are wanted."),
        Column::integer("Current", "Pods that there are."),
        Column::integer("Ready", "Pods that are ready."),
        Column::AGE,
        Column::CONTAINERS,
        Column::IMAGES,
        Column::SELECTOR,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let pods = print::template(spec.template.as_ref());
        vec![
            json!(print::name(&self.metadata)),
            json!(spec.replicas.unwrap_or_default()),
            json!(status.replicas),
            json!(status.ready_replicas.unwrap_or_default()),
            json!(age::of(&self.metadata, now)),
            json!(pods.0),
            json!(pods.1),
            json!(print::labels(spec.selector.as_ref())),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        let Some(template) = &mut spec.template else {
            return;
        };
        pod::defaults::template(template.spec.get_or_insert_default());
        let labels = template.metadata.as_ref().and_then(|it| it.labels.clone());
        for own in [&mut spec.selector, &mut self.metadata.labels] {
            if own.as_ref().is_none_or(BTreeMap::is_empty) && labels.is_some() {
                own.clone_from(&labels);
            }
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(ReplicationControllerStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let selector = spec.selector.unwrap_or_default();
        let mut errors = none_negative(
            &path,
            &[
                (
                    "minReadySeconds",
                    spec.min_ready_seconds.unwrap_or_default(),
                ),
                ("replicas", spec.replicas.unwrap_or_default()),
            ],
        );
        if selector.is_empty() {
            errors.push(path.child("selector").required(""));
        }
        let path = path.child("template");
        match spec.template {
            None => errors.push(path.required("")),
            Some(template) => {
                let labels = template.metadata.as_ref().and_then(|it| it.labels.clone());
                let labels = labels.unwrap_or_default();
                if selector
                    .iter()
                    .any(|(key, value)| labels.get(key) != Some(value))
                {
                    errors.push(
                        path.child("metadata")
                            .child("labels")
                            .invalid(json!(labels), "`selector` does not match template `labels`"),
                    );
                }
                errors.extend(pod::validate::endless_template(
                    &path,
                    &template,
                    "ReplicationController",
                ));
            }
        }
        if let Some(status) = &self.status {
            errors.extend(status_errors(&Path::new("status"), status));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let replicas = self.status.as_ref().map_or(0, |status| status.replicas);
        vec![("status.replicas", replicas.to_string())]
    }
}

fn status_errors(path: &Path, status: &ReplicationControllerStatus) -> Vec<FieldError> {
    let (ready, available) = (
        status.ready_replicas.unwrap_or_default(),
        status.available_replicas.unwrap_or_default(),
    );
    let parts = [
        (
            "fullyLabeledReplicas",
            status.fully_labeled_replicas.unwrap_or_default(),
        ),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ];
    let mut errors = none_negative(path, &[("replicas", status.replicas)]);
    errors.extend(none_negative(path, &parts));
    errors.extend(none_negative(
        path,
        &[(
            "observedGeneration",
            status.observed_generation.unwrap_or_default(),
        )],
    ));
    for (field, count) in parts {
        if count > status.replicas {
            errors.push(
                path.child(field)
                    .invalid(count, "cannot be greater than status.replicas"),
            );
        }
    }
    if available > ready {
        errors.push(
            path.child("availableReplicas")
                .invalid(available, "cannot be greater than readyReplicas"),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(spec: Value) -> ReplicationController {
        let mut controller: ReplicationController =
            serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).unwrap();
        controller.set_defaults();
        controller
    }

    fn errors(controller: &ReplicationController) -> Vec<String> {
        let errors = Strategy::validate(controller, None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_not_said_comes_from_the_template() {
        let plain = controller(json!({ "template": {
            "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "a", "image": "b:1" }] },
        } }));
        assert_eq!(errors(&plain), Vec::<String>::new());
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        assert_eq!(plain.metadata.labels.as_ref(), Some(&labels));
        let spec = plain.spec.as_ref().unwrap();
        assert_eq!((&spec.selector, spec.replicas), (&Some(labels), Some(1)));
        assert_eq!(
            Value::from(plain.row(0)),
            json!(["web", 1, 0, 0, "<unknown>", "a", "b:1", "app=web"])
        );
    }

    #[test]
    fn the_selector_chooses_the_templates_pods() {
        assert_eq!(
            errors(&controller(json!({ "replicas": -1 }))),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.selector: Required value",
                "spec.template: Required value",
            ]
        );
        let other = controller(json!({ "selector": { "app": "x" }, "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "a", "image": "b:1" }], "activeDeadlineSeconds": 5 },
        } }));
        assert_eq!(
            errors(&other),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
                "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported",
            ]
        );
    }
}
