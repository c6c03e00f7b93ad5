//! Metrics of all five kinds, seen as one: what is measured, what it should be, and what it is.

use k8s_openapi::{
    api::autoscaling::v2::{MetricSpec, MetricStatus, MetricTarget, MetricValueStatus},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::resources::print;

const UNKNOWN: &str = "<unknown>";
/// How many metrics are shown.
const SHOWN: usize = 2;

pub(super) fn target_mut(metric: &mut MetricSpec) -> Option<&mut MetricTarget> {
    Some(match metric.type_.as_str() {
        "ContainerResource" => &mut metric.container_resource.as_mut()?.target,
        "External" => &mut metric.external.as_mut()?.target,
        "Object" => &mut metric.object.as_mut()?.target,
        "Pods" => &mut metric.pods.as_mut()?.target,
        "Resource" => &mut metric.resource.as_mut()?.target,
        _ => return None,
    })
}

/// What a metric should be, and of which resource it is if it is of one.
fn target(metric: &MetricSpec) -> Option<(Option<&str>, &MetricTarget)> {
    Some(match metric.type_.as_str() {
        "ContainerResource" => {
            let source = metric.container_resource.as_ref()?;
            (Some(&source.name), &source.target)
        }
        "External" => (None, &metric.external.as_ref()?.target),
        "Object" => (None, &metric.object.as_ref()?.target),
        "Pods" => (None, &metric.pods.as_ref()?.target),
        "Resource" => {
            let source = metric.resource.as_ref()?;
            (Some(&source.name), &source.target)
        }
        _ => return None,
    })
}

/// What a metric is, if it is measured as `type_`.
fn current<'a>(status: &'a MetricStatus, type_: &str) -> Option<&'a MetricValueStatus> {
    Some(match type_ {
        "ContainerResource" => &status.container_resource.as_ref()?.current,
        "External" => &status.external.as_ref()?.current,
        "Object" => &status.object.as_ref()?.current,
        "Pods" => &status.pods.as_ref()?.current,
        "Resource" => &status.resource.as_ref()?.current,
        _ => return None,
    })
}

/// `cpu: 10%/80%, 5/10 (avg) + 1 more...`
pub(super) fn summary(metrics: &[MetricSpec], statuses: &[MetricStatus]) -> String {
    let statuses = statuses.iter().map(Some).chain(std::iter::repeat(None));
    let all = metrics.iter().zip(statuses);
    let shown: Vec<_> = all
        .take(SHOWN)
        .map(|(metric, status)| one(metric, status))
        .collect();
    match metrics.len() {
        0 => print::NONE.to_owned(),
        count if count > SHOWN => format!("{} + {} more...", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}

fn one(metric: &MetricSpec, status: Option<&MetricStatus>) -> String {
    let Some((resource, target)) = target(metric) else {
        return "<unknown type>".to_owned();
    };
    let current = status.and_then(|status| current(status, &metric.type_));
    let amount = |amount: Option<&Quantity>| {
        amount.map_or_else(|| UNKNOWN.to_owned(), |amount| amount.0.clone())
    };
    let percent = |share: Option<i32>, none: &str| {
        share.map_or_else(|| none.to_owned(), |share| format!("{share}%"))
    };
    let is_average = target.average_value.is_some() || metric.type_ == "Pods";
    match resource {
        Some(name) if target.average_value.is_some() => {
            let is = amount(current.and_then(|it| it.average_value.as_ref()));
            format!("{name}: {is}/{}", amount(target.average_value.as_ref()))
        }
        Some(name) => {
            let is = percent(current.and_then(|it| it.average_utilization), UNKNOWN);
            let wanted = percent(target.average_utilization, "<auto>");
            format!("{name}: {is}/{wanted}")
        }
        None if is_average => {
            let is = amount(current.and_then(|it| it.average_value.as_ref()));
            let note = if metric.type_ == "Pods" { "" } else { " (avg)" };
            format!("{is}/{}{note}", amount(target.average_value.as_ref()))
        }
        None => {
            let is = amount(current.and_then(|it| it.value.as_ref()));
            format!("{is}/{}", amount(target.value.as_ref()))
        }
    }
}
