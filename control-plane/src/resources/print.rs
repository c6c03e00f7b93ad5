//! What printer columns have in common: absent values, lists, labels.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

pub const NONE: &str = "<none>";

pub fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// The text, or `<none>` where there is none.
pub fn or_none(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or(NONE)
        .to_owned()
}

/// `a=1,b=2`, or `<none>`.
pub fn labels(labels: Option<&BTreeMap<String, String>>) -> String {
    let pairs: Vec<_> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    or_none(Some(&pairs.join(",")))
}

/// A selector as one would type it after `-l`.
pub fn selector(selector: &LabelSelector) -> String {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"));
    let set = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|expression| {
            let (key, values) = (
                &expression.key,
                expression.values.as_deref().unwrap_or_default().join(","),
            );
            match expression.operator.as_str() {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "DoesNotExist" => format!("!{key}"),
                _ => key.clone(),
            }
        });
    or_none(Some(&equal.chain(set).collect::<Vec<_>>().join(",")))
}

/// Names and images of a template's containers, each as a comma-separated list.
pub fn template(template: Option<&PodTemplateSpec>) -> (String, String) {
    let spec = template.and_then(|template| template.spec.as_ref());
    let containers = spec.map_or(&[][..], |spec| &spec.containers);
    let list = |of: fn(&Container) -> &str| containers.iter().map(of).collect::<Vec<_>>().join(",");
    (
        list(|container| &container.name),
        list(|container| container.image.as_deref().unwrap_or_default()),
    )
}

/// The first three of a list, and how many more there are.
pub fn first_three(list: &[String], empty: &str) -> String {
    match list.len() {
        0 => empty.to_owned(),
        1..=3 => list.join(","),
        count => format!("{} + {} more...", list[..3].join(","), count - 3),
    }
}
