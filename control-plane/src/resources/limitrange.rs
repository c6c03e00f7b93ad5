//! LimitRange: what the pods and claims of a namespace may ask for, and what they get if they do not ask.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, print,
    quantity::{self, Quantity},
    validate::{Path, names, resource_names},
};

const TYPES: &[&str] = &["Pod", "Container", "PersistentVolumeClaim"];

impl Strategy for LimitRange {
    const SINGULAR: &'static str = "limitrange";
    const SHORT_NAMES: &'static [&'static str] = &["limits"];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Created At", "When the object was created."),
    ];

    fn row(&self, _now: i64) -> Vec<Value> {
        let created = self.metadata.creation_timestamp.as_ref();
        vec![
            json!(print::name(&self.metadata)),
            json!(created.map(|time| time.0.to_string())),
        ]
    }

    fn set_defaults(&mut self) {
        let limits = self.spec.iter_mut().flat_map(|spec| &mut spec.limits);
        limits.for_each(set_item_defaults);
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec").child("limits");
        let limits = self.spec.iter().flat_map(|spec| &spec.limits);
        let (mut errors, mut seen) = (Vec::new(), BTreeSet::new());
        for (index, limit) in limits.enumerate() {
            let path = path.index(index);
            errors.extend(of_type(&path.child("type"), &limit.type_));
            if !seen.insert(&limit.type_) {
                errors.push(path.child("type").duplicate(limit.type_.as_str()));
            }
            errors.extend(item(&path, limit));
        }
        errors
    }
}

/// Where a container says nothing, the most is the limit, and the limit or the least is the request.
fn set_item_defaults(item: &mut LimitRangeItem) {
    for amounts in [
        &mut item.max,
        &mut item.min,
        &mut item.default,
        &mut item.default_request,
        &mut item.max_limit_request_ratio,
    ] {
        quantity::canonicalize(amounts.as_mut());
    }
    if item.type_ != "Container" {
        return;
    }
    let fill = |from: Option<&quantity::Amounts>, into: &mut Option<quantity::Amounts>| {
        for (name, amount) in from.into_iter().flatten() {
            let into = into.get_or_insert_default();
            into.entry(name.clone()).or_insert_with(|| amount.clone());
        }
    };
    fill(item.max.as_ref(), &mut item.default);
    fill(item.default.as_ref(), &mut item.default_request);
    fill(item.min.as_ref(), &mut item.default_request);
}

fn of_type(path: &Path, name: &str) -> Vec<FieldError> {
    let mut errors = path.invalid_all(name, names::qualified(name));
    if errors.is_empty() && !name.contains('/') && !TYPES.contains(&name) {
        errors.push(path.invalid(name, "must be a standard limit type or fully qualified"));
    }
    errors
}

fn item(path: &Path, item: &LimitRangeItem) -> Vec<FieldError> {
    let of_pod = item.type_ == "Pod";
    let name_rule = match item.type_.as_str() {
        "Pod" | "Container" => resource_names::of_container,
        _ => resource_names::of_any,
    };
    let mut errors = Vec::new();
    for (field, amounts, of_pods) in [
        ("max", &item.max, true),
        ("min", &item.min, true),
        ("default", &item.default, false),
        ("defaultRequest", &item.default_request, false),
        ("maxLimitRequestRatio", &item.max_limit_request_ratio, true),
    ] {
        let path = path.child(field);
        if of_pod && !of_pods {
            if amounts.as_ref().is_some_and(|amounts| !amounts.is_empty()) {
                errors.push(path.forbidden("may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for name in amounts.iter().flatten().map(|(name, _)| name) {
            errors.extend(path.key(name).invalid_all(name, name_rule(name)));
        }
        errors.extend(quantity::errors(&path, amounts.as_ref()));
    }
    let bounded = |amounts: &Option<quantity::Amounts>| {
        amounts
            .iter()
            .any(|amounts| amounts.contains_key("storage"))
    };
    if item.type_ == "PersistentVolumeClaim" && !bounded(&item.min) && !bounded(&item.max) {
        errors.push(path.child("limits").required(
            "either minimum or maximum storage value is required, but neither was provided",
        ));
    }
    errors.extend(in_order(path, item));
    errors
}

/// What of one item contradicts the rest of it.
fn in_order(path: &Path, item: &LimitRangeItem) -> Vec<FieldError> {
    let sums = |amounts: &Option<quantity::Amounts>| quantity::sums(amounts.as_ref());
    let (min, max) = (sums(&item.min), sums(&item.max));
    let (default, request) = (sums(&item.default), sums(&item.default_request));
    let ratio = sums(&item.max_limit_request_ratio);
    let all = [&min, &max, &default, &request, &ratio];
    let names: BTreeSet<&String> = all.iter().flat_map(|sums| sums.keys()).collect();
    let mut errors = Vec::new();
    for name in names {
        let mut ordered = |field: &str,
                           small: (&str, Option<&Quantity>),
                           large: (&str, Option<&Quantity>),
                           shown: Option<&Quantity>| {
            if let ((what, Some(a)), (than, Some(b))) = (small, large)
                && a > b
            {
                let why = format!("{what} value {a} is greater than {than} value {b}");
                let shown = shown.map_or(String::new(), ToString::to_string);
                errors.push(path.child(field).key(name).invalid(shown, why));
            }
        };
        let (min, max) = (min.get(name), max.get(name));
        let (default, request) = (default.get(name), request.get(name));
        ordered("min", ("min", min), ("max", max), min);
        let asked = ("default request", request);
        ordered("defaultRequest", ("min", min), asked, request);
        ordered("defaultRequest", asked, ("max", max), request);
        ordered("defaultRequest", asked, ("default limit", default), request);
        ordered("default", ("min", min), ("default", default), min);
        ordered("default", ("default", default), ("max", max), max);
        if let Some(most) = ratio.get(name) {
            let path = path.child("maxLimitRequestRatio").key(name);
            if *most < Quantity::count(1) {
                let why = format!("ratio {most} is less than 1");
                errors.push(path.invalid(most.to_string(), why));
            }
            if let (Some(min), Some(max)) = (min.filter(|min| !min.is_zero()), max)
                && most.ratio(Quantity::count(1)) > max.ratio(*min)
            {
                let why = format!(
                    "ratio {most} is greater than max/min = {:.6}",
                    max.ratio(*min)
                );
                errors.push(path.invalid(most.to_string(), why));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limits: Value) -> LimitRange {
        let mut range: LimitRange =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"limits": limits}}))
                .unwrap();
        range.set_defaults();
        range
    }

    fn errors(limits: Value) -> Vec<String> {
        let errors = Strategy::validate(&range(limits), None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn containers_get_the_most_as_limit_and_the_limit_as_request() {
        let range = range(json!([
            {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "0.5Gi"}, "default": {"memory": "1Gi"}},
            {"type": "Pod", "max": {"cpu": "4"}},
        ]));
        let limits = serde_json::to_value(range.spec.unwrap().limits).unwrap();
        assert_eq!(limits[0]["default"], json!({"cpu": "2", "memory": "1Gi"}));
        assert_eq!(
            limits[0]["defaultRequest"],
            json!({"cpu": "2", "memory": "1Gi"})
        );
        assert_eq!(limits[0]["min"], json!({"memory": "512Mi"}));
        assert_eq!(limits[1]["default"], Value::Null);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let limit = json!({
            "type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "3"},
            "defaultRequest": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "500m"},
        });
        assert_eq!(
            errors(json!([limit])),
            [
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"100m\": min value 2 is greater than default request value 100m",
                "spec.limits[0].default[cpu]: Invalid value: \"1\": default value 3 is greater than max value 1",
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
            ]
        );
        let ratio = json!({
            "type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"},
        });
        assert_eq!(
            errors(json!([ratio])),
            [
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000"
            ]
        );
    }

    #[test]
    fn types_and_their_resources_are_known() {
        assert_eq!(
            errors(json!([
                {"type": "Pod", "default": {"cpu": "1"}, "max": {"storage": "1"}},
                {"type": "Pod"},
                {"type": "Node"},
                {"type": "PersistentVolumeClaim", "max": {"cpu": "1"}},
            ])),
            [
                "spec.limits[0].max[storage]: Invalid value: \"storage\": must be a standard resource for containers",
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[1].type: Duplicate value: \"Pod\"",
                "spec.limits[2].type: Invalid value: \"Node\": must be a standard limit type or fully qualified",
                "spec.limits[3].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ]
        );
    }
}
