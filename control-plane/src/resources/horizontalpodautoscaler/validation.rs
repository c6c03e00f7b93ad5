//! What an autoscaler's specification may say.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec,
    MetricIdentifier, MetricSpec, MetricTarget,
};

use super::is_positive;
use crate::resources::{
    quantity,
    validate::{FieldError, Path, names, resource_names},
};

const LONGEST_PERIOD: i32 = 1800;
const LONGEST_WINDOW: i32 = 3600;
const TYPES: &[&str] = &[
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];
const SELECT: &[&str] = &["Disabled", "Max", "Min"];
const POLICIES: &[&str] = &["Percent", "Pods"];

pub(super) fn errors(path: &Path, spec: &HorizontalPodAutoscalerSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (least, most) = (spec.min_replicas, spec.max_replicas);
    if let Some(least) = least.filter(|&least| least < 1) {
        errors.push(
            path.child("minReplicas")
                .invalid(least, "must be greater than or equal to 1"),
        );
    }
    let at = path.child("maxReplicas");
    if most < 1 {
        errors.push(at.invalid(most, "must be greater than 0"));
    }
    if least.is_some_and(|least| most < least) {
        errors.push(at.invalid(most, "must be greater than or equal to `minReplicas`"));
    }
    errors.extend(reference(
        &path.child("scaleTargetRef"),
        &spec.scale_target_ref,
    ));
    for (index, one) in spec.metrics.iter().flatten().enumerate() {
        errors.extend(metric(&path.child("metrics").index(index), one));
    }
    if let Some(behavior) = &spec.behavior {
        let path = path.child("behavior");
        for (field, chosen) in [
            ("scaleUp", &behavior.scale_up),
            ("scaleDown", &behavior.scale_down),
        ] {
            if let Some(chosen) = chosen {
                errors.extend(rules(&path.child(field), chosen));
            }
        }
    }
    errors
}

/// A word that fits into a path of a URL.
fn segment(path: &Path, text: &str, missing: &str) -> Vec<FieldError> {
    match text {
        "" => vec![path.required(missing)],
        text => path.invalid_all(text, names::path_segment(text, false)),
    }
}

fn reference(path: &Path, reference: &CrossVersionObjectReference) -> Vec<FieldError> {
    let mut errors = segment(&path.child("kind"), &reference.kind, "");
    errors.extend(segment(&path.child("name"), &reference.name, ""));
    errors
}

fn rules(path: &Path, rules: &HPAScalingRules) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("stabilizationWindowSeconds");
    match rules.stabilization_window_seconds {
        Some(window @ ..0) => {
            errors.push(at.invalid(window, "must be greater than or equal to zero"));
        }
        Some(window) if window > LONGEST_WINDOW => errors.push(at.invalid(
            window,
            format!("must be less than or equal to {LONGEST_WINDOW}"),
        )),
        _ => {}
    }
    if let Some(select) = rules.select_policy.as_deref()
        && !SELECT.contains(&select)
    {
        errors.push(path.child("selectPolicy").unsupported(select, SELECT));
    }
    let at = path.child("policies");
    let policies = rules.policies.as_deref().unwrap_or_default();
    if policies.is_empty() {
        errors.push(at.required("must specify at least one Policy"));
    }
    for (index, one) in policies.iter().enumerate() {
        errors.extend(policy(&at.index(index), one));
    }
    if let Some(tolerance) = &rules.tolerance {
        let at = path.child("tolerance");
        match tolerance.0.parse::<quantity::Quantity>() {
            Ok(amount) if !amount.is_negative() => {}
            Ok(_) => {
                errors.push(at.invalid(tolerance.0.as_str(), "must be greater or equal to zero"))
            }
            Err(why) => errors.push(at.invalid(tolerance.0.as_str(), why.to_string())),
        }
    }
    errors
}

fn policy(path: &Path, policy: &HPAScalingPolicy) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !POLICIES.contains(&policy.type_.as_str()) {
        errors.push(path.child("type").unsupported(&policy.type_, POLICIES));
    }
    for (field, number) in [
        ("value", policy.value),
        ("periodSeconds", policy.period_seconds),
    ] {
        if number <= 0 {
            errors.push(
                path.child(field)
                    .invalid(number, "must be greater than zero"),
            );
        }
    }
    if policy.period_seconds > LONGEST_PERIOD {
        errors.push(path.child("periodSeconds").invalid(
            policy.period_seconds,
            format!("must be less than or equal to {LONGEST_PERIOD}"),
        ));
    }
    errors
}

fn metric(path: &Path, metric: &MetricSpec) -> Vec<FieldError> {
    let sources = [
        ("object", metric.object.is_some()),
        ("external", metric.external.is_some()),
        ("pods", metric.pods.is_some()),
        ("resource", metric.resource.is_some()),
        ("containerResource", metric.container_resource.is_some()),
    ];
    let present: Vec<&str> = sources
        .iter()
        .filter_map(|(field, set)| set.then_some(*field))
        .collect();
    let mut errors = Vec::new();
    let at = path.child("type");
    let expected = match metric.type_.as_str() {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        other => {
            if other.is_empty() {
                errors.push(at.required("must specify a metric source type"));
            }
            errors.push(at.unsupported(other, TYPES));
            ""
        }
    };
    // Upstream looks into the first of several only, too.
    if let Some(first) = present.first() {
        errors.extend(source(&path.child(first), metric, first));
    }
    if !expected.is_empty() && !present.contains(&expected) {
        errors.push(
            path.child(expected)
                .required("must populate information for the given metric source"),
        );
    }
    if present.len() > 1 {
        let others = present.iter().filter(|field| **field != expected);
        errors.extend(others.map(|field| {
            path.child(field)
                .forbidden("must populate the given metric source only")
        }));
    }
    errors
}

fn source(path: &Path, metric: &MetricSpec, field: &str) -> Vec<FieldError> {
    let at = path.child("target");
    let average = at.child("averageValue");
    let mut errors = Vec::new();
    if let ("object", Some(source)) = (field, &metric.object) {
        errors.extend(reference(
            &path.child("describedObject"),
            &source.described_object,
        ));
        errors.extend(identifier(&path.child("metric"), &source.metric));
        errors.extend(target(&at, &source.target));
        if source.target.value.is_none() && source.target.average_value.is_none() {
            errors.push(average.required("must set either a target value or averageValue"));
        }
    }
    if let ("external", Some(source)) = (field, &metric.external) {
        errors.extend(identifier(&path.child("metric"), &source.metric));
        errors.extend(target(&at, &source.target));
        match (&source.target.value, &source.target.average_value) {
            (None, None) => errors.push(
                average.required("must set either a target value for metric or a per-pod target"),
            ),
            (Some(_), Some(_)) => errors.push(
                at.child("value")
                    .forbidden("may not set both a target value for metric and a per-pod target"),
            ),
            _ => {}
        }
    }
    if let ("pods", Some(source)) = (field, &metric.pods) {
        errors.extend(identifier(&path.child("metric"), &source.metric));
        errors.extend(target(&at, &source.target));
        if source.target.average_value.is_none() {
            errors.push(average.required("must specify a positive target averageValue"));
        }
    }
    if let ("resource", Some(source)) = (field, &metric.resource) {
        if source.name.is_empty() {
            errors.push(path.child("name").required("must specify a resource name"));
        }
        errors.extend(of_resource(&at, &source.target));
    }
    if let ("containerResource", Some(source)) = (field, &metric.container_resource) {
        let name = path.child("name");
        match source.name.as_str() {
            "" => errors.push(name.required("must specify a resource name")),
            known => errors.extend(name.invalid_all(known, resource_names::of_container(known))),
        }
        let container = path.child("container");
        match source.container.as_str() {
            "" => errors.push(container.required("must specify a container")),
            name => errors.extend(container.invalid_all(name, names::dns1123_label(name, false))),
        }
        errors.extend(of_resource(&at, &source.target));
    }
    errors
}

fn of_resource(path: &Path, wanted: &MetricTarget) -> Vec<FieldError> {
    let mut errors = target(path, wanted);
    match (&wanted.average_utilization, &wanted.average_value) {
        (None, None) => errors.push(
            path.child("averageUtilization")
                .required("must set either a target raw value or a target utilization"),
        ),
        (Some(_), Some(_)) => errors.push(
            path.child("averageValue")
                .forbidden("may not set both a target raw value and a target utilization"),
        ),
        _ => {}
    }
    errors
}

fn target(path: &Path, target: &MetricTarget) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("type");
    if target.type_.is_empty() {
        errors.push(at.required("must specify a metric target type"));
    }
    if !matches!(
        target.type_.as_str(),
        "Utilization" | "Value" | "AverageValue"
    ) {
        errors.push(at.invalid(
            target.type_.as_str(),
            "must be either Utilization, Value, or AverageValue",
        ));
    }
    for (field, amount) in [
        ("value", &target.value),
        ("averageValue", &target.average_value),
    ] {
        if let Some(amount) = amount.as_ref().filter(|amount| !is_positive(amount)) {
            errors.push(
                path.child(field)
                    .invalid(amount.0.as_str(), "must be positive"),
            );
        }
    }
    if let Some(share) = target.average_utilization.filter(|&share| share < 1) {
        errors.push(
            path.child("averageUtilization")
                .invalid(share, "must be greater than 0"),
        );
    }
    errors
}

fn identifier(path: &Path, metric: &MetricIdentifier) -> Vec<FieldError> {
    segment(
        &path.child("name"),
        &metric.name,
        "must specify a metric name",
    )
}
