//! What of a pod's specification may still change once it is there.

use k8s_openapi::api::core::v1::{Container, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::resources::validate::{FieldError, Path};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// By this the API shows a pod that a file of a node gave.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod neither becomes a mirror nor ceases to be one.
pub(super) fn mirror_errors(new: &ObjectMeta, old: &ObjectMeta) -> Vec<FieldError> {
    let of = |meta: &ObjectMeta| meta.annotations.as_ref()?.get(MIRROR).cloned();
    let detail = match (of(old), of(new)) {
        (old, new) if old == new => return Vec::new(),
        (None, _) => "may not add mirror pod annotation",
        (Some(_), _) => "may not remove or update mirror pod annotation",
    };
    let path = Path::new("metadata").child("annotations").key(MIRROR);
    vec![path.forbidden(detail)]
}

pub(super) fn errors(path: &Path, new: &PodSpec, old: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, count, was) in [
        ("containers", new.containers.len(), old.containers.len()),
        (
            "initContainers",
            len(new.init_containers.as_ref()),
            len(old.init_containers.as_ref()),
        ),
    ] {
        if count != was {
            errors.push(
                path.child(field)
                    .forbidden(format!("pod updates may not add or remove {field}")),
            );
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    if let (Some(was), false) = (old.active_deadline_seconds, shortens(new, old)) {
        let detail = format!("must be less than or equal to previous value {was}");
        errors.push(
            path.child("activeDeadlineSeconds")
                .invalid(new.active_deadline_seconds, detail),
        );
    }
    let is_kept = |was: &Toleration| {
        let with_its_seconds = |now: &Toleration| Toleration {
            toleration_seconds: now.toleration_seconds,
            ..was.clone()
        };
        new.tolerations
            .iter()
            .flatten()
            .any(|now| *now == with_its_seconds(now))
    };
    if !old.tolerations.iter().flatten().all(is_kept) {
        errors.push(
            path.child("tolerations")
                .forbidden("existing toleration can not be modified except its tolerationSeconds"),
        );
    }
    let changed = changed_fields(&with_what_may_change(new, old), old);
    if !changed.is_empty() {
        errors.push(path.forbidden(format!("{MAY_CHANGE}; changed: {}", changed.join(", "))));
    }
    errors
}

fn len<T>(list: Option<&Vec<T>>) -> usize {
    list.map_or(0, Vec::len)
}

/// A deadline may be set and shortened, not put off or lifted.
fn shortens(new: &PodSpec, old: &PodSpec) -> bool {
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), Some(old)) => new <= old,
        (None, Some(_)) => false,
        (_, None) => true,
    }
}

/// The new specification, with the old one's values wherever a change is fine.
fn with_what_may_change(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let keep_images = |new: &mut [Container], old: &[Container]| {
        for (new, old) in new.iter_mut().zip(old) {
            new.image.clone_from(&old.image);
        }
    };
    let mut spec = new.clone();
    keep_images(&mut spec.containers, &old.containers);
    keep_images(
        spec.init_containers.as_deref_mut().unwrap_or_default(),
        old.init_containers.as_deref().unwrap_or_default(),
    );
    spec.active_deadline_seconds = old.active_deadline_seconds;
    spec.tolerations.clone_from(&old.tolerations);
    if old
        .termination_grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        spec.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    let gates = old.scheduling_gates.as_deref().unwrap_or_default();
    if new
        .scheduling_gates
        .iter()
        .flatten()
        .all(|gate| gates.contains(gate))
    {
        spec.scheduling_gates.clone_from(&old.scheduling_gates);
    }
    spec
}

/// The names of the fields in which two specifications differ.
fn changed_fields(new: &PodSpec, old: &PodSpec) -> Vec<String> {
    let (Ok(Value::Object(new)), Ok(Value::Object(old))) =
        (serde_json::to_value(new), serde_json::to_value(old))
    else {
        return Vec::new();
    };
    let mut changed: Vec<_> = new
        .keys()
        .chain(old.keys().filter(|field| !new.contains_key(*field)))
        .filter(|field| new.get(*field) != old.get(*field))
        .map(|field| format!("`spec.{field}`"))
        .collect();
    changed.sort();
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(new: Value, old: Value) -> Vec<String> {
        let typed = |value: Value| serde_json::from_value::<PodSpec>(value).unwrap();
        errors(&Path::new("spec"), &typed(new), &typed(old))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn no_pod_becomes_a_mirror_or_ceases_to_be_one() {
        let with = |hash: Option<&str>| ObjectMeta {
            annotations: hash.map(|hash| [(MIRROR.to_owned(), hash.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let texts = |new, old| {
            let errors = mirror_errors(&with(new), &with(old));
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(texts(Some("a"), Some("a")).is_empty());
        assert!(texts(None, None).is_empty());
        let at = "metadata.annotations[kubernetes.io/config.mirror]: Forbidden:";
        assert_eq!(
            texts(Some("a"), None),
            [format!("{at} may not add mirror pod annotation")]
        );
        for new in [None, Some("b")] {
            let message = "may not remove or update mirror pod annotation";
            assert_eq!(texts(new, Some("a")), [format!("{at} {message}")]);
        }
    }

    #[test]
    fn images_deadlines_and_tolerations_may_change() {
        let old =
            json!({ "containers": [{ "name": "a", "image": "b:1" }], "activeDeadlineSeconds": 10 });
        let new = json!({
            "containers": [{ "name": "a", "image": "b:2" }], "activeDeadlineSeconds": 5, "tolerations": [{ "key": "k" }]
        });
        assert!(texts(new, old).is_empty());
    }

    #[test]
    fn a_toleration_changes_its_seconds_only() {
        let with = |key: &str, seconds: i64| {
            let toleration =
                json!({ "key": key, "effect": "NoExecute", "tolerationSeconds": seconds });
            json!({ "containers": [{ "name": "a" }], "tolerations": [toleration] })
        };
        assert!(texts(with("k", 10), with("k", 300)).is_empty());
        assert_eq!(
            texts(with("l", 300), with("k", 300)),
            [
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
            ]
        );
    }

    #[test]
    fn all_else_is_forbidden_and_named() {
        let old = json!({ "containers": [{ "name": "a", "image": "b" }], "nodeName": "x" });
        let new = json!({ "containers": [{ "name": "a", "image": "b", "args": ["c"] }], "nodeName": "y" });
        let found = texts(new, old);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("spec: Forbidden: pod updates may not change fields other than")
        );
        assert!(found[0].ends_with("changed: `spec.containers`, `spec.nodeName`"));
    }

    #[test]
    fn containers_neither_come_nor_go() {
        let old = json!({ "containers": [{ "name": "a" }] });
        assert_eq!(
            texts(
                json!({ "containers": [{ "name": "a" }, { "name": "b" }] }),
                old
            ),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }
}
