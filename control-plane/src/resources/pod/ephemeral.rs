//! Ephemeral containers: they are added to a pod that runs, one by one, and stay as they are.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use serde_json::Value;

use super::containers;
use crate::resources::validate::{FieldError, Path};

/// All that is wrong with the ephemeral containers of `new`, given what the pod was. Only they are looked at.
pub fn errors(new: &Value, old: &Value) -> Vec<FieldError> {
    let typed = |pod: &Value| serde_json::from_value::<Pod>(pod.clone()).ok()?.spec;
    let (Some(new), Some(old)) = (typed(new), typed(old)) else {
        return Vec::new();
    };
    of_specs(&new, &old)
}

fn of_specs(new: &PodSpec, old: &PodSpec) -> Vec<FieldError> {
    let list = Path::new("spec").child("ephemeralContainers");
    let (now, before) = (
        new.ephemeral_containers.as_deref().unwrap_or_default(),
        old.ephemeral_containers.as_deref().unwrap_or_default(),
    );
    let mut errors = Vec::new();
    for was in before {
        match now.iter().find(|now| now.name == was.name) {
            Some(now) if now == was => {}
            Some(_) => {
                let text = format!(
                    "existing ephemeral containers \"{}\" may not be changed",
                    was.name
                );
                errors.push(list.forbidden(text));
            }
            None => {
                let text = format!(
                    "existing ephemeral containers \"{}\" may not be removed",
                    was.name
                );
                errors.push(list.forbidden(text));
            }
        }
    }
    let volumes: HashSet<&str> = old
        .volumes
        .iter()
        .flatten()
        .map(|volume| volume.name.as_str())
        .collect();
    let others: Vec<&str> = old
        .containers
        .iter()
        .chain(old.init_containers.iter().flatten())
        .map(|container| container.name.as_str())
        .collect();
    let mut seen: HashSet<&str> = others.iter().copied().collect();
    for (index, container) in now.iter().enumerate() {
        let path = list.index(index);
        if !seen.insert(&container.name) {
            errors.push(path.child("name").duplicate(container.name.as_str()));
        }
        if before.contains(container) {
            continue;
        }
        errors.extend(containers::errors(
            &path,
            &common(container),
            &volumes,
            false,
        ));
        errors.extend(of_its_own(&path, container, &others));
    }
    errors
}

/// What only holds for these: nothing is promised to them, and nobody waits for them.
fn of_its_own(path: &Path, container: &EphemeralContainer, others: &[&str]) -> Vec<FieldError> {
    let amounts = container.resources.as_ref().is_some_and(|resources| {
        [&resources.limits, &resources.requests]
            .into_iter()
            .flatten()
            .any(|amounts| !amounts.is_empty())
    });
    let mut errors: Vec<_> = [
        (
            "ports",
            container
                .ports
                .as_ref()
                .is_some_and(|ports| !ports.is_empty()),
        ),
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("restartPolicy", container.restart_policy.is_some()),
        (
            "restartPolicyRules",
            container.restart_policy_rules.is_some(),
        ),
        ("resources", amounts),
    ]
    .into_iter()
    .filter(|(_, set)| *set)
    .map(|(field, _)| {
        path.child(field)
            .forbidden("cannot be set for an Ephemeral Container")
    })
    .collect();
    let target = container
        .target_container_name
        .as_deref()
        .unwrap_or_default();
    if !target.is_empty() && !others.contains(&target) {
        let path = path.child("targetContainerName");
        errors.push(path.invalid(target, "not found"));
    }
    errors
}

/// What they have in common with other containers.
pub(super) fn common(of: &EphemeralContainer) -> Container {
    Container {
        name: of.name.clone(),
        image: of.image.clone(),
        image_pull_policy: of.image_pull_policy.clone(),
        env: of.env.clone(),
        volume_mounts: of.volume_mounts.clone(),
        termination_message_path: of.termination_message_path.clone(),
        termination_message_policy: of.termination_message_policy.clone(),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(old: Value, new: Value) -> Vec<String> {
        let pods = crate::resources::find("", "v1", "pods").unwrap();
        let pod = |ephemeral: Value| {
            let mut pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p"},
                "spec": {"containers": [{"name": "main", "image": "i"}], "ephemeralContainers": ephemeral},
            });
            (pods.default)(&mut pod);
            pod
        };
        let found = errors(&pod(new), &pod(old));
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn they_come_and_stay() {
        let one = json!([{"name": "debug", "image": "i", "targetContainerName": "main"}]);
        assert!(texts(json!([]), one.clone()).is_empty());
        assert!(texts(one.clone(), one.clone()).is_empty());
        assert_eq!(
            texts(one.clone(), json!([])),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be removed"
            ]
        );
        let other = json!([{"name": "debug", "image": "other"}]);
        assert_eq!(
            texts(one, other),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be changed"
            ]
        );
    }

    #[test]
    fn what_they_cannot_have_is_refused() {
        let found = texts(
            json!([]),
            json!([
                {"name": "main", "image": "i"},
                {"name": "b", "image": "i", "targetContainerName": "nobody", "ports": [{"containerPort": 1}]},
                {"name": "c"},
            ]),
        );
        assert_eq!(found.len(), 4, "{found:?}");
        for (text, part) in found
            .iter()
            .zip(["Duplicate", "ports", "not found", "image"])
        {
            assert!(text.contains(part), "{part} in {found:?}");
        }
    }
}
