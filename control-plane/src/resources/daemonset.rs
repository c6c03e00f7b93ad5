//! DaemonSet.

use k8s_openapi::{
    api::apps::v1::{
        DaemonSet, DaemonSetSpec, DaemonSetStatus, DaemonSetUpdateStrategy, RollingUpdateDaemonSet,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    pod, print,
    validate::{self, Path, int_or_percent, is_zero, labels, none_negative},
};

const ROLLING: &str = "RollingUpdate";
const ON_DELETE: &str = "OnDelete";
/// Counts the template's changes. Older clients look at it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

impl Strategy for DaemonSet {
    const SINGULAR: &'static str = "daemonset";
    const SHORT_NAMES: &'static [&'static str] = &["ds"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::integer("Desired", "Nodes that should run its pod."),
        Column::integer("Current", "Nodes that run its pod and should."),
        Column::integer("Ready", "Nodes whose pod is ready."),
        Column::integer("Up-to-date", "Nodes with a pod of the newest template."),
        Column::integer(
            "Available",
            "Nodes whose pod has been ready for long enough.",
        ),
        Column::text("Node Selector", "Which nodes should run its pod."),
        Column::AGE,
        Column::CONTAINERS,
        Column::IMAGES,
        Column::SELECTOR,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let pods = print::template(Some(&spec.template));
        let nodes = spec.template.spec.as_ref();
        let nodes = nodes.and_then(|pod| pod.node_selector.as_ref());
        vec![
            json!(print::name(&self.metadata)),
            json!(status.desired_number_scheduled),
            json!(status.current_number_scheduled),
            json!(status.number_ready),
            json!(status.updated_number_scheduled.unwrap_or_default()),
            json!(status.number_available.unwrap_or_default()),
            json!(print::labels(nodes)),
            json!(age::of(&self.metadata, now)),
            json!(pods.0),
            json!(pods.1),
            json!(print::selector(&spec.selector)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.revision_history_limit.get_or_insert(10);
        let strategy = spec.update_strategy.get_or_insert_default();
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.type_ = Some(ROLLING.to_owned());
        }
        if strategy.type_.as_deref() == Some(ROLLING) {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
        }
        pod::defaults::template(spec.template.spec.get_or_insert_default());
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        let known = template_generation(&self.metadata).max(1);
        set_template_generation(&mut self.metadata, known);
        self.status = Some(DaemonSetStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
        let template = |set: &Self| set.spec.as_ref().map(|spec| spec.template.clone());
        let renewed = template(self) != template(old);
        let known = template_generation(&old.metadata);
        set_template_generation(&mut self.metadata, known + i64::from(renewed));
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
        set_template_generation(&mut self.metadata, template_generation(&old.metadata));
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = spec_errors(&path, &spec);
        if let Some(old) = old.and_then(|old| old.spec.as_ref()) {
            errors.extend(validate::immutable(
                &path.child("selector"),
                &spec.selector,
                &old.selector,
            ));
        }
        let before = old.and_then(|old| old.status.as_ref());
        if let Some(status) = &self.status {
            errors.extend(status_errors(&Path::new("status"), status, before));
        }
        errors
    }
}

fn template_generation(metadata: &ObjectMeta) -> i64 {
    let annotations = metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(TEMPLATE_GENERATION))
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

fn set_template_generation(metadata: &mut ObjectMeta, generation: i64) {
    metadata
        .annotations
        .get_or_insert_default()
        .insert(TEMPLATE_GENERATION.to_owned(), generation.to_string());
}

fn spec_errors(path: &Path, spec: &DaemonSetSpec) -> Vec<FieldError> {
    let template = &spec.template;
    let labels = template.metadata.as_ref().and_then(|it| it.labels.as_ref());
    let mut errors = labels::workload_selector(path, &spec.selector, labels);
    errors.extend(pod::validate::endless_template(
        &path.child("template"),
        template,
        "DaemonSet",
    ));
    errors.extend(none_negative(
        path,
        &[
            (
                "minReadySeconds",
                spec.min_ready_seconds.unwrap_or_default(),
            ),
            (
                "revisionHistoryLimit",
                spec.revision_history_limit.unwrap_or_default(),
            ),
        ],
    ));
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    errors.extend(update_strategy(&path.child("updateStrategy"), &strategy));
    errors
}

fn update_strategy(path: &Path, strategy: &DaemonSetUpdateStrategy) -> Vec<FieldError> {
    let rolling_path = path.child("rollingUpdate");
    match (
        strategy.type_.as_deref().unwrap_or_default(),
        &strategy.rolling_update,
    ) {
        (ON_DELETE, _) => Vec::new(),
        (ROLLING, None) => vec![rolling_path.required("")],
        (ROLLING, Some(rolling)) => rolling_update(&rolling_path, rolling),
        (other, _) => vec![path.child("type").unsupported(other, &[ON_DELETE, ROLLING])],
    }
}

fn rolling_update(path: &Path, rolling: &RollingUpdateDaemonSet) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    for (field, amount) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
        errors.extend(int_or_percent(&path.child(field), amount, Some(100)));
    }
    match (is_zero(unavailable), is_zero(surge)) {
        (false, false) => {
            let value = serde_json::to_value(surge).unwrap_or_default();
            errors.push(
                path.child("maxSurge")
                    .invalid(value, "may not be set when maxUnavailable is non-zero"),
            );
        }
        (true, true) => errors.push(
            path.child("maxUnavailable")
                .required("cannot be 0 when maxSurge is 0"),
        ),
        _ => {}
    }
    errors
}

fn status_errors(
    path: &Path,
    status: &DaemonSetStatus,
    old: Option<&DaemonSetStatus>,
) -> Vec<FieldError> {
    let mut errors = none_negative(
        path,
        &[
            ("currentNumberScheduled", status.current_number_scheduled),
            ("numberMisscheduled", status.number_misscheduled),
            ("desiredNumberScheduled", status.desired_number_scheduled),
            ("numberReady", status.number_ready),
            (
                "updatedNumberScheduled",
                status.updated_number_scheduled.unwrap_or_default(),
            ),
            (
                "numberAvailable",
                status.number_available.unwrap_or_default(),
            ),
            (
                "numberUnavailable",
                status.number_unavailable.unwrap_or_default(),
            ),
        ],
    );
    errors.extend(none_negative(
        path,
        &[(
            "observedGeneration",
            status.observed_generation.unwrap_or_default(),
        )],
    ));
    errors.extend(validate::collisions(
        path,
        status.collision_count,
        old.and_then(|old| old.collision_count),
    ));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: impl FnOnce(&mut Value)) -> DaemonSet {
        let mut value = json!({
            "metadata": { "name": "log" },
            "spec": {
                "selector": { "matchLabels": { "app": "log" } },
                "template": {
                    "metadata": { "labels": { "app": "log" } },
                    "spec": { "containers": [{ "name": "log", "image": "log:1" }], "nodeSelector": { "disk": "big" } },
                },
            },
        });
        change(&mut value);
        let mut set: DaemonSet = serde_json::from_value(value).unwrap();
        set.set_defaults();
        set
    }

    fn errors(new: &DaemonSet, old: Option<&DaemonSet>) -> Vec<String> {
        let errors = Strategy::validate(new, old);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_set_gets_what_upstream_gives_it() {
        let mut set = set(|_| {});
        set.prepare_create();
        assert_eq!(errors(&set, None), Vec::<String>::new());
        let strategy = set.spec.as_ref().unwrap().update_strategy.clone();
        assert_eq!(
            serde_json::to_value(strategy).unwrap(),
            json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } })
        );
        assert_eq!(
            Value::from(set.row(0)),
            json!([
                "log",
                0,
                0,
                0,
                0,
                0,
                "disk=big",
                "<unknown>",
                "log",
                "log:1",
                "app=log"
            ])
        );
    }

    #[test]
    fn the_templates_changes_are_counted() {
        let mut old = set(|_| {});
        old.prepare_create();
        assert_eq!(template_generation(&old.metadata), 1);
        let mut slower = set(|set| set["spec"]["minReadySeconds"] = json!(5));
        slower.prepare_update(&old);
        assert_eq!(
            (
                template_generation(&slower.metadata),
                slower.metadata.generation
            ),
            (1, Some(2))
        );
        let mut newer = set(|set| {
            set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("log:2");
        });
        newer.prepare_update(&old);
        assert_eq!(
            (
                template_generation(&newer.metadata),
                newer.metadata.generation
            ),
            (2, Some(2))
        );
    }

    #[test]
    fn an_update_goes_one_way_or_the_other() {
        let with = |unavailable: Value, surge: Value| {
            let strategy =
                json!({ "rollingUpdate": { "maxUnavailable": unavailable, "maxSurge": surge } });
            errors(&set(|set| set["spec"]["updateStrategy"] = strategy), None)
        };
        assert_eq!(with(json!(0), json!("50%")), Vec::<String>::new());
        assert_eq!(
            with(json!(1), json!(1)),
            [
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"
            ]
        );
        assert_eq!(
            with(json!(0), json!(0)),
            [
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"
            ]
        );
    }

    #[test]
    fn the_selector_stays() {
        let old = set(|_| {});
        let other = set(|set| {
            set["spec"]["selector"] = json!({ "matchLabels": { "app": "x" } });
            set["spec"]["template"]["metadata"]["labels"] = json!({ "app": "x" });
        });
        assert_eq!(
            errors(&other, Some(&old)),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"]
        );
    }
}
