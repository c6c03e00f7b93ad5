//! Volumes that are images (KEP-4639). Each is mounted before the first container that has it is made, and taken away with
//! the pod's other mounts.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource};

use super::mounts;
use super::paths::Paths;
use super::shared::Shared;
use super::spec::PodView;
use super::users;
use crate::network::namespaces::Namespace;
use crate::runtime::{ImageVolume, RuntimeError};

/// The names and sources of a container's volumes that are images.
pub(super) fn of<'a>(
    pod: &'a PodView,
    spec: &'a Container,
) -> impl Iterator<Item = (&'a str, &'a ImageVolumeSource)> {
    let mounts = || spec.volume_mounts.iter().flatten();
    let all = pod.spec().volumes.iter().flatten();
    all.filter(move |volume| mounts().any(|mount| mount.name == volume.name))
        .filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)))
}

/// The source of a volume of this name.
pub(super) fn source<'a>(pod: &'a PodView, name: &str) -> Option<&'a ImageVolumeSource> {
    let mut all = pod.spec().volumes.iter().flatten();
    all.find(|volume| volume.name == name)?.image.as_ref()
}

/// Whether a pod has any. Of one whose spec is not known that cannot be told.
pub(super) fn may_have(pod: Option<&PodView>) -> bool {
    let mut volumes = pod
        .into_iter()
        .flat_map(|pod| pod.spec().volumes.iter().flatten());
    pod.is_none() || volumes.any(|volume| volume.image.is_some())
}

/// The name of the image.
pub(super) fn reference(source: &ImageVolumeSource) -> &str {
    source.reference.as_deref().unwrap_or_default()
}

/// Where the volume is mounted on the node.
pub(super) fn path(paths: &Paths, uid: &str, volume: &str) -> PathBuf {
    paths.mounts(uid).join(format!("image-{volume}"))
}

/// Mounts those of a container, whose images are there.
pub(super) async fn mount(
    shared: &Shared,
    pod: &PodView,
    spec: &Container,
) -> Result<(), RuntimeError> {
    let users = users::are_own(pod.spec());
    let users = users.then(|| shared.settings.paths.pin(Namespace::User, &pod.id.uid));
    for (name, source) in of(pod, spec) {
        let volume = ImageVolume {
            pod_uid: pod.id.uid.clone(),
            name: name.to_owned(),
        };
        let layers = shared
            .runtime
            .image_layers(reference(source), &volume)
            .await?;
        let path = path(&shared.settings.paths, &pod.id.uid, name);
        mounts::layers(&path, &layers, users.as_deref()).map_err(|error| RuntimeError::Failed {
            action: format!("mount volume {name:?}"),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_needs_the_images_that_it_mounts_each_once() {
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "volumes": [{"name": "data", "image": {"reference": "data:1"}}, {"name": "other", "image": {"reference": "other:1"}},
                    {"name": "scratch", "emptyDir": {}}],
                "containers": [
                    {"name": "a", "volumeMounts": [{"name": "data", "mountPath": "/x"}, {"name": "data", "mountPath": "/y"},
                        {"name": "scratch", "mountPath": "/z"}]},
                    {"name": "b"},
                ],
            },
        });
        let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
        let names = |at: usize| -> Vec<&str> {
            of(&pod, &pod.containers()[at])
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(names(0), ["data"]);
        assert!(names(1).is_empty());
        assert!(may_have(Some(&pod)) && may_have(None));
        assert!(source(&pod, "scratch").is_none());
    }
}
