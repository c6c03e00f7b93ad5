//! Ephemeral containers, which somebody adds to a pod that runs, mostly to look at another of its containers. They run once,
//! and nothing waits for them. Pure.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer};

use super::spec::PodView;

/// An ephemeral container as what it is to the runtime.
pub(super) fn container(of: EphemeralContainer) -> Container {
    Container {
        args: of.args,
        command: of.command,
        env: of.env,
        env_from: of.env_from,
        image: of.image,
        image_pull_policy: of.image_pull_policy,
        name: of.name,
        resources: of.resources,
        security_context: of.security_context,
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        termination_message_path: of.termination_message_path,
        termination_message_policy: of.termination_message_policy,
        tty: of.tty,
        volume_devices: of.volume_devices,
        volume_mounts: of.volume_mounts,
        working_dir: of.working_dir,
        ..Container::default()
    }
}

/// Whether a container of this name is an ephemeral one.
pub(super) fn is_one(pod: &PodView, name: &str) -> bool {
    pod.ephemeral.iter().any(|container| container.name == name)
}

/// The container whose processes an ephemeral one shall see.
pub(super) fn target<'a>(pod: &'a PodView, name: &str) -> Option<&'a str> {
    let mut all = pod.spec().ephemeral_containers.iter().flatten();
    let target = all
        .find(|container| container.name == name)?
        .target_container_name
        .as_deref()?;
    (!target.is_empty()).then_some(target)
}
