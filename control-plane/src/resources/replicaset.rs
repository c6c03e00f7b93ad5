//! ReplicaSet.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    pod, print,
    validate::{self, Path, labels, not_negative},
};

impl Strategy for ReplicaSet {
    const SINGULAR: &'static str = "replicaset";
    const SHORT_NAMES: &'static [&'static str] = &["rs"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Scale];
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
            json!(print::selector(&spec.selector)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            pod::defaults::template(template.spec.get_or_insert_default());
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(ReplicaSetStatus::default());
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

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = Vec::new();
        errors.extend(not_negative(
            &path.child("replicas"),
            spec.replicas.unwrap_or_default().into(),
        ));
        errors.extend(not_negative(
            &path.child("minReadySeconds"),
            spec.min_ready_seconds.unwrap_or_default().into(),
        ));
        let template = spec.template.clone().unwrap_or_default();
        let template_labels = template
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.labels.as_ref());
        errors.extend(labels::workload_selector(
            &path,
            &spec.selector,
            template_labels,
        ));
        match spec.template {
            None => errors.push(path.child("template").required("")),
            Some(template) => errors.extend(pod::validate::endless_template(
                &path.child("template"),
                &template,
                "ReplicaSet",
            )),
        }
        if let Some(old) = old.and_then(|old| old.spec.as_ref()) {
            errors.extend(validate::immutable(
                &path.child("selector"),
                &spec.selector,
                &old.selector,
            ));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let replicas = self.status.as_ref().map_or(0, |status| status.replicas);
        vec![("status.replicas", replicas.to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_set_without_a_template_is_refused() {
        let mut set: ReplicaSet =
            serde_json::from_value(json!({ "spec": { "replicas": -1, "selector": {} } })).unwrap();
        set.set_defaults();
        let errors: Vec<_> = Strategy::validate(&set, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.selector: Required value",
                "spec.template: Required value",
            ]
        );
    }

    #[test]
    fn the_row_counts_pods() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": { "name": "web-1" },
            "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } },
                      "template": { "spec": { "containers": [{ "name": "a", "image": "b" }] } } },
            "status": { "replicas": 2, "readyReplicas": 1 },
        }))
        .unwrap();
        assert_eq!(
            Value::from(set.row(0)),
            json!(["web-1", 3, 2, 1, "<unknown>", "a", "b", "app=web"])
        );
    }
}
