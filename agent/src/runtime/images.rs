//! The images as a whole: which there are, what they and containers take of the disk, and removing them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::snapshots::UsageRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{
    DeleteImageRequest, Image as StoredImage, ListContainersRequest, ListImagesRequest,
    PluginsRequest,
};
use containerd_client::types::Descriptor;
use tonic::Code;
use tonic::transport::Channel;

use super::rpc::{failed, request};
use super::store::SNAPSHOTTER;
use super::{DiskUsage, ImageSummary, RuntimeError, image_volumes};

/// The label, and its value, by which containerd's CRI half knows what is not to be collected.
pub(super) const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Every name with what it points to.
pub(super) async fn stored(channel: &Channel) -> Result<Vec<StoredImage>, RuntimeError> {
    named(channel, Vec::new()).await
}

async fn named(channel: &Channel, filters: Vec<String>) -> Result<Vec<StoredImage>, RuntimeError> {
    let message = ListImagesRequest { filters };
    let mut client = ImagesClient::new(channel.clone());
    let reply = client
        .list(request(message, None))
        .await
        .map_err(|status| failed("list images", &status))?;
    Ok(reply.into_inner().images)
}

/// What is used: the names from which containers are made, also those of others than this agent, and the digests of what
/// pods have as volumes.
pub(super) async fn used(channel: &Channel) -> Result<BTreeSet<String>, RuntimeError> {
    let message = ListContainersRequest {
        filters: Vec::new(),
    };
    let mut client = ContainersClient::new(channel.clone());
    let (listed, volumes) = tokio::join!(
        client.list(request(message, None)),
        image_volumes::list(channel)
    );
    let containers = listed
        .map_err(|status| failed("list containers", &status))?
        .into_inner()
        .containers;
    let names = containers.into_iter().map(|container| container.image);
    Ok(names.chain(volumes?.into_values().flatten()).collect())
}

/// Puts together the names of each image. containerd's CRI half keeps extra names, by digest alone; they are shown only
/// where there is no other.
pub(super) fn by_digest(
    stored: Vec<StoredImage>,
    used: &BTreeSet<String>,
) -> Vec<(ImageSummary, Descriptor)> {
    let mut found: BTreeMap<String, (ImageSummary, Descriptor)> = BTreeMap::new();
    for image in stored {
        let Some(target) = image.target else { continue };
        let entry = found.entry(target.digest.clone());
        let (summary, _) = entry.or_insert_with(|| {
            let summary = ImageSummary {
                digest: target.digest.clone(),
                ..ImageSummary::default()
            };
            (summary, target)
        });
        summary.in_use |= used.contains(&image.name) || used.contains(&summary.digest);
        let pinned = image.labels.get(PINNED.0);
        summary.is_pinned |= pinned.is_some_and(|value| value == PINNED.1);
        summary.names.push(image.name);
    }
    let mut found: Vec<_> = found.into_values().collect();
    for (summary, _) in &mut found {
        let is_extra = |name: &String| name.starts_with("sha256:");
        if !summary.names.iter().all(is_extra) {
            summary.names.retain(|name| !is_extra(name));
        }
        summary.names.sort();
    }
    found
}

/// Removes the names of an image, and waits until what nothing else needs of it is gone.
pub(super) async fn remove(channel: &Channel, digest: &str) -> Result<(), RuntimeError> {
    let images = named(channel, vec![format!("target.digest=={digest}")]).await?;
    let last = images.len().saturating_sub(1);
    for (at, image) in images.into_iter().enumerate() {
        let message = DeleteImageRequest {
            name: image.name.clone(),
            sync: at == last,
            ..DeleteImageRequest::default()
        };
        match ImagesClient::new(channel.clone())
            .delete(request(message, None))
            .await
        {
            Err(status) if status.code() != Code::NotFound => {
                return Err(failed(format!("remove image {}", image.name), &status));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the snapshotter keeps layers.
pub(super) async fn directory(channel: &Channel) -> Result<Option<PathBuf>, RuntimeError> {
    let message = PluginsRequest {
        filters: vec![format!(
            "type==io.containerd.snapshotter.v1,id=={SNAPSHOTTER}"
        )],
    };
    let mut client = IntrospectionClient::new(channel.clone());
    let reply = client
        .plugins(request(message, None))
        .await
        .map_err(|status| failed("ask for the snapshotter", &status))?;
    let mut plugins = reply.into_inner().plugins.into_iter();
    let plugin = plugins.find(|plugin| plugin.id == SNAPSHOTTER);
    let root = plugin.and_then(|plugin| plugin.exports.get("root").cloned());
    Ok(root.map(PathBuf::from))
}

/// What is in a container's writable layer.
pub(super) async fn written(
    channel: &Channel,
    id: &str,
) -> Result<Option<DiskUsage>, RuntimeError> {
    let message = UsageRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: id.to_owned(),
    };
    match SnapshotsClient::new(channel.clone())
        .usage(request(message, None))
        .await
    {
        Ok(reply) => {
            let usage = reply.into_inner();
            let number = |number: i64| u64::try_from(number).unwrap_or(0);
            Ok(Some(DiskUsage {
                bytes: number(usage.size),
                inodes: number(usage.inodes),
            }))
        }
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failed(format!("measure container {id}"), &status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_is_one_with_all_its_names() {
        let stored = |name: &str, digest: &str, pinned: bool| StoredImage {
            name: name.into(),
            target: Some(Descriptor {
                digest: digest.into(),
                ..Descriptor::default()
            }),
            labels: pinned
                .then(|| (PINNED.0.to_owned(), PINNED.1.to_owned()))
                .into_iter()
                .collect(),
            ..StoredImage::default()
        };
        let all = vec![
            stored("r/web:2", "a", false),
            stored("sha256:1", "a", true),
            stored("r/web@a", "a", false),
            stored("sha256:2", "b", false),
            stored("r/data:1", "c", false),
        ];
        let found = by_digest(all, &["r/web@a".to_owned(), "c".to_owned()].into());
        let found: Vec<_> = found.into_iter().map(|(image, _)| image).collect();
        assert_eq!(found[0].names, ["r/web:2", "r/web@a"]);
        assert!(found[0].in_use && found[0].is_pinned);
        assert_eq!(found[1].names, ["sha256:2"]);
        assert!(!found[1].in_use && !found[1].is_pinned);
        assert!(found[2].in_use, "it is a volume");
    }
}
