//! `autoscaling/v1`: one share of CPU is a field, everything else lives in annotations.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::{
    v1::{
        CrossVersionObjectReference as OlderReference, HorizontalPodAutoscaler as Older,
        HorizontalPodAutoscalerSpec as OlderSpec, HorizontalPodAutoscalerStatus as OlderStatus,
    },
    v2::{
        CrossVersionObjectReference, HorizontalPodAutoscaler as Newer, HorizontalPodAutoscalerSpec,
        HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{COLUMNS, cpu};
use crate::resources::{Column, Conversion, FieldError, Strategy, Subresource, decode};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

impl Strategy for Older {
    const SINGULAR: &'static str = Newer::SINGULAR;
    const SHORT_NAMES: &'static [&'static str] = Newer::SHORT_NAMES;
    const CATEGORIES: &'static [&'static str] = Newer::CATEGORIES;
    const SUBRESOURCES: &'static [Subresource] = Newer::SUBRESOURCES;
    const COLUMNS: &'static [Column] = COLUMNS;
    const CONVERSION: Option<Conversion> = Some(Conversion {
        group: "autoscaling",
        version: "v2",
        to_stored: |value| decode::convert(value, newer),
        from_stored: |value| decode::convert(value, older),
    });

    fn row(&self, now: i64) -> Vec<Value> {
        newer(self.clone()).row(now)
    }

    fn set_defaults(&mut self) {
        self.change(Newer::set_defaults);
    }

    fn prepare_create(&mut self) {
        self.change(Newer::prepare_create);
    }

    fn prepare_update(&mut self, old: &Self) {
        self.change(|new| new.prepare_update(&newer(old.clone())));
    }

    fn prepare_status(&mut self, old: &Self) {
        self.change(|new| new.prepare_status(&newer(old.clone())));
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let old = old.map(|old| newer(old.clone()));
        Strategy::validate(&newer(self.clone()), old.as_ref())
    }
}

trait Change {
    /// Does to the object what is done to the newer one.
    fn change(&mut self, change: impl FnOnce(&mut Newer));
}

impl Change for Older {
    fn change(&mut self, change: impl FnOnce(&mut Newer)) {
        let mut same = newer(std::mem::take(self));
        change(&mut same);
        *self = older(same);
    }
}

/// What an annotation holds, which goes from the object if it can be read.
fn take<T: DeserializeOwned>(
    annotations: &mut BTreeMap<String, String>,
    name: &str,
    form: impl Fn(Value) -> Value,
) -> Option<T> {
    let value: Value = serde_json::from_str(annotations.get(name)?).ok()?;
    let taken = serde_json::from_value(form(value)).ok()?;
    annotations.remove(name);
    Some(taken)
}

fn put(
    annotations: &mut BTreeMap<String, String>,
    name: &str,
    value: Option<&impl Serialize>,
    form: impl Fn(Value) -> Value,
) {
    let value = value.and_then(|value| serde_json::to_value(value).ok());
    match value.filter(|value| *value != json!([])) {
        Some(value) => annotations.insert(name.to_owned(), form(value).to_string()),
        None => annotations.remove(name),
    };
}

fn newer(old: Older) -> Newer {
    let mut metadata = old.metadata;
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    let spec = old.spec.map(|spec| {
        let each = |value: Value| each(value, |metric| metric_to_newer(metric, "target"));
        let mut metrics: Vec<MetricSpec> =
            take(&mut annotations, METRICS, each).unwrap_or_default();
        metrics.extend(spec.target_cpu_utilization_percentage.map(cpu));
        let target = spec.scale_target_ref;
        HorizontalPodAutoscalerSpec {
            behavior: take(&mut annotations, BEHAVIOR, |it| it),
            max_replicas: spec.max_replicas,
            metrics: (!metrics.is_empty()).then_some(metrics),
            min_replicas: spec.min_replicas,
            scale_target_ref: CrossVersionObjectReference {
                api_version: target.api_version,
                kind: target.kind,
                name: target.name,
            },
        }
    });
    let status = old.status.map(|status| {
        let each = |value: Value| each(value, |metric| metric_to_newer(metric, "current"));
        HorizontalPodAutoscalerStatus {
            conditions: take(&mut annotations, CONDITIONS, |it| it),
            current_metrics: take(&mut annotations, CURRENT_METRICS, each),
            current_replicas: Some(status.current_replicas),
            desired_replicas: status.desired_replicas,
            last_scale_time: status.last_scale_time,
            observed_generation: status.observed_generation,
        }
    });
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    Newer {
        metadata,
        spec,
        status,
    }
}

/// The share of CPU that version 1 has a field for.
fn cpu_share(metric: &MetricSpec) -> Option<i32> {
    let resource = metric.resource.as_ref().filter(|it| it.name == "cpu")?;
    resource.target.average_utilization
}

fn cpu_now(metric: &MetricStatus) -> Option<i32> {
    let resource = metric.resource.as_ref().filter(|it| it.name == "cpu")?;
    resource.current.average_utilization
}

fn older(new: Newer) -> Older {
    let mut metadata = new.metadata;
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    let spec = new.spec.map(|spec| {
        let metrics = spec.metrics.unwrap_or_default();
        let share = metrics.iter().find_map(cpu_share);
        let others: Vec<_> = metrics
            .iter()
            .filter(|it| cpu_share(it).is_none())
            .collect();
        put(&mut annotations, METRICS, Some(&others), |value| {
            each(value, |metric| metric_to_older(metric, "target"))
        });
        put(&mut annotations, BEHAVIOR, spec.behavior.as_ref(), |it| it);
        let target = spec.scale_target_ref;
        OlderSpec {
            max_replicas: spec.max_replicas,
            min_replicas: spec.min_replicas,
            scale_target_ref: OlderReference {
                api_version: target.api_version,
                kind: target.kind,
                name: target.name,
            },
            target_cpu_utilization_percentage: share,
        }
    });
    let status = new.status.map(|status| {
        let metrics = status.current_metrics.as_ref();
        let share = metrics.and_then(|metrics| metrics.iter().find_map(cpu_now));
        put(&mut annotations, CURRENT_METRICS, metrics, |value| {
            each(value, |metric| metric_to_older(metric, "current"))
        });
        put(
            &mut annotations,
            CONDITIONS,
            status.conditions.as_ref(),
            |it| it,
        );
        OlderStatus {
            current_cpu_utilization_percentage: share,
            current_replicas: status.current_replicas.unwrap_or_default(),
            desired_replicas: status.desired_replicas,
            last_scale_time: status.last_scale_time,
            observed_generation: status.observed_generation,
        }
    });
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    Older {
        metadata,
        spec,
        status,
    }
}

fn each(list: Value, change: impl Fn(&Value) -> Value) -> Value {
    match list {
        Value::Array(items) => items.iter().map(change).collect(),
        other => other,
    }
}

/// Where a metric of one kind has its parts: the paths in the newer form, the names in the older one. `holder` is what
/// holds the amounts: `target` in a specification, `current` in a status.
fn parts(source: &str, holder: &str) -> Vec<([&'static str; 2], String)> {
    let selector = match source {
        "external" => "metricSelector",
        _ => "selector",
    };
    let average = match source {
        "object" => "averageValue".to_owned(),
        _ => format!("{holder}AverageValue"),
    };
    vec![
        (["", "name"], "name".to_owned()),
        (["", "container"], "container".to_owned()),
        (["", "describedObject"], "target".to_owned()),
        (["metric", "name"], "metricName".to_owned()),
        (["metric", "selector"], selector.to_owned()),
        (["amounts", "value"], format!("{holder}Value")),
        (["amounts", "averageValue"], average),
        (
            ["amounts", "averageUtilization"],
            format!("{holder}AverageUtilization"),
        ),
    ]
}

const SOURCES: [&str; 5] = [
    "containerResource",
    "external",
    "object",
    "pods",
    "resource",
];

fn metric_to_older(metric: &Value, holder: &str) -> Value {
    let mut older = json!({ "type": metric["type"] });
    for source in SOURCES {
        let Some(from) = metric.get(source) else {
            continue;
        };
        let mut to = Map::new();
        for ([group, field], name) in parts(source, holder) {
            let value = match group {
                "" => from.get(field),
                "amounts" => from[holder].get(field),
                group => from[group].get(field),
            };
            if let Some(value) = value {
                to.insert(name, value.clone());
            }
        }
        older[source] = Value::Object(to);
    }
    older
}

fn metric_to_newer(metric: &Value, holder: &str) -> Value {
    let mut newer = json!({ "type": metric["type"] });
    for source in SOURCES {
        let Some(from) = metric.get(source) else {
            continue;
        };
        let mut to = json!({ holder: {} });
        for ([group, field], name) in parts(source, holder) {
            let Some(value) = from.get(&name) else {
                continue;
            };
            match group {
                "" => to[field] = value.clone(),
                "amounts" => to[holder][field] = value.clone(),
                group => to[group][field] = value.clone(),
            }
        }
        if holder == "target" {
            let amounts = &to[holder];
            let type_ = if amounts.get("averageUtilization").is_some() {
                "Utilization"
            } else if amounts.get("averageValue").is_some() {
                "AverageValue"
            } else {
                "Value"
            };
            to[holder]["type"] = json!(type_);
        }
        newer[source] = to;
    }
    newer
}
