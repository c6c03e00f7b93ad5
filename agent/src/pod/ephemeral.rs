//! Ephemeral containers, which somebody may add to a running pod: this node runs none, and says so. Pure.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateWaiting, ContainerStatus, PodStatus,
};

use super::spec::PodView;

/// What is told of each of them.
pub(super) const REFUSAL: &str = "ephemeral containers are not supported on this node";

/// Their statuses; none for a pod without them.
pub(super) fn statuses(pod: &PodView) -> Option<Vec<ContainerStatus>> {
    let refused = pod.spec().ephemeral_containers.as_ref()?.iter();
    let refused = refused.map(|container| ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some("CreateContainerConfigError".into()),
                message: Some(REFUSAL.into()),
            }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    });
    Some(refused.collect())
}

/// Names of those that `status` does not tell of.
pub(super) fn untold<'a>(pod: &'a PodView, status: &'a PodStatus) -> impl Iterator<Item = &'a str> {
    let names = pod.spec().ephemeral_containers.iter().flatten();
    names
        .map(|container| container.name.as_str())
        .filter(|name| {
            let mut told = status.ephemeral_container_statuses.iter().flatten();
            !told.any(|told| told.name == *name)
        })
}
