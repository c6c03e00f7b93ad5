//! Deployment.

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, RollingUpdateDeployment},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    pod, print,
    validate::{self, Path, int_or_percent, is_zero, labels, not_negative},
};

const ROLLING: &str = "RollingUpdate";

impl Strategy for Deployment {
    const SINGULAR: &'static str = "deployment";
    const SHORT_NAMES: &'static [&'static str] = &["deploy"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Scale];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Ready", "Pods that are ready, of those wanted."),
        Column::text("Up-to-date", "Pods of the newest template."),
        Column::text("Available", "Pods that have been ready for long enough."),
        Column::AGE,
        Column::CONTAINERS,
        Column::IMAGES,
        Column::SELECTOR,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let pods = print::template(Some(&spec.template));
        let ready = status.ready_replicas.unwrap_or_default();
        vec![
            json!(print::name(&self.metadata)),
            json!(format!("{ready}/{}", spec.replicas.unwrap_or_default())),
            json!(status.updated_replicas.unwrap_or_default()),
            json!(status.available_replicas.unwrap_or_default()),
            json!(age::of(&self.metadata, now)),
            json!(pods.0),
            json!(pods.1),
            json!(print::selector(&spec.selector)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.type_ = Some(ROLLING.to_owned());
        }
        if strategy.type_.as_deref() == Some(ROLLING) {
            let quarter = || IntOrString::String("25%".to_owned());
            let rolling = strategy
                .rolling_update
                .get_or_insert_with(RollingUpdateDeployment::default);
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        pod::defaults::template(spec.template.spec.get_or_insert_default());
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(DeploymentStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        // Annotations count: a rollout is recorded in them.
        let changed =
            self.spec != old.spec || self.metadata.annotations != old.metadata.annotations;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.labels = old.metadata.labels.clone();
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
        let template_labels = spec
            .template
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.labels.as_ref());
        errors.extend(labels::workload_selector(
            &path,
            &spec.selector,
            template_labels,
        ));
        errors.extend(pod::validate::endless_template(
            &path.child("template"),
            &spec.template,
            "ReplicaSet",
        ));
        errors.extend(strategy(&path.child("strategy"), &spec));
        errors.extend(timing(&path, &spec));
        if let Some(old) = old.and_then(|old| old.spec.as_ref()) {
            errors.extend(validate::immutable(
                &path.child("selector"),
                &spec.selector,
                &old.selector,
            ));
        }
        errors
    }
}

fn timing(path: &Path, spec: &DeploymentSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ready = spec.min_ready_seconds.unwrap_or_default();
    let history = spec.revision_history_limit.unwrap_or_default();
    errors.extend(not_negative(&path.child("minReadySeconds"), ready.into()));
    errors.extend(not_negative(
        &path.child("revisionHistoryLimit"),
        history.into(),
    ));
    if let Some(deadline) = spec.progress_deadline_seconds {
        let path = path.child("progressDeadlineSeconds");
        errors.extend(not_negative(&path, deadline.into()));
        if deadline <= ready {
            errors.push(path.invalid(deadline, "must be greater than minReadySeconds"));
        }
    }
    errors
}

fn strategy(path: &Path, spec: &DeploymentSpec) -> Vec<FieldError> {
    let Some(strategy) = &spec.strategy else {
        return Vec::new();
    };
    match (
        strategy.type_.as_deref().unwrap_or_default(),
        &strategy.rolling_update,
    ) {
        ("Recreate", None) => Vec::new(),
        ("Recreate", Some(_)) => vec![
            path.child("rollingUpdate")
                .forbidden("may not be specified when strategy `type` is 'Recreate'"),
        ],
        (ROLLING, None) => vec![
            path.child("rollingUpdate")
                .required("this should be defaulted and never be nil"),
        ],
        (ROLLING, Some(rolling)) => rolling_update(&path.child("rollingUpdate"), rolling),
        (other, _) => vec![
            path.child("type")
                .unsupported(other, &["Recreate", ROLLING]),
        ],
    }
}

fn rolling_update(path: &Path, rolling: &RollingUpdateDeployment) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    for (field, amount, most) in [
        ("maxUnavailable", unavailable, Some(100)),
        ("maxSurge", surge, None),
    ] {
        errors.extend(int_or_percent(&path.child(field), amount, most));
    }
    if is_zero(unavailable) && is_zero(surge) {
        let value = serde_json::to_value(unavailable).unwrap_or_default();
        errors.push(
            path.child("maxUnavailable")
                .invalid(value, "may not be 0 when `maxSurge` is 0"),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(value: Value) -> Deployment {
        let mut deployment: Deployment = serde_json::from_value(value).unwrap();
        deployment.set_defaults();
        deployment
    }

    fn plain() -> Value {
        json!({
            "metadata": { "name": "web" },
            "spec": {
                "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
                },
            },
        })
    }

    fn errors(new: &Deployment, old: Option<&Deployment>) -> Vec<String> {
        Strategy::validate(new, old)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_plain_deployment_gets_what_upstream_gives_it() {
        let deployment = deployment(plain());
        assert!(errors(&deployment, None).is_empty());
        let mut spec = serde_json::to_value(deployment.spec).unwrap();
        let template = spec["template"]["spec"].take();
        assert_eq!(
            spec,
            json!({
                "progressDeadlineSeconds": 600, "replicas": 1, "revisionHistoryLimit": 10,
                "selector": { "matchLabels": { "app": "web" } },
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": null },
            })
        );
        assert_eq!(template["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(template.get("enableServiceLinks"), None);
    }

    #[test]
    fn the_row_counts_pods() {
        let mut value = plain();
        value["status"] =
            json!({ "readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 1 });
        assert_eq!(
            Value::from(deployment(value).row(0)),
            json!(["web", "1/1", 1, 1, "<unknown>", "web", "web:1", "app=web"])
        );
    }

    #[test]
    fn the_selector_chooses_the_templates_pods_for_good() {
        let old = deployment(plain());
        let mut value = plain();
        value["spec"]["selector"]["matchLabels"] = json!({ "app": "other" });
        assert_eq!(
            errors(&deployment(value), Some(&old)),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
                "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"other\"}}: field is immutable",
            ]
        );
    }

    #[test]
    fn a_rollout_needs_room() {
        let with = |unavailable: Value, surge: Value| {
            let mut value = plain();
            value["spec"]["strategy"] =
                json!({ "rollingUpdate": { "maxUnavailable": unavailable, "maxSurge": surge } });
            errors(&deployment(value), None)
        };
        assert!(with(json!(0), json!(1)).is_empty());
        assert_eq!(
            with(json!(0), json!("0%")),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"
            ]
        );
        assert_eq!(
            with(json!("101%"), json!("120%")),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"
            ]
        );
        assert_eq!(with(json!("a"), json!(-1)).len(), 2);
    }

    #[test]
    fn the_generation_follows_the_spec() {
        let mut old = deployment(plain());
        old.prepare_create();
        let mut same = old.clone();
        same.prepare_update(&old);
        assert_eq!(same.metadata.generation, Some(1));
        let mut scaled = old.clone();
        scaled.spec.as_mut().unwrap().replicas = Some(5);
        scaled.prepare_update(&old);
        assert_eq!(scaled.metadata.generation, Some(2));
        let mut status = scaled.clone();
        status.spec = None;
        status.prepare_status(&scaled);
        assert_eq!(status.spec, scaled.spec);
    }
}
