//! LimitRanger: gives a new pod's containers what the LimitRanges of the namespace say, and refuses pods and claims that are
//! outside of them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, PodSpec,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::lookup::Lookup;
use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::meta;
use crate::api::registry::RESIZE;
use crate::resources::pod::{requests, whole};
use crate::resources::quantity::{self, Amounts, Quantity, Sums};

/// Says on a pod what was set.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Whether this is about an object that can be outside of limits.
fn concerns(review: &Review<'_>) -> bool {
    let created = review.operation == Operation::Create;
    let changed = review.operation == Operation::Update;
    review.subresource.is_empty()
        && (created && review.is("", "pods")
            || (created || changed) && review.is("", "persistentvolumeclaims"))
        || changed && review.is("", "pods") && review.subresource == RESIZE
}

/// Gives the containers of a new pod the defaults.
pub(super) async fn give(
    review: &Review<'_>,
    object: &mut Value,
    lookup: &Lookup<'_>,
) -> Result<(), ApiError> {
    if !concerns(review) || !review.is("", "pods") || review.operation != Operation::Create {
        return Ok(());
    }
    for range in lookup.list::<LimitRange>(review.namespace).await? {
        set_defaults(object, items(&range));
    }
    Ok(())
}

/// Refuses what is outside of limits.
pub(super) async fn check(
    review: &Review<'_>,
    object: &Value,
    lookup: &Lookup<'_>,
) -> Result<(), ApiError> {
    if !concerns(review) {
        return Ok(());
    }
    for range in lookup.list::<LimitRange>(review.namespace).await? {
        let wrong: Vec<String> = match review.kind.plural {
            "pods" => Pod::deserialize(object)
                .map(|pod| of_pod(&pod.spec.unwrap_or_default(), items(&range)))
                .unwrap_or_default(),
            _ => PersistentVolumeClaim::deserialize(object)
                .map(|claim| of_claim(&claim, items(&range)))
                .unwrap_or_default(),
        };
        let why = match wrong.as_slice() {
            [] => continue,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let name = meta::text(object, "name");
        return Err(ApiError::forbidden("", review.kind.plural, name, &why));
    }
    Ok(())
}

fn items(range: &LimitRange) -> &[LimitRangeItem] {
    range
        .spec
        .as_ref()
        .map_or(&[], |spec| spec.limits.as_slice())
}

/// Writes the defaults of a range into a pod, and what was set into its annotation.
fn set_defaults(pod: &mut Value, items: &[LimitRangeItem]) {
    let (mut limits, mut asked) = (Amounts::new(), Amounts::new());
    for item in items.iter().filter(|item| item.type_ == "Container") {
        limits.extend(item.default.clone().unwrap_or_default());
        asked.extend(item.default_request.clone().unwrap_or_default());
    }
    let mut said = Vec::new();
    for (field, title) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        for container in pod["spec"][field].as_array_mut().into_iter().flatten() {
            if !container.is_object() {
                continue;
            }
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (kind, what, defaults) in [
                ("requests", "request", &asked),
                ("limits", "limit", &limits),
            ] {
                let set = fill(container, kind, defaults);
                if !set.is_empty() {
                    said.push(format!("{} {what} for {title} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        let annotations = &mut meta::of(pod)
            .entry("annotations")
            .or_insert_with(|| json!({}));
        if annotations.is_null() {
            **annotations = json!({});
        }
        annotations[ANNOTATION] = json!(text);
    }
}

/// Sets the amounts that a container does not have; gives their names.
fn fill(container: &mut Value, kind: &str, defaults: &Amounts) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults {
        if container["resources"][kind][name].is_null() {
            for at in ["resources", kind] {
                let place = match at {
                    "resources" => &mut container["resources"],
                    _ => &mut container["resources"][kind],
                };
                if !place.is_object() {
                    *place = json!({});
                }
            }
            container["resources"][kind][name] = json!(amount);
            set.push(name.clone());
        }
    }
    set
}

/// What of a pod is outside of limits.
fn of_pod(spec: &PodSpec, items: &[LimitRangeItem]) -> Vec<String> {
    let amounts = |container: &Container| {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        (quantity::sums(requests), quantity::sums(limits))
    };
    let mut wrong = Vec::new();
    for item in items {
        match item.type_.as_str() {
            "Container" => {
                let init = spec.init_containers.iter().flatten();
                for container in spec.containers.iter().chain(init) {
                    let (requests, limits) = amounts(container);
                    wrong.extend(outside(item, &requests, &limits));
                }
            }
            "Pod" => {
                let (requests, limits) = (of_all(spec, true), of_all(spec, false));
                wrong.extend(outside(item, &requests, &limits));
            }
            _ => {}
        }
    }
    wrong
}

/// What the pod takes of what it, or each of its containers, says something of: else nobody can say how much it is.
fn of_all(spec: &PodSpec, requested: bool) -> Sums {
    let mut total = match requested {
        true => requests::requests(spec),
        false => requests::limits(spec),
    };
    let says = |container: &Container, name: &String| {
        let resources = container.resources.as_ref();
        let amounts = resources.and_then(|resources| match requested {
            true => resources.requests.as_ref(),
            false => resources.limits.as_ref(),
        });
        amounts.is_some_and(|amounts| amounts.contains_key(name))
    };
    let as_a_whole = match requested {
        true => whole::requests(spec),
        false => whole::limits(spec),
    };
    total.retain(|name, _| {
        let mut containers = spec.containers.iter();
        as_a_whole.contains_key(name) || containers.all(|container| says(container, name))
    });
    total
}

/// What of requests and limits is outside of one item, in upstream's words.
fn outside(item: &LimitRangeItem, requests: &Sums, limits: &Sums) -> Vec<String> {
    let kind = &item.type_;
    let mut wrong = Vec::new();
    for (name, least) in quantity::sums(item.min.as_ref()) {
        let bound = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => wrong.push(format!("{bound}.  No request is specified")),
            (Some(asked), _) if *asked < least => {
                wrong.push(format!("{bound}, but request is {asked}"));
            }
            (_, Some(limit)) if *limit < least => {
                wrong.push(format!("{bound}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, most) in quantity::sums(item.max.as_ref()) {
        let bound = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => wrong.push(format!("{bound}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => {
                wrong.push(format!("{bound}, but limit is {limit}"));
            }
            (Some(asked), _) if *asked > most => {
                wrong.push(format!("{bound}, but request is {asked}"));
            }
            _ => {}
        }
    }
    for (name, most) in quantity::sums(item.max_limit_request_ratio.as_ref()) {
        let bound = format!("{name} max limit to request ratio per {kind} is {most}");
        let some = |amount: Option<&Quantity>| amount.copied().filter(|amount| !amount.is_zero());
        match (some(requests.get(&name)), some(limits.get(&name))) {
            (None, _) => wrong.push(format!(
                "{bound}, but no request is specified or request is 0"
            )),
            (_, None) => wrong.push(format!("{bound}, but no limit is specified or limit is 0")),
            (Some(asked), Some(limit)) => {
                let ratio = limit.ratio(asked);
                if ratio > most.ratio(Quantity::count(1)) {
                    wrong.push(format!("{bound}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
    wrong
}

/// What of a claim is outside of limits: only what it asks for counts.
fn of_claim(claim: &PersistentVolumeClaim, items: &[LimitRangeItem]) -> Vec<String> {
    let spec = claim.spec.as_ref();
    let asked = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let asked = quantity::sums(asked);
    let mut wrong = Vec::new();
    for item in items
        .iter()
        .filter(|item| item.type_ == "PersistentVolumeClaim")
    {
        let (min, max) = (
            quantity::sums(item.min.as_ref()),
            quantity::sums(item.max.as_ref()),
        );
        let names: BTreeSet<&String> = min.keys().chain(max.keys()).collect();
        for name in names {
            for (word, bound, beyond) in [
                ("minimum", min.get(name), std::cmp::Ordering::Less),
                ("maximum", max.get(name), std::cmp::Ordering::Greater),
            ] {
                let Some(bound) = bound else { continue };
                let text = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
                match asked.get(name) {
                    None => wrong.push(format!("{text}.  No request is specified")),
                    Some(asked) if asked.cmp(bound) == beyond => {
                        wrong.push(format!("{text}, but request is {asked}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(items: Value) -> Vec<LimitRangeItem> {
        serde_json::from_value(items).unwrap()
    }

    fn wrong(spec: Value, items: Value) -> Vec<String> {
        of_pod(&serde_json::from_value(spec).unwrap(), &limits(items))
    }

    #[test]
    fn containers_get_what_they_do_not_say() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}],
        }});
        let items = limits(json!([
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}},
        ]));
        set_defaults(&mut pod, &items);
        let resources = |n: usize| pod["spec"]["containers"][n]["resources"].clone();
        assert_eq!(
            resources(0),
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}})
        );
        assert_eq!(
            resources(1),
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a; cpu request for container b"
        );
        let once = pod.clone();
        set_defaults(&mut pod, &items);
        assert_eq!(pod, once);
    }

    #[test]
    fn what_is_outside_is_told() {
        let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "2"}}}]});
        let of = |item: Value| wrong(spec.clone(), json!([item]));
        assert_eq!(
            of(json!({"type": "Container", "min": {"cpu": "200m", "memory": "1Mi"}})),
            [
                "minimum cpu usage per Container is 200m, but request is 100m",
                "minimum memory usage per Container is 1Mi.  No request is specified",
            ]
        );
        assert_eq!(
            of(json!({"type": "Container", "max": {"cpu": "1", "memory": "1Gi"}})),
            [
                "maximum cpu usage per Container is 1, but limit is 2",
                "maximum memory usage per Container is 1Gi.  No limit is specified",
            ]
        );
        assert_eq!(
            of(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "4", "memory": "2"}})),
            [
                "cpu max limit to request ratio per Container is 4, but provided ratio is 20.000000",
                "memory max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ]
        );
        assert!(
            of(json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "2"}}))
                .is_empty()
        );
    }

    #[test]
    fn a_pod_is_all_of_its_containers() {
        let container = json!({"name": "a", "resources": {"limits": {"cpu": "600m"}}});
        let spec = json!({"containers": [container, container]});
        let item = json!([{"type": "Pod", "max": {"cpu": "1"}}]);
        assert_eq!(
            wrong(spec, item.clone()),
            ["maximum cpu usage per Pod is 1, but limit is 1200m"]
        );
        let silent = json!({"containers": [container, {"name": "b"}]});
        assert_eq!(
            wrong(silent, item),
            ["maximum cpu usage per Pod is 1.  No limit is specified"]
        );
    }

    #[test]
    fn a_claim_asks_for_enough_and_not_too_much() {
        let claim = |size: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"spec": {"resources": {"requests": {"storage": size}}}}))
                .unwrap()
        };
        let items = limits(json!([
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}},
        ]));
        assert!(of_claim(&claim("1Gi"), &items).is_empty());
        assert_eq!(
            of_claim(&claim("3Gi"), &items),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(
            of_claim(&claim("1"), &items),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1"]
        );
    }
}
