//! What this node does not support of a pod's spec. Pure.

use k8s_openapi::api::core::v1::Container;

use super::app_armor::{self, Profile};
use super::spec::PodView;

/// What this node cannot do of what the spec asks; one sentence each. A container that asks for any of it is not made.
pub(super) fn refusals(pod: &PodView, container: &Container) -> Vec<String> {
    let spec = pod.spec();
    let security = container.security_context.clone().unwrap_or_default();
    let mut found = Vec::new();
    let mut refuse = |asked: bool, what: &str| {
        if asked {
            found.push(format!("{what} is not supported on this node"));
        }
    };
    refuse(
        matches!(security.proc_mount.as_deref(), Some(kind) if kind != "Default"),
        "procMount other than Default",
    );
    // Which that is, no runtime tells that is asked for containers one by one.
    refuse(
        app_armor::of(pod, container) == Some(Profile::RuntimeDefault),
        "appArmorProfile RuntimeDefault",
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
    let of_pod = spec.resources.as_ref();
    let mut limits = of_pod
        .and_then(|it| it.limits.as_ref())
        .into_iter()
        .flatten();
    refuse(
        limits.any(|(name, _)| name.starts_with("hugepages-")),
        "a hugepages limit of the pod as a whole",
    );
    found
}
