//! Images whose files pods have as volumes (KEP-4639): a read-only snapshot of the layers for each.
//!
//! Labels on the snapshot say whose it is and of which image, so nothing of it is kept in the agent's memory only. It is a
//! root for containerd's garbage collector, which keeps the layers below it, whatever becomes of the image's names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Info, ListSnapshotsRequest, ViewSnapshotRequest};
use containerd_client::types::Mount;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::labels::POD_UID;
use super::rpc::{failed, request};
use super::store::{self, Manifest, SNAPSHOTTER};
use super::{ImageVolume, RuntimeError};

const IMAGE_DIGEST: &str = "kernelet.io/image-digest";
const GC_ROOT: &str = "containerd.io/gc.root";

fn key(volume: &ImageVolume) -> String {
    format!("kernelet-volume-{}-{}", volume.pod_uid, volume.name)
}

/// The directories that the volume's image is made of, the topmost first. Once made, they stay the same, whatever image has
/// the name by then.
pub(super) async fn layers(
    channel: &Channel,
    volume: &ImageVolume,
    digest: &str,
    manifest: &Manifest,
) -> Result<Vec<PathBuf>, RuntimeError> {
    let fail = |status: &Status| {
        failed(
            format!("prepare the image of volume {}", volume.name),
            status,
        )
    };
    let viewed = match view(channel, volume, digest, manifest).await {
        Err(status) if status.code() == Code::NotFound => {
            store::unpack(channel, manifest, None).await?;
            view(channel, volume, digest, manifest).await
        }
        viewed => viewed,
    };
    let mounts = viewed.map_err(|status| fail(&status))?;
    Ok(directories(&mounts).map(PathBuf::from).collect())
}

async fn view(
    channel: &Channel,
    volume: &ImageVolume,
    digest: &str,
    manifest: &Manifest,
) -> Result<Vec<Mount>, Status> {
    let key = key(volume);
    let labels = [
        (POD_UID, volume.pod_uid.as_str()),
        (IMAGE_DIGEST, digest),
        (GC_ROOT, "kernelet"),
    ];
    let message = ViewSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: key.clone(),
        parent: manifest.config.chain_id(),
        labels: labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    };
    let mut client = SnapshotsClient::new(channel.clone());
    match client.view(request(message, None)).await {
        Ok(reply) => Ok(reply.into_inner().mounts),
        Err(status) if status.code() == Code::AlreadyExists => {
            store::root_mounts(channel, &key).await
        }
        Err(status) => Err(status),
    }
}

/// The directories, the topmost first, of which `mounts` would make a read-only file system.
pub(super) fn directories(mounts: &[Mount]) -> impl Iterator<Item = &str> {
    mounts.iter().flat_map(|mount| match mount.r#type.as_str() {
        "overlay" => mount
            .options
            .iter()
            .find_map(|option| option.strip_prefix("lowerdir="))
            .map(|dirs| dirs.split(':').collect())
            .unwrap_or_default(),
        // One layer is a plain bind mount.
        _ => vec![mount.source.as_str()],
    })
}

/// The digests of the images that pods have as volumes, by pod.
pub(super) async fn list(
    channel: &Channel,
) -> Result<BTreeMap<String, BTreeSet<String>>, RuntimeError> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for info in infos(channel, format!("labels.\"{IMAGE_DIGEST}\"")).await? {
        let label = |labels: &HashMap<String, String>, name| labels.get(name).cloned();
        let (uid, digest) = (
            label(&info.labels, POD_UID),
            label(&info.labels, IMAGE_DIGEST),
        );
        let of_pod = found.entry(uid.unwrap_or_default()).or_default();
        of_pod.extend(digest);
    }
    Ok(found)
}

/// Removes the snapshots of a pod's volumes.
pub(super) async fn release(channel: &Channel, pod_uid: &str) -> Result<(), RuntimeError> {
    let filter = format!("labels.\"{IMAGE_DIGEST}\",labels.\"{POD_UID}\"=={pod_uid}");
    for info in infos(channel, filter).await? {
        store::remove_snapshot(channel, &info.name)
            .await
            .map_err(|status| failed(format!("remove snapshot {}", info.name), &status))?;
    }
    Ok(())
}

async fn infos(channel: &Channel, filter: String) -> Result<Vec<Info>, RuntimeError> {
    let fail = |status: &Status| failed("list the images of volumes", status);
    let message = ListSnapshotsRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        filters: vec![filter],
    };
    let mut stream = SnapshotsClient::new(channel.clone())
        .list(request(message, None))
        .await
        .map_err(|status| fail(&status))?
        .into_inner();
    let mut found = Vec::new();
    while let Some(part) = stream.message().await.map_err(|status| fail(&status))? {
        found.extend(part.info);
    }
    Ok(found)
}
