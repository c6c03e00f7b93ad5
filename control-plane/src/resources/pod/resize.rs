//! Resizing a pod that is there: CPU and memory of its containers change, and nothing else (KEP-1287).

use k8s_openapi::api::core::v1::{Container, ContainerResizePolicy, Pod, PodSpec};
use serde_json::Value;

use super::{MIRROR, qos};
use crate::resources::quantity::Amounts;
use crate::resources::validate::{FieldError, Path, one_of};

const RESIZED: &[&str] = &["cpu", "memory"];
const POLICIES: &[&str] = &["NotRequired", "RestartContainer"];

/// The old pod with the resources and resize policies that the sent one gives its containers. Containers that do not
/// match are taken as they were sent: [`errors`] refuses them.
pub fn resized(old: &Value, sent: &Value) -> Value {
    let mut next = old.clone();
    for field in ["containers", "initContainers"] {
        let (Some(was), Some(now)) = (
            old["spec"][field].as_array(),
            sent["spec"][field].as_array(),
        ) else {
            if !sent["spec"][field].is_null() || field == "containers" {
                next["spec"][field] = sent["spec"][field].clone();
            }
            continue;
        };
        let names = |list: &[Value]| list.iter().map(|it| it["name"].clone()).collect::<Vec<_>>();
        if names(was) != names(now) {
            next["spec"][field] = sent["spec"][field].clone();
            continue;
        }
        for (at, now) in now.iter().enumerate() {
            for part in ["resources", "resizePolicy"] {
                match &now[part] {
                    Value::Null => {
                        if let Some(container) = next["spec"][field][at].as_object_mut() {
                            container.remove(part);
                        }
                    }
                    value => next["spec"][field][at][part] = value.clone(),
                }
            }
        }
    }
    next
}

/// All that is wrong with what a resize makes of a pod. Whether the result is a pod at all is checked elsewhere.
pub fn errors(new: &Value, old: &Value) -> Vec<FieldError> {
    let typed = |pod: &Value| serde_json::from_value::<Pod>(pod.clone()).ok();
    let (Some(new), Some(old)) = (typed(new), typed(old)) else {
        return Vec::new();
    };
    of_pods(&new, &old)
}

fn of_pods(new: &Pod, old: &Pod) -> Vec<FieldError> {
    let whole = Path::new("");
    let annotations = old.metadata.annotations.as_ref();
    if annotations.is_some_and(|all| all.contains_key(MIRROR)) {
        return vec![whole.forbidden("static pods cannot be resized")];
    }
    let (Some(spec), Some(was)) = (&new.spec, &old.spec) else {
        return Vec::new();
    };
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if was.resources.is_some() || spec.resources.is_some() {
        errors.push(whole.forbidden("pods with pod-level resources cannot be resized"));
    }
    if qos::class(was) != qos::class(spec) {
        errors.push(path.invalid(
            qos::class(was),
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    if !is_supported(old) {
        errors.push(whole.forbidden("Pod running on node without support for resize"));
    }
    let disorder = order(&path, spec, was);
    if !disorder.is_empty() {
        errors.extend(disorder);
        return errors;
    }
    let lists = [
        ("containers", &spec.containers[..], &was.containers[..]),
        ("initContainers", init(spec), init(was)),
    ];
    for (field, now, was) in lists {
        for (index, (now, was)) in now.iter().zip(was).enumerate() {
            let path = path.child(field).index(index).child("resources");
            let is_sidecar = was.restart_policy.as_deref() == Some("Always");
            if field == "initContainers" && !is_sidecar {
                if now.resources != was.resources {
                    let detail = "resources for non-sidecar init containers are immutable";
                    errors.push(path.forbidden(detail));
                }
                continue;
            }
            errors.extend(changes(&path, now, was));
        }
    }
    if others(spec) != others(was) {
        errors.push(path.forbidden("only cpu and memory resources are mutable"));
    }
    errors
}

/// Whether the node that runs the pod says what its containers have, which one that can resize them does.
fn is_supported(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut all = status
        .into_iter()
        .flat_map(|it| it.container_statuses.iter().flatten());
    all.all(|container| {
        let runs = container
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some());
        !runs || container.resources.is_some()
    })
}

fn init(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

fn order(path: &Path, spec: &PodSpec, was: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let lists = [
        ("containers", &spec.containers[..], &was.containers[..]),
        ("initContainers", init(spec), init(was)),
    ];
    for (field, now, was) in lists {
        let path = path.child(field);
        if now.len() != was.len() {
            errors.push(path.forbidden(format!("{field} may not be added or removed on resize")));
            continue;
        }
        let moved = (0..now.len()).filter(|at| now[*at].name != was[*at].name);
        errors.extend(moved.map(|at| {
            let detail = format!("{field} may not be renamed or reordered on resize");
            path.index(at).child("name").forbidden(detail)
        }));
    }
    errors
}

/// What a container asked for before it goes on asking for, more or less of it.
fn changes(path: &Path, now: &Container, was: &Container) -> Vec<FieldError> {
    type Part = fn(&Container) -> Option<&Amounts>;
    let parts: [(&str, Part); 2] = [
        ("requests", |it| it.resources.as_ref()?.requests.as_ref()),
        ("limits", |it| it.resources.as_ref()?.limits.as_ref()),
    ];
    let removed = parts.into_iter().filter(|(_, of)| {
        let kept = |name| of(now).is_some_and(|amounts| amounts.contains_key(name));
        of(was).is_some_and(|amounts| !amounts.keys().all(kept))
    });
    removed
        .map(|(part, _)| {
            path.child(part)
                .forbidden(format!("resource {part} cannot be removed"))
        })
        .collect()
}

/// A specification without what a resize changes.
fn others(spec: &PodSpec) -> PodSpec {
    let mut spec = spec.clone();
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        container.resize_policy = None;
        let resources = container.resources.get_or_insert_default();
        for amounts in [&mut resources.requests, &mut resources.limits] {
            let rest = amounts.take().map(|mut amounts| {
                amounts.retain(|name, _| !RESIZED.contains(&name.as_str()));
                amounts
            });
            *amounts = rest.filter(|amounts| !amounts.is_empty());
        }
    }
    spec
}

/// CPU and memory that a container asks for can be resized; unless it says otherwise, without a restart.
pub(super) fn default_policies(container: &mut Container) {
    let resources = container.resources.clone().unwrap_or_default();
    for name in RESIZED {
        let asked = [&resources.requests, &resources.limits]
            .into_iter()
            .flatten()
            .any(|amounts| amounts.contains_key(*name));
        let mut said = container.resize_policy.iter().flatten();
        if asked && !said.any(|policy| policy.resource_name == *name) {
            let policies = container.resize_policy.get_or_insert_default();
            policies.push(ContainerResizePolicy {
                resource_name: (*name).to_owned(),
                restart_policy: "NotRequired".to_owned(),
            });
        }
    }
}

/// What is wrong with a container's resize policies; `never` is whether its pod restarts nothing.
pub(super) fn policy_errors(
    path: &Path,
    policies: &[ContainerResizePolicy],
    never: bool,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        let (name, restart) = (&policy.resource_name, &policy.restart_policy);
        if policies[..index]
            .iter()
            .any(|other| other.resource_name == *name)
        {
            errors.push(path.index(index).duplicate(name.as_str()));
        }
        errors.extend(one_of(path, Some(name), RESIZED));
        errors.extend(one_of(path, Some(restart), POLICIES));
        if never && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(path.invalid(restart.as_str(), detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: Value) -> Value {
        let pods = crate::resources::find("", "v1", "pods").unwrap();
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a", "image": "i", "resources": resources}]},
        });
        (pods.default)(&mut pod);
        pod
    }

    fn texts(old: &Value, sent: &Value) -> Vec<String> {
        let found = errors(&resized(old, sent), old);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn amounts_go_up_and_down() {
        let old = pod(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}));
        let policies = &old["spec"]["containers"][0]["resizePolicy"];
        let both =
            ["cpu", "memory"].map(|it| json!({"resourceName": it, "restartPolicy": "NotRequired"}));
        assert_eq!(*policies, json!(both));
        let mut sent =
            pod(json!({"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "3"}}));
        sent["spec"]["containers"][0]["image"] = json!("other");
        assert!(texts(&old, &sent).is_empty());
        let next = resized(&old, &sent);
        assert_eq!(
            next["spec"]["containers"][0]["image"], "i",
            "nothing else changes"
        );
        assert_eq!(
            next["spec"]["containers"][0]["resources"]["limits"]["cpu"],
            "3"
        );
    }

    #[test]
    fn what_a_resize_cannot_do_is_refused() {
        let old = pod(json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}));
        assert_eq!(
            texts(
                &old,
                &pod(json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}))
            ),
            [
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"
            ]
        );
        let same = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(
            texts(&old, &pod(json!({"requests": same, "limits": same}))),
            [
                "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"
            ]
        );
        let disk = json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}, "limits": {"memory": "1Gi"}});
        assert_eq!(
            texts(&old, &pod(disk)),
            ["spec: Forbidden: only cpu and memory resources are mutable"]
        );
        let mut renamed = old.clone();
        renamed["spec"]["containers"][0]["name"] = json!("b");
        assert_eq!(
            texts(&old, &renamed),
            [
                "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"
            ]
        );
        let mut elsewhere = old.clone();
        elsewhere["status"] = json!({"containerStatuses": [
            {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
        ]});
        let more = pod(json!({"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}));
        assert_eq!(
            texts(&elsewhere, &more),
            [": Forbidden: Pod running on node without support for resize"]
        );
        let mut mirror = old.clone();
        mirror["metadata"]["annotations"] = json!({MIRROR: "x"});
        assert_eq!(
            texts(&mirror, &more),
            [": Forbidden: static pods cannot be resized"]
        );
    }

    #[test]
    fn policies_are_of_what_can_be_resized() {
        let policies = [
            ("cpu", "RestartContainer"),
            ("cpu", "Maybe"),
            ("disk", "NotRequired"),
        ];
        let policies = policies.map(|(resource_name, restart_policy)| ContainerResizePolicy {
            resource_name: resource_name.into(),
            restart_policy: restart_policy.into(),
        });
        let path = Path::new("p");
        assert!(policy_errors(&path, &policies[..1], false).is_empty());
        assert_eq!(policy_errors(&path, &policies[..1], true).len(), 1);
        assert_eq!(policy_errors(&path, &policies, false).len(), 3);
    }
}
