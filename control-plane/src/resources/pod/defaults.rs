//! What a pod's specification says when it says nothing.

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HTTPGetAction, Lifecycle, ObjectFieldSelector, PodSpec, Probe,
    Volume,
};

use super::{ephemeral, resize, whole};
use crate::resources::quantity::{self, Amounts};

const FILE_MODE: i32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

fn or<T: ToOwned + ?Sized>(field: &mut Option<T::Owned>, default: &T) {
    field.get_or_insert_with(|| default.to_owned());
}

/// Text that is empty counts as absent.
fn or_text(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

/// A pod's own specification: that of a template, and what only pods have.
pub fn pod(spec: &mut PodSpec) {
    template(spec);
    or(&mut spec.enable_service_links, &true);
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        let mut common = ephemeral::common(container);
        default_container(&mut common, false);
        container.image_pull_policy = common.image_pull_policy;
        container.env = common.env;
        container.termination_message_path = common.termination_message_path;
        container.termination_message_policy = common.termination_message_policy;
        container.resources.get_or_insert_default();
    }
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        let resources = container.resources.get_or_insert_default();
        fill(&mut resources.requests, resources.limits.as_ref());
    }
    whole::default_requests(spec);
    let sidecars = spec.init_containers.iter_mut().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let resized = spec.containers.iter_mut().chain(sidecars);
    resized.for_each(resize::default_policies);
}

/// Limits that have no request beside them are requests too.
fn fill(requests: &mut Option<Amounts>, limits: Option<&Amounts>) {
    for (name, amount) in limits.into_iter().flatten() {
        requests
            .get_or_insert_default()
            .entry(name.clone())
            .or_insert_with(|| amount.clone());
    }
}

/// The specification of a workload's pods.
pub fn template(spec: &mut PodSpec) {
    or_text(&mut spec.dns_policy, "ClusterFirst");
    or_text(&mut spec.restart_policy, "Always");
    or_text(&mut spec.scheduler_name, "default-scheduler");
    or(&mut spec.termination_grace_period_seconds, &30);
    spec.security_context.get_or_insert_default();
    // Both names of this field say the same; the first is the one in use.
    if spec.service_account_name.is_none() {
        spec.service_account_name.clone_from(&spec.service_account);
    }
    spec.service_account.clone_from(&spec.service_account_name);
    if let Some(resources) = &mut spec.resources {
        quantity::canonicalize(resources.limits.as_mut());
        quantity::canonicalize(resources.requests.as_mut());
    }
    let on_host = spec.host_network == Some(true);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        default_container(container, on_host);
    }
    spec.volumes.iter_mut().flatten().for_each(default_volume);
}

fn default_container(container: &mut Container, on_host: bool) {
    if container
        .image_pull_policy
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        let image = container.image.as_deref().unwrap_or_default();
        container.image_pull_policy = Some(pull_policy(image).to_owned());
    }
    or_text(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    or_text(&mut container.termination_message_policy, "File");
    let resources = container.resources.get_or_insert_default();
    quantity::canonicalize(resources.limits.as_mut());
    quantity::canonicalize(resources.requests.as_mut());
    for port in container.ports.iter_mut().flatten() {
        or_text(&mut port.protocol, "TCP");
        if on_host && port.host_port.unwrap_or_default() == 0 {
            port.host_port = Some(port.container_port);
        }
    }
    let references = container
        .env
        .iter_mut()
        .flatten()
        .filter_map(|variable| variable.value_from.as_mut());
    references
        .filter_map(|source| source.field_ref.as_mut())
        .for_each(field_ref);
    for probe in [
        &mut container.liveness_probe,
        &mut container.readiness_probe,
        &mut container.startup_probe,
    ] {
        probe.iter_mut().for_each(default_probe);
    }
    if let Some(Lifecycle {
        post_start,
        pre_stop,
        ..
    }) = &mut container.lifecycle
    {
        let hooks = [post_start, pre_stop].into_iter().flatten();
        hooks
            .filter_map(|hook| hook.http_get.as_mut())
            .for_each(http_get);
    }
}

/// `Always` for an image whose tag may move, `IfNotPresent` for all others.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match (digest, last.split_once(':').map(|(_, tag)| tag)) {
        (None, None | Some("latest")) => "Always",
        (Some(_), Some("latest")) => "Always",
        _ => "IfNotPresent",
    }
}

fn field_ref(selector: &mut ObjectFieldSelector) {
    or_text(&mut selector.api_version, "v1");
}

fn http_get(action: &mut HTTPGetAction) {
    or_text(&mut action.path, "/");
    or_text(&mut action.scheme, "HTTP");
}

fn default_probe(probe: &mut Probe) {
    let fields = [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ];
    for (field, default) in fields {
        if field.unwrap_or_default() == 0 {
            *field = Some(default);
        }
    }
    probe.http_get.iter_mut().for_each(http_get);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn default_volume(volume: &mut Volume) {
    if let Some(source) = &mut volume.config_map {
        or(&mut source.default_mode, &FILE_MODE);
    }
    if let Some(source) = &mut volume.secret {
        or(&mut source.default_mode, &FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        or(&mut source.default_mode, &FILE_MODE);
        source
            .items
            .iter_mut()
            .flatten()
            .filter_map(|item| item.field_ref.as_mut())
            .for_each(field_ref);
    }
    if let Some(source) = &mut volume.projected {
        or(&mut source.default_mode, &FILE_MODE);
        for part in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut part.service_account_token {
                or(&mut token.expiration_seconds, &TOKEN_SECONDS);
            }
            let items = part
                .downward_api
                .iter_mut()
                .flat_map(|source| source.items.iter_mut().flatten());
            items
                .filter_map(|item| item.field_ref.as_mut())
                .for_each(field_ref);
        }
    }
    if let Some(source) = &mut volume.image
        && source.pull_policy.as_deref().unwrap_or_default().is_empty()
    {
        let reference = source.reference.as_deref().unwrap_or_default();
        source.pull_policy = Some(pull_policy(reference).to_owned());
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    let bare = Volume {
        name: volume.name.clone(),
        ..Volume::default()
    };
    if *volume == bare {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn defaulted(spec: Value, by: fn(&mut PodSpec)) -> Value {
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        by(&mut spec);
        serde_json::to_value(spec).unwrap()
    }

    #[test]
    fn a_pod_of_one_container_gets_what_upstream_gives_it() {
        assert_eq!(
            defaulted(
                json!({ "containers": [{ "name": "a", "image": "nginx" }] }),
                pod
            ),
            json!({
                "containers": [{
                    "name": "a", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
            })
        );
    }

    #[test]
    fn limits_are_requests_too_but_only_in_pods() {
        let spec = json!({ "containers": [{
            "name": "a", "resources": { "limits": { "cpu": "0.5", "memory": "64Mi" }, "requests": { "cpu": "100m" } }
        }] });
        let resources = |spec: Value| spec["containers"][0]["resources"].clone();
        assert_eq!(
            resources(defaulted(spec.clone(), pod)),
            json!({ "limits": { "cpu": "500m", "memory": "64Mi" }, "requests": { "cpu": "100m", "memory": "64Mi" } })
        );
        assert_eq!(
            resources(defaulted(spec, template))["requests"],
            json!({ "cpu": "100m" })
        );
    }

    #[test]
    fn probes_ports_and_volumes_are_filled_in() {
        let spec = defaulted(
            json!({
                "hostNetwork": true,
                "containers": [{
                    "name": "a", "ports": [{ "containerPort": 80 }],
                    "readinessProbe": { "httpGet": { "port": 80 } },
                    "env": [{ "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
                }],
                "volumes": [{ "name": "scratch" }, { "name": "config", "configMap": { "name": "c" } },
                    { "name": "data", "image": { "reference": "data:1" } }, { "name": "new", "image": { "reference": "data" } }],
            }),
            pod,
        );
        let container = &spec["containers"][0];
        assert_eq!(
            container["ports"],
            json!([{ "containerPort": 80, "hostPort": 80, "protocol": "TCP" }])
        );
        assert_eq!(
            container["readinessProbe"],
            json!({
                "httpGet": { "path": "/", "port": 80, "scheme": "HTTP" },
                "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1,
            })
        );
        assert_eq!(
            container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"],
            "v1"
        );
        assert_eq!(
            spec["volumes"],
            json!([
                { "name": "scratch", "emptyDir": {} },
                { "name": "config", "configMap": { "name": "c", "defaultMode": 420 } },
                { "name": "data", "image": { "reference": "data:1", "pullPolicy": "IfNotPresent" } },
                { "name": "new", "image": { "reference": "data", "pullPolicy": "Always" } },
            ])
        );
    }

    #[test]
    fn images_whose_tag_may_move_are_pulled_again() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx:1.27", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
