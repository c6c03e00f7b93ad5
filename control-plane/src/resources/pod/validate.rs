//! What a pod's specification may say.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec, Toleration};

pub use super::affinity::node_selector;
use super::{affinity, containers, os, resize, restarts, security, volumes, whole};
use crate::resources::validate::{self, FieldError, Path, labels, names};

pub(super) const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// The longest grace that a pod is given, in seconds: 68 years.
pub const MAX_GRACE: i64 = i32::MAX as i64;

/// A pod's specification, its own or a template's.
pub fn spec(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let mut errors = volumes::errors(
        &path.child("volumes"),
        spec.volumes.as_deref().unwrap_or_default(),
    );
    errors.extend(all_containers(path, spec));
    errors.extend(whole::errors(path, spec));
    errors.extend(os::errors(path, spec));
    errors.extend(security::errors(path, spec));
    let choice = |field: &str, value: &Option<String>, supported: &[&str]| {
        validate::one_of(&path.child(field), value.as_deref(), supported)
    };
    errors.extend(choice(
        "restartPolicy",
        &spec.restart_policy,
        RESTART_POLICIES,
    ));
    errors.extend(choice("dnsPolicy", &spec.dns_policy, DNS_POLICIES));
    if let Some(seconds) = spec.termination_grace_period_seconds {
        let path = path.child("terminationGracePeriodSeconds");
        errors.extend(validate::not_negative(&path, seconds));
        if seconds > MAX_GRACE {
            errors.push(path.invalid(
                seconds,
                format!("must be less than or equal to {MAX_GRACE}"),
            ));
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let path = path.child("activeDeadlineSeconds");
        errors.push(path.invalid(
            seconds,
            format!("must be between 1 and {}, inclusive", i32::MAX),
        ));
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let path = path.child("securityContext").child("shareProcessNamespace");
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(path.invalid(true, detail));
    }
    errors.extend(labels::labels(
        &path.child("nodeSelector"),
        spec.node_selector.as_ref(),
    ));
    errors.extend(named(path, spec));
    if let Some(wanted) = &spec.affinity {
        errors.extend(affinity::errors(&path.child("affinity"), wanted));
    }
    errors.extend(affinity::spread_errors(
        &path.child("topologySpreadConstraints"),
        spec.topology_spread_constraints
            .as_deref()
            .unwrap_or_default(),
    ));
    errors.extend(tolerations(
        &path.child("tolerations"),
        spec.tolerations.as_deref().unwrap_or_default(),
    ));
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        errors.extend(validate::ip(
            &path.child("hostAliases").index(index).child("ip"),
            &alias.ip,
        ));
    }
    errors
}

/// What a new pod may not have, but one that is there may.
pub(super) fn of_new(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let has_some = |count: Option<usize>| count.is_some_and(|count| count > 0);
    let mut errors = Vec::new();
    if has_some(spec.ephemeral_containers.as_ref().map(Vec::len)) {
        let path = path.child("ephemeralContainers");
        errors.push(path.forbidden("cannot be set on create"));
    }
    if has_some(spec.node_name.as_ref().map(String::len))
        && has_some(spec.scheduling_gates.as_ref().map(Vec::len))
    {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(path.child("nodeName").forbidden(detail));
    }
    errors
}

/// A template of pods: what it says of their metadata, and their specification.
pub fn template(path: &Path, template: &PodTemplateSpec) -> Vec<FieldError> {
    let metadata = template.metadata.clone().unwrap_or_default();
    let mut errors = labels::labels(
        &path.child("metadata").child("labels"),
        metadata.labels.as_ref(),
    );
    let annotations = path.child("metadata").child("annotations");
    errors.extend(labels::annotations(
        &annotations,
        metadata.annotations.as_ref(),
    ));
    let path = path.child("spec");
    let pod = template.spec.clone().unwrap_or_default();
    errors.extend(spec(&path, &pod));
    if !pod
        .ephemeral_containers
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        errors.push(
            path.child("ephemeralContainers")
                .forbidden("ephemeral containers not allowed in pod template"),
        );
    }
    errors
}

/// The template of a kind whose pods never end; `kind` is whose pods they are.
pub fn endless_template(path: &Path, described: &PodTemplateSpec, kind: &str) -> Vec<FieldError> {
    let mut errors = template(path, described);
    let path = path.child("spec");
    let pod = described.spec.clone().unwrap_or_default();
    if let Some(policy @ ("Never" | "OnFailure")) = pod.restart_policy.as_deref() {
        errors.push(path.child("restartPolicy").unsupported(policy, &["Always"]));
    }
    if pod.active_deadline_seconds.is_some() {
        errors.push(
            path.child("activeDeadlineSeconds")
                .forbidden(format!("activeDeadlineSeconds in {kind} is not Supported")),
        );
    }
    errors
}

fn all_containers(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let volumes: HashSet<&str> = spec
        .volumes
        .iter()
        .flatten()
        .map(|volume| volume.name.as_str())
        .collect();
    let on_host = spec.host_network == Some(true);
    let mut errors = Vec::new();
    if spec.containers.is_empty() {
        errors.push(path.child("containers").required(""));
    }
    let lists = [
        ("containers", &spec.containers),
        (
            "initContainers",
            spec.init_containers.as_ref().unwrap_or(&Vec::new()),
        ),
    ]
    .map(|(field, list)| (path.child(field), list.clone()));
    let mut seen = HashSet::new();
    for (path, list) in &lists {
        for (index, container) in list.iter().enumerate() {
            let path = path.index(index);
            errors.extend(containers::errors(&path, container, &volumes, on_host));
            errors.extend(restarts::errors(&path, container));
            if !container.name.is_empty() && !seen.insert(container.name.as_str()) {
                errors.push(path.child("name").duplicate(container.name.as_str()));
            }
        }
    }
    let never = spec.restart_policy.as_deref() == Some("Never");
    for (path, list) in &lists {
        for (index, container) in list.iter().enumerate() {
            let path = path.index(index).child("resizePolicy");
            let policies = container.resize_policy.as_deref().unwrap_or_default();
            errors.extend(resize::policy_errors(&path, policies, never));
        }
    }
    let (path, init) = &lists[1];
    errors.extend(
        init.iter()
            .enumerate()
            .flat_map(|(index, container)| of_init(&path.index(index), container)),
    );
    let (path, main) = &lists[0];
    errors.extend(host_ports(path, main));
    errors
}

/// An init container comes to an end, so nobody asks how it does; unless it keeps running beside the others.
fn of_init(path: &Path, container: &Container) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if container.restart_policy.as_deref() == Some("Always") {
        return errors;
    }
    for (field, set) in [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ] {
        if set {
            errors.push(
                path.child(field)
                    .forbidden("may not be set for init containers without restartPolicy=Always"),
            );
        }
    }
    errors
}

fn host_ports(path: &Path, containers: &[Container]) -> Vec<FieldError> {
    let mut seen = HashSet::new();
    let mut errors = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for (number, port) in container.ports.iter().flatten().enumerate() {
            let host_port = port.host_port.unwrap_or_default();
            let ip = port.host_ip.as_deref().unwrap_or_default();
            let protocol = port.protocol.as_deref().unwrap_or_default();
            if host_port != 0 && !seen.insert((ip, host_port, protocol)) {
                let path = path
                    .index(index)
                    .child("ports")
                    .index(number)
                    .child("hostPort");
                errors.push(path.duplicate(format!("{protocol}/{ip}/{host_port}")));
            }
        }
    }
    errors
}

fn named(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let rules: [(&str, &Option<String>, validate::NameRule); 6] = [
        ("nodeName", &spec.node_name, names::dns1123_subdomain),
        (
            "serviceAccountName",
            &spec.service_account_name,
            names::dns1123_subdomain,
        ),
        ("hostname", &spec.hostname, names::dns1123_label),
        ("subdomain", &spec.subdomain, names::dns1123_label),
        (
            "runtimeClassName",
            &spec.runtime_class_name,
            names::dns1123_subdomain,
        ),
        (
            "priorityClassName",
            &spec.priority_class_name,
            names::dns1123_subdomain,
        ),
    ];
    let mut errors = Vec::new();
    for (field, name, rule) in rules {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            errors.extend(path.child(field).invalid_all(name, rule(name, false)));
        }
    }
    errors
}

/// What is wrong with tolerations, a pod's own or those of its runtime.
pub fn tolerations(path: &Path, all: &[Toleration]) -> Vec<FieldError> {
    let indexed = all.iter().enumerate();
    indexed
        .flat_map(|(index, one)| one_toleration(&path.index(index), one))
        .collect()
}

fn one_toleration(path: &Path, toleration: &Toleration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    let operator = toleration.operator.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    match key {
        "" if operator != "Exists" => {
            errors.push(path.child("operator").invalid(operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""));
        }
        "" => {}
        key => errors.extend(path.child("key").invalid_all(key, names::qualified(key))),
    }
    if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
        errors.push(path.child("effect").invalid(
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        ));
    }
    match operator {
        "" | "Equal" => errors.extend(
            path.child("operator")
                .invalid_all(value, names::label_value(value)),
        ),
        "Exists" if value.is_empty() => {}
        "Exists" => errors.push(
            path.child("operator")
                .invalid(value, "value must be empty when `operator` is 'Exists'"),
        ),
        other => errors.push(
            path.child("operator")
                .unsupported(other, &["Equal", "Exists"]),
        ),
    }
    if !effect.is_empty() {
        errors.extend(validate::one_of(
            &path.child("effect"),
            Some(effect),
            EFFECTS,
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn texts(value: Value) -> Vec<String> {
        let mut pod: PodSpec = serde_json::from_value(value).unwrap();
        super::super::defaults::pod(&mut pod);
        spec(&Path::new("spec"), &pod)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_plain_pod_is_fine() {
        assert!(texts(json!({ "containers": [{ "name": "a", "image": "b" }] })).is_empty());
    }

    #[test]
    fn a_pod_needs_a_container_with_a_name_and_an_image() {
        assert_eq!(texts(json!({})), ["spec.containers: Required value"]);
        assert_eq!(
            texts(json!({ "containers": [{}] })),
            [
                "spec.containers[0].name: Required value",
                "spec.containers[0].image: Required value"
            ]
        );
    }

    #[test]
    fn processes_are_shared_among_containers_or_with_the_node() {
        let spec = json!({
            "containers": [{ "name": "a", "image": "b" }], "shareProcessNamespace": true, "hostPID": true,
        });
        assert_eq!(
            texts(spec),
            [
                "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled"
            ]
        );
    }

    #[test]
    fn names_are_given_once() {
        assert_eq!(
            texts(json!({
                "containers": [{ "name": "a", "image": "b" }], "initContainers": [{ "name": "a", "image": "b" }],
                "volumes": [{ "name": "v" }, { "name": "v" }],
            })),
            [
                "spec.volumes[1].name: Duplicate value: \"v\"",
                "spec.initContainers[0].name: Duplicate value: \"a\"",
            ]
        );
    }

    #[test]
    fn choices_are_among_those_there_are() {
        assert_eq!(
            texts(json!({
                "containers": [{ "name": "a", "image": "b", "imagePullPolicy": "Maybe" }],
                "restartPolicy": "Often", "terminationGracePeriodSeconds": -1,
            })),
            [
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
                "spec.restartPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"Never\", \"OnFailure\"",
                "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn a_grace_has_an_end() {
        let with = |seconds: i64| {
            texts(json!({
                "containers": [{ "name": "a", "image": "b" }], "terminationGracePeriodSeconds": seconds,
            }))
        };
        assert!(with(MAX_GRACE).is_empty());
        assert_eq!(
            with(1_000_000_000_000),
            [
                "spec.terminationGracePeriodSeconds: Invalid value: 1000000000000: must be less than or equal to 2147483647"
            ]
        );
    }

    #[test]
    fn tolerations_make_sense() {
        assert_eq!(
            texts(json!({
                "containers": [{ "name": "a", "image": "b" }],
                "tolerations": [{ "operator": "Exists" }, { "key": "a", "operator": "In" }, { "tolerationSeconds": 1, "operator": "Exists" }],
            })),
            [
                "spec.tolerations[1].operator: Unsupported value: \"In\": supported values: \"Equal\", \"Exists\"",
                "spec.tolerations[2].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ]
        );
    }
}
