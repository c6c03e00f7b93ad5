//! What this node does not support of a pod's spec. Pure.

use k8s_openapi::api::core::v1::Container;

use super::spec::PodView;

/// What this node cannot do of what the spec asks; one sentence each. A container that asks for any of it is not made.
pub(super) fn refusals(pod: &PodView, container: &Container) -> Vec<String> {
    let spec = pod.spec();
    let security = container.security_context.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let mut found = Vec::new();
    let mut refuse = |asked: bool, what: &str| {
        if asked {
            found.push(format!("{what} is not supported on this node"));
        }
    };
    refuse(spec.host_users == Some(false), "hostUsers: false");
    refuse(spec.runtime_class_name.is_some(), "runtimeClassName");
    refuse(
        of_pod.se_linux_options.is_some() || security.se_linux_options.is_some(),
        "seLinuxOptions",
    );
    refuse(
        matches!(security.proc_mount.as_deref(), Some(kind) if kind != "Default"),
        "procMount other than Default",
    );
    let armor = security
        .app_armor_profile
        .as_ref()
        .or(of_pod.app_armor_profile.as_ref());
    refuse(
        armor.is_some_and(|profile| profile.type_ != "Unconfined"),
        "an appArmorProfile other than Unconfined",
    );
    let lifecycle = container.lifecycle.clone().unwrap_or_default();
    let hooks = [&lifecycle.post_start, &lifecycle.pre_stop];
    refuse(
        hooks
            .into_iter()
            .flatten()
            .any(|hook| hook.tcp_socket.is_some()),
        "a tcpSocket hook",
    );
    refuse(
        container
            .volume_devices
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
        "volumeDevices",
    );
    let resources = container.resources.iter().chain(&spec.resources);
    let mut limits = resources.filter_map(|resources| resources.limits.as_ref());
    refuse(
        limits.any(|limits| limits.keys().any(|name| name.starts_with("hugepages-"))),
        "a hugepages limit",
    );
    found
}
