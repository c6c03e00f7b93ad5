//! HorizontalPodAutoscaler: as many pods as their load asks for. Stored as `autoscaling/v2`, served as `v1` too.

mod metrics;
mod v1;
mod validation;

use k8s_openapi::{
    api::autoscaling::v2::{
        HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus,
        MetricSpec, MetricTarget, ResourceMetricSource,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print, quantity,
    validate::{Path, none_negative},
};

const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Reference", "What is scaled."),
    Column::text("Targets", "Each metric as it is, of what it should be."),
    Column::text("MinPods", "The fewest pods."),
    Column::text("MaxPods", "The most pods."),
    Column::text("Replicas", "Pods that there are."),
    Column::AGE,
];

impl Strategy for HorizontalPodAutoscaler {
    const SINGULAR: &'static str = "horizontalpodautoscaler";
    const SHORT_NAMES: &'static [&'static str] = &["hpa"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = COLUMNS;

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let target = &spec.scale_target_ref;
        let least = spec.min_replicas;
        vec![
            json!(print::name(&self.metadata)),
            json!(format!("{}/{}", target.kind, target.name)),
            json!(metrics::summary(
                spec.metrics.as_deref().unwrap_or_default(),
                status.current_metrics.as_deref().unwrap_or_default(),
            )),
            json!(least.map_or_else(|| "<unset>".to_owned(), |least| least.to_string())),
            json!(spec.max_replicas.to_string()),
            json!(status.current_replicas.unwrap_or_default().to_string()),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.min_replicas.get_or_insert(1);
        let metrics = spec.metrics.get_or_insert_default();
        if metrics.is_empty() {
            metrics.push(cpu(80));
        }
        for target in metrics.iter_mut().filter_map(metrics::target_mut) {
            let amounts = [&mut target.value, &mut target.average_value];
            amounts
                .into_iter()
                .flatten()
                .for_each(quantity::canonicalize_one);
        }
        if let Some(behavior) = &mut spec.behavior {
            let up = behavior.scale_up.get_or_insert_default();
            up.stabilization_window_seconds.get_or_insert(0);
            default_rules(up, &[("Pods", 4), ("Percent", 100)]);
            let down = behavior.scale_down.get_or_insert_default();
            default_rules(down, &[("Percent", 100)]);
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(HorizontalPodAutoscalerStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = validation::errors(&Path::new("spec"), &spec);
        if let Some(status) = &self.status {
            errors.extend(none_negative(
                &Path::new("status"),
                &[
                    (
                        "currentReplicas",
                        status.current_replicas.unwrap_or_default(),
                    ),
                    ("desiredReplicas", status.desired_replicas),
                ],
            ));
        }
        errors
    }
}

/// Pods' use of what they request, in percent.
fn cpu(percent: i32) -> MetricSpec {
    MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

fn default_rules(rules: &mut HPAScalingRules, policies: &[(&str, i32)]) {
    rules.select_policy.get_or_insert_with(|| "Max".to_owned());
    let policy = |(type_, value): &(&str, i32)| HPAScalingPolicy {
        period_seconds: 15,
        type_: (*type_).to_owned(),
        value: *value,
    };
    rules
        .policies
        .get_or_insert_with(|| policies.iter().map(policy).collect());
}

/// The sign of an amount that can be read.
fn is_positive(amount: &Quantity) -> bool {
    let amount = amount.0.parse::<quantity::Quantity>();
    amount.is_ok_and(|amount| !amount.is_zero() && !amount.is_negative())
}

#[cfg(test)]
mod tests;
