//! What one container of a pod may say.

use std::cmp::Ordering;
use std::collections::HashSet;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvVar, ExecAction, HTTPGetAction, LifecycleHandler, Probe,
        ResourceRequirements, TCPSocketAction, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity as Written, util::intstr::IntOrString},
};

use crate::resources::{
    quantity::{self, Quantity},
    service::PROTOCOLS,
    validate::{self, FieldError, Path, names, not_negative, resource_names},
};

const PROPAGATIONS: &[&str] = &["Bidirectional", "HostToContainer", "None"];
const RECURSIVE_READ_ONLY: &[&str] = &["Disabled", "Enabled", "IfPossible"];
pub(super) const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: &[&str] = &["FallbackToLogsOnError", "File"];

pub(super) fn errors(
    path: &Path,
    container: &Container,
    volumes: &HashSet<&str>,
    on_host: bool,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match container.name.as_str() {
        "" => errors.push(path.child("name").required("")),
        name => errors.extend(
            path.child("name")
                .invalid_all(name, names::dns1123_label(name, false)),
        ),
    }
    match container.image.as_deref().unwrap_or_default() {
        "" => errors.push(path.child("image").required("")),
        image if image.trim() != image => {
            errors.push(
                path.child("image")
                    .invalid(image, "must not have leading or trailing whitespace"),
            );
        }
        _ => {}
    }
    errors.extend(ports(
        &path.child("ports"),
        container.ports.as_deref().unwrap_or_default(),
        on_host,
    ));
    for (index, variable) in container.env.iter().flatten().enumerate() {
        errors.extend(env(&path.child("env").index(index), variable));
    }
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    errors.extend(volume_mounts(&path.child("volumeMounts"), mounts, volumes));
    let security = container.security_context.as_ref();
    let is_privileged = security.and_then(|it| it.privileged) == Some(true);
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.child("volumeMounts").index(index);
        errors.extend(propagation(&path, mount, is_privileged));
    }
    let choice = |field: &str, value: &Option<String>, supported: &[&str]| {
        validate::one_of(&path.child(field), value.as_deref(), supported)
    };
    errors.extend(choice(
        "imagePullPolicy",
        &container.image_pull_policy,
        PULL_POLICIES,
    ));
    errors.extend(choice(
        "terminationMessagePolicy",
        &container.termination_message_policy,
        MESSAGE_POLICIES,
    ));
    if let Some(requirements) = &container.resources {
        errors.extend(resources(&path.child("resources"), requirements));
    }
    errors.extend(probes(path, container));
    errors
}

fn ports(path: &Path, ports: &[ContainerPort], on_host: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            errors.extend(path.child("name").invalid_all(name, names::port_name(name)));
        }
        match port.container_port {
            0 => errors.push(path.child("containerPort").required("")),
            number => errors.extend(validate::port_number(&path.child("containerPort"), number)),
        }
        if let Some(number) = port.host_port.filter(|&number| number != 0) {
            errors.extend(validate::port_number(&path.child("hostPort"), number));
            if on_host && number != port.container_port {
                let detail = "must match `hostPort` when `hostNetwork` is true";
                errors.push(
                    path.child("containerPort")
                        .invalid(port.container_port, detail),
                );
            }
        }
        errors.extend(validate::one_of(
            &path.child("protocol"),
            port.protocol.as_deref(),
            PROTOCOLS,
        ));
    }
    let names = ports
        .iter()
        .map(|port| port.name.as_deref().unwrap_or_default());
    errors.extend(validate::duplicates(path, "name", names));
    errors
}

fn env(path: &Path, variable: &EnvVar) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match variable.name.as_str() {
        "" => errors.push(path.child("name").required("")),
        name => errors.extend(path.child("name").invalid_all(name, names::env_var(name))),
    }
    let Some(source) = &variable.value_from else {
        return errors;
    };
    let path = path.child("valueFrom");
    let sources = [
        source.field_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.config_map_key_ref.is_some(),
        source.secret_key_ref.is_some(),
    ];
    match sources.into_iter().filter(|&set| set).count() {
        0 => errors.push(
            path.invalid("", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"),
        ),
        _ if !variable.value.as_deref().unwrap_or_default().is_empty() => {
            errors.push(path.invalid("", "may not be specified when `value` is not empty"));
        }
        1 => {}
        _ => errors.push(path.invalid("", "may not have more than one field specified at a time")),
    }
    if let Some(field) = source
        .field_ref
        .as_ref()
        .filter(|field| field.field_path.is_empty())
    {
        errors.push(
            path.child("fieldRef")
                .child("fieldPath")
                .required(&field.field_path),
        );
    }
    let keys = [
        (
            "configMapKeyRef",
            source
                .config_map_key_ref
                .as_ref()
                .map(|from| (&from.name, &from.key)),
        ),
        (
            "secretKeyRef",
            source
                .secret_key_ref
                .as_ref()
                .map(|from| (&from.name, &from.key)),
        ),
    ];
    for (field, from) in keys {
        let Some((name, key)) = from else { continue };
        let path = path.child(field);
        if name.is_empty() {
            errors.push(path.child("name").required(""));
        }
        match key.as_str() {
            "" => errors.push(path.child("key").required("")),
            key => errors.extend(path.child("key").invalid_all(key, names::config_key(key))),
        }
    }
    errors
}

fn volume_mounts(path: &Path, mounts: &[VolumeMount], volumes: &HashSet<&str>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.index(index);
        if mount.name.is_empty() {
            errors.push(path.child("name").required(""));
        } else if !volumes.contains(mount.name.as_str()) {
            errors.push(path.child("name").not_found(mount.name.as_str()));
        }
        if mount.mount_path.is_empty() {
            errors.push(path.child("mountPath").required(""));
        } else if !seen.insert(mount.mount_path.as_str()) {
            errors.push(
                path.child("mountPath")
                    .invalid(mount.mount_path.as_str(), "must be unique"),
            );
        }
        let sub_path = mount.sub_path.as_deref().unwrap_or_default();
        let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
        if !sub_path.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(path.child("subPathExpr").invalid(expression, detail));
        }
        for (field, part) in [("subPath", sub_path), ("subPathExpr", expression)] {
            let path = path.child(field);
            if part.starts_with('/') {
                errors.push(path.invalid(part, "must be a relative path"));
            }
            if part.split('/').any(|part| part == "..") {
                errors.push(path.invalid(part, "must not contain '..'"));
            }
        }
    }
    errors
}

/// What reaches beyond the mount itself.
fn propagation(path: &Path, mount: &VolumeMount, is_privileged: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = mount.mount_propagation.as_deref();
    let own = path.child("mountPropagation");
    let wrong = kind.filter(|kind| !PROPAGATIONS.contains(kind));
    errors.extend(wrong.map(|kind| own.unsupported(kind, PROPAGATIONS)));
    if kind == Some("Bidirectional") && !is_privileged {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(own.forbidden(detail));
    }
    let recursive = mount.recursive_read_only.as_deref();
    let own = path.child("recursiveReadOnly");
    let wrong = recursive.filter(|kind| !RECURSIVE_READ_ONLY.contains(kind));
    errors.extend(wrong.map(|kind| own.unsupported(kind, RECURSIVE_READ_ONLY)));
    if matches!(recursive, Some("Enabled" | "IfPossible")) {
        if mount.read_only != Some(true) {
            errors.push(own.forbidden("may only be specified when readOnly is true"));
        }
        if kind.is_some_and(|kind| kind != "None") {
            let detail = "may only be specified when mountPropagation is None or not specified";
            errors.push(own.forbidden(detail));
        }
    }
    errors
}

fn resources(path: &Path, resources: &ResourceRequirements) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, amounts) in [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ] {
        let path = path.child(field);
        for name in amounts.iter().flat_map(|amounts| amounts.keys()) {
            errors.extend(
                path.key(name)
                    .invalid_all(name, resource_names::of_container(name)),
            );
        }
        errors.extend(quantity::errors(&path, amounts.as_ref()));
    }
    errors.extend(beyond_limits(path, resources));
    errors.extend(huge_pages(path, resources));
    errors
}

/// Nobody asks for more than the limit, nor for less of what cannot be promised twice.
pub(super) fn beyond_limits(path: &Path, resources: &ResourceRequirements) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let parse = |amount: &Written| amount.0.parse::<Quantity>().ok();
    for (name, request) in resources.requests.iter().flatten() {
        let limit = resources
            .limits
            .as_ref()
            .and_then(|limits| limits.get(name));
        let promised_twice = resource_names::may_be_overcommitted(name);
        let Some(limit) = limit else {
            if !promised_twice {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(path.child("limits").required(detail));
            }
            continue;
        };
        let (Some(asked), Some(most)) = (parse(request), parse(limit)) else {
            continue;
        };
        let detail = match asked.cmp(&most) {
            Ordering::Equal => continue,
            _ if !promised_twice => format!("must be equal to {name} limit of {most}"),
            Ordering::Less => continue,
            Ordering::Greater => format!("must be less than or equal to {name} limit of {most}"),
        };
        let requests = path.child("requests");
        errors.push(requests.invalid(request.0.as_str(), detail));
    }
    errors
}

/// Huge pages come whole, and with memory or CPU beside them.
fn huge_pages(path: &Path, resources: &ResourceRequirements) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut any, mut beside) = (false, false);
    for (field, amounts) in [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ] {
        for (name, amount) in amounts.iter().flatten() {
            beside |= matches!(name.as_str(), "cpu" | "memory");
            if !name.starts_with("hugepages-") {
                continue;
            }
            any = true;
            let Ok(bytes) = amount.0.parse::<Quantity>() else {
                continue;
            };
            let size = resource_names::huge_page_size(name);
            if size.is_none_or(|size| bytes.ceil() % size != 0) {
                let detail = format!("{bytes} is not positive integer multiple of {name}");
                let path = path.child(field).key(name);
                errors.push(path.invalid(amount.0.as_str(), detail));
            }
        }
    }
    if any && !beside {
        errors.push(path.forbidden("HugePages require cpu or memory"));
    }
    errors
}

fn probes(path: &Path, container: &Container) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = [
        ("livenessProbe", &container.liveness_probe, true),
        ("readinessProbe", &container.readiness_probe, false),
        ("startupProbe", &container.startup_probe, true),
    ];
    for (field, probe, succeeds_once) in all {
        let Some(one) = probe else { continue };
        let path = path.child(field);
        errors.extend(probe_errors(&path, one));
        let threshold = one.success_threshold.unwrap_or(1);
        if succeeds_once && threshold > 1 {
            errors.push(
                path.child("successThreshold")
                    .invalid(threshold, "must be 1"),
            );
        }
    }
    if let Some(lifecycle) = &container.lifecycle {
        for (field, hook) in [
            ("postStart", &lifecycle.post_start),
            ("preStop", &lifecycle.pre_stop),
        ] {
            errors.extend(
                hook.iter()
                    .flat_map(|hook| hook_errors(&path.child("lifecycle").child(field), hook)),
            );
        }
    }
    errors
}

fn probe_errors(path: &Path, probe: &Probe) -> Vec<FieldError> {
    let grpc = probe
        .grpc
        .as_ref()
        .map(|grpc| validate::port_number(&path.child("grpc").child("port"), grpc.port));
    let mut errors = action(
        path,
        probe.exec.as_ref(),
        probe.http_get.as_ref(),
        probe.tcp_socket.as_ref(),
        grpc.is_some(),
    );
    errors.extend(grpc.flatten());
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        errors.extend(not_negative(
            &path.child(field),
            value.unwrap_or_default().into(),
        ));
    }
    errors
}

fn hook_errors(path: &Path, hook: &LifecycleHandler) -> Vec<FieldError> {
    action(
        path,
        hook.exec.as_ref(),
        hook.http_get.as_ref(),
        hook.tcp_socket.as_ref(),
        hook.sleep.is_some(),
    )
}

/// Exactly one way to act, and that one complete.
fn action(
    path: &Path,
    exec: Option<&ExecAction>,
    http: Option<&HTTPGetAction>,
    tcp: Option<&TCPSocketAction>,
    other: bool,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match [exec.is_some(), http.is_some(), tcp.is_some(), other]
        .into_iter()
        .filter(|&set| set)
        .count()
    {
        0 => errors.push(path.required("must specify a handler type")),
        1 => {}
        _ => errors.push(path.forbidden("may not specify more than 1 handler type")),
    }
    if exec.is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        errors.push(path.child("exec").child("command").required(""));
    }
    if let Some(http) = http {
        let path = path.child("httpGet");
        errors.extend(port(&path.child("port"), &http.port));
        errors.extend(validate::one_of(
            &path.child("scheme"),
            http.scheme.as_deref(),
            &["HTTP", "HTTPS"],
        ));
        if http.path.as_deref().unwrap_or_default().is_empty() {
            errors.push(path.child("path").required(""));
        }
    }
    if let Some(tcp) = tcp {
        errors.extend(port(&path.child("tcpSocket").child("port"), &tcp.port));
    }
    errors
}

fn port(path: &Path, port: &IntOrString) -> Vec<FieldError> {
    match port {
        IntOrString::Int(number) => validate::port_number(path, *number).into_iter().collect(),
        IntOrString::String(name) => path.invalid_all(name, names::port_name(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn texts(mut value: Value, on_host: bool) -> Vec<String> {
        value["name"] = json!("a");
        value["image"] = json!("b");
        let mut pod = serde_json::from_value(json!({ "containers": [value] })).unwrap();
        super::super::defaults::pod(&mut pod);
        errors(
            &Path::new("c"),
            &pod.containers[0],
            &HashSet::from(["data"]),
            on_host,
        )
        .iter()
        .map(ToString::to_string)
        .collect()
    }

    #[test]
    fn ports_are_numbers_with_names_of_their_own() {
        assert_eq!(
            texts(
                json!({ "ports": [
                    { "containerPort": 80, "name": "web" }, { "containerPort": 70000, "name": "web" }, { "name": "-" }
                ] }),
                false
            ),
            [
                "c.ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "c.ports[2].name: Invalid value: \"-\": must contain at least one letter (a-z)",
                "c.ports[2].name: Invalid value: \"-\": must not begin or end with a hyphen",
                "c.ports[2].containerPort: Required value",
                "c.ports[1].name: Duplicate value: \"web\"",
            ]
        );
    }

    #[test]
    fn mounts_name_volumes_that_there_are() {
        assert_eq!(
            texts(
                json!({ "volumeMounts": [
                    { "name": "data", "mountPath": "/a" }, { "name": "other", "mountPath": "/a" }, { "name": "data" }
                ] }),
                false
            ),
            [
                "c.volumeMounts[1].name: Not found: \"other\"",
                "c.volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
                "c.volumeMounts[2].mountPath: Required value",
            ]
        );
    }

    #[test]
    fn mounts_reach_no_further_than_they_may() {
        assert_eq!(
            texts(
                json!({ "volumeMounts": [
                    { "name": "data", "mountPath": "/a", "mountPropagation": "Bidirectional", "subPathExpr": "../$(A)" },
                    { "name": "data", "mountPath": "/b", "recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer" },
                    { "name": "data", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "IfPossible", "subPathExpr": "$(A)" },
                ] }),
                false
            ),
            [
                "c.volumeMounts[0].subPathExpr: Invalid value: \"../$(A)\": must not contain '..'",
                "c.volumeMounts[0].mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
                "c.volumeMounts[1].recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
                "c.volumeMounts[1].recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified",
            ]
        );
    }

    #[test]
    fn nothing_asks_for_more_than_its_limit() {
        assert_eq!(
            texts(
                json!({ "resources": {
                    "limits": { "cpu": "500m", "memory": "lots" }, "requests": { "cpu": "1", "memory": "1Gi", "disk": "1" }
                } }),
                false
            ),
            [
                "c.resources.limits[memory]: Invalid value: \"lots\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                "c.resources.requests[disk]: Invalid value: \"disk\": must be a standard resource for containers",
                "c.resources.requests: Invalid value: \"1\": must be less than or equal to cpu limit of 500m",
            ]
        );
    }

    #[test]
    fn huge_pages_come_whole_and_are_promised_once() {
        let of = |limits: Value, requests: Value| {
            let resources = json!({ "limits": limits, "requests": requests });
            texts(json!({ "resources": resources }), false)
        };
        let fine = json!({ "memory": "1Gi", "hugepages-2Mi": "4Mi" });
        assert!(of(fine.clone(), json!({})).is_empty());
        assert_eq!(
            of(fine, json!({ "hugepages-2Mi": "2Mi" })),
            [
                "c.resources.requests: Invalid value: \"2Mi\": must be equal to hugepages-2Mi limit of 4Mi"
            ]
        );
        assert_eq!(
            of(json!({ "hugepages-2Mi": "3Mi" }), json!({})),
            [
                "c.resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                "c.resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                "c.resources: Forbidden: HugePages require cpu or memory",
            ]
        );
        assert_eq!(
            of(json!({}), json!({ "example.com/gpu": "1" })),
            [
                "c.resources.limits: Required value: Limit must be set for non overcommitable resources"
            ]
        );
    }

    #[test]
    fn a_variable_has_one_source() {
        assert_eq!(
            texts(
                json!({ "env": [
                    { "name": "A=B", "value": "" },
                    { "name": "A", "valueFrom": {} },
                    { "name": "B", "valueFrom": { "secretKeyRef": { "key": "k" } } },
                ] }),
                false
            ),
            [
                "c.env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
                "c.env[1].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                "c.env[2].valueFrom.secretKeyRef.name: Required value",
            ]
        );
    }

    #[test]
    fn a_probe_acts_in_one_way() {
        assert_eq!(
            texts(
                json!({
                    "livenessProbe": { "successThreshold": 2 },
                    "readinessProbe": { "tcpSocket": { "port": "no port" }, "exec": { "command": ["true"] }, "periodSeconds": -1 },
                }),
                false
            ),
            [
                "c.livenessProbe: Required value: must specify a handler type",
                "c.livenessProbe.successThreshold: Invalid value: 2: must be 1",
                "c.readinessProbe: Forbidden: may not specify more than 1 handler type",
                "c.readinessProbe.tcpSocket.port: Invalid value: \"no port\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                "c.readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
