//! containerd's content, image and snapshot stores: reading what an image is, and unpacking it.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, GetImageRequest, Image as StoredImage, InfoRequest, ReadContentRequest,
    UpdateRequest,
};
use containerd_client::types::{Descriptor, Mount};
use oci_spec::image::{ImageIndex, ImageManifest};
use prost_types::FieldMask;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::RuntimeError;
use super::image::{ImageConfig, chain_ids};
use super::rpc::{LAYER_PATIENCE, failed, request, within};

pub(super) const SNAPSHOTTER: &str = "overlayfs";

/// The garbage collector keeps what a label of this form names.
const GC_REF: &str = "containerd.io/gc.ref";

/// The largest manifest or configuration that is read into memory.
const DOCUMENT_LIMIT: i64 = 8 << 20;

/// A manifest and where its parts are.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) config_digest: String,
    /// Compressed layers, lowest first.
    pub(super) layers: Vec<Descriptor>,
    pub(super) config: Arc<ImageConfig>,
    /// Of the configuration and the layers as they are fetched.
    pub(super) size_bytes: u64,
}

/// The target of an image name, or `None` if there is no such image.
pub(super) async fn find(
    channel: &Channel,
    name: &str,
) -> Result<Option<StoredImage>, RuntimeError> {
    let message = GetImageRequest {
        name: name.to_owned(),
    };
    match ImagesClient::new(channel.clone())
        .get(request(message, None))
        .await
    {
        Ok(reply) => Ok(reply.into_inner().image),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failed(format!("look up image {name}"), &status)),
    }
}

/// Reads the manifest for this architecture behind `target`, which may be an index, and its configuration.
pub(super) async fn manifest(
    channel: &Channel,
    name: &str,
    target: &Descriptor,
    architecture: &str,
) -> Result<Manifest, RuntimeError> {
    let broken = |reason: String| RuntimeError::Config(format!("image {name}: {reason}"));
    let mut digest = target.digest.clone();
    // An index may point to indexes; nobody nests them deeper than this.
    for _ in 0..4 {
        let bytes = read(channel, &digest).await?;
        // Both kinds of document are told apart by what they hold: the media type may be absent.
        if let Ok(index) = ImageIndex::from_reader(bytes.as_slice()) {
            let chosen = choose(&index, architecture)
                .ok_or_else(|| broken(format!("no manifest for linux/{architecture}")))?;
            digest = chosen;
            continue;
        }
        let manifest = ImageManifest::from_reader(bytes.as_slice())
            .map_err(|error| broken(format!("unreadable manifest {digest}: {error}")))?;
        let config_digest = manifest.config().digest().to_string();
        let config = ImageConfig::parse(&read(channel, &config_digest).await?)
            .map_err(|error| broken(format!("unreadable config {config_digest}: {error}")))?;
        return Ok(Manifest {
            config_digest,
            size_bytes: manifest
                .layers()
                .iter()
                .map(oci_spec::image::Descriptor::size)
                .sum::<u64>()
                + manifest.config().size(),
            layers: manifest.layers().iter().map(descriptor).collect(),
            config: Arc::new(config),
        });
    }
    Err(broken("its indexes are nested too deep".into()))
}

fn choose(index: &ImageIndex, architecture: &str) -> Option<String> {
    let fits = |descriptor: &&oci_spec::image::Descriptor| match descriptor.platform() {
        Some(platform) => {
            platform.os().to_string() == "linux"
                && platform.architecture().to_string() == architecture
        }
        // Without a platform it is for any.
        None => true,
    };
    let found = index.manifests().iter().find(fits)?;
    Some(found.digest().to_string())
}

pub(super) fn descriptor(descriptor: &oci_spec::image::Descriptor) -> Descriptor {
    Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().to_string(),
        size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
        annotations: descriptor.annotations().clone().unwrap_or_default(),
    }
}

/// A whole blob. For documents only: it refuses large ones.
async fn read(channel: &Channel, digest: &str) -> Result<Vec<u8>, RuntimeError> {
    let fail = |status: &Status| failed(format!("read blob {digest}"), status);
    let message = ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    };
    let mut stream = ContentClient::new(channel.clone())
        .read(request(message, None))
        .await
        .map_err(|status| fail(&status))?
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.map_err(|status| fail(&status))? {
        bytes.extend_from_slice(&part.data);
        if bytes.len() as i64 > DOCUMENT_LIMIT {
            return Err(RuntimeError::Config(format!(
                "blob {digest} is larger than any manifest or config"
            )));
        }
    }
    Ok(bytes)
}

/// Adds labels to a blob that is there already.
pub(super) async fn label(
    channel: &Channel,
    digest: &str,
    labels: HashMap<String, String>,
) -> Result<(), Status> {
    let mut client = ContentClient::new(channel.clone());
    let message = InfoRequest {
        digest: digest.to_owned(),
    };
    let mut info = client
        .info(request(message, None))
        .await?
        .into_inner()
        .info
        .unwrap_or_default();
    info.labels.extend(labels);
    client
        .update(request(
            UpdateRequest {
                info: Some(info),
                update_mask: Some(FieldMask {
                    paths: vec!["labels".to_owned()],
                }),
            },
            None,
        ))
        .await?;
    Ok(())
}

/// Labels by which a document keeps the blobs it names from the garbage collector.
pub(super) fn keep_labels<'a>(
    digests: impl IntoIterator<Item = (String, &'a str)>,
) -> HashMap<String, String> {
    digests
        .into_iter()
        .map(|(role, digest)| (format!("{GC_REF}.content.{role}"), digest.to_owned()))
        .collect()
}

/// Unpacks the layers into snapshots, the lowest first; those that exist are left alone.
pub(super) async fn unpack(
    channel: &Channel,
    manifest: &Manifest,
    lease: Option<&str>,
) -> Result<(), RuntimeError> {
    let diff_ids = &manifest.config.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(RuntimeError::Config(format!(
            "the image has {} layers, its config names {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let chain = chain_ids(diff_ids);
    let mut parent = String::new();
    for ((layer, diff_id), name) in manifest.layers.iter().zip(diff_ids).zip(&chain) {
        unpack_layer(channel, layer, diff_id, &parent, name, lease).await?;
        parent.clone_from(name);
    }
    if let Some(top) = chain.last() {
        let labels = HashMap::from([(format!("{GC_REF}.snapshot.{SNAPSHOTTER}"), top.clone())]);
        label(channel, &manifest.config_digest, labels)
            .await
            .map_err(|status| failed("keep the image's snapshots", &status))?;
    }
    Ok(())
}

async fn unpack_layer(
    channel: &Channel,
    layer: &Descriptor,
    diff_id: &str,
    parent: &str,
    name: &str,
    lease: Option<&str>,
) -> Result<(), RuntimeError> {
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let stat = StatSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: name.to_owned(),
    };
    if snapshots.stat(request(stat, lease)).await.is_ok() {
        return Ok(());
    }
    let fail =
        |step: &str, status: &Status| failed(format!("{step} layer {}", layer.digest), status);
    let key = format!("extract-{} {name}", uuid::Uuid::new_v4());
    let prepared = snapshots
        .prepare(request(
            PrepareSnapshotRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                key: key.clone(),
                parent: parent.to_owned(),
                labels: HashMap::from([("containerd.io/snapshot.ref".to_owned(), name.to_owned())]),
            },
            lease,
        ))
        .await;
    let mounts = match prepared {
        Ok(reply) => reply.into_inner().mounts,
        // Another one unpacked it in between.
        Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
        Err(status) => return Err(fail("prepare", &status)),
    };
    let apply = ApplyRequest {
        diff: Some(layer.clone()),
        mounts,
        ..ApplyRequest::default()
    };
    let applied = DiffClient::new(channel.clone())
        .apply(within(LAYER_PATIENCE, request(apply, lease)))
        .await;
    let outcome = match applied {
        Err(status) => Err(fail("unpack", &status)),
        Ok(reply) => {
            let got = reply.into_inner().applied.unwrap_or_default().digest;
            if got == diff_id {
                Ok(())
            } else {
                Err(RuntimeError::Config(format!(
                    "layer {} unpacks to {got}, the image's config says {diff_id}",
                    layer.digest
                )))
            }
        }
    };
    if let Err(error) = outcome {
        // Best effort: without a lease's protection the garbage collector takes it anyway.
        let _ = remove_snapshot(channel, &key).await;
        return Err(error);
    }
    let commit = CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        name: name.to_owned(),
        key: key.clone(),
        labels: HashMap::new(),
    };
    match snapshots.commit(request(commit, lease)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {
            let _ = remove_snapshot(channel, &key).await;
            Ok(())
        }
        Err(status) => Err(fail("commit", &status)),
    }
}

/// Makes the writable layer of a container, or finds it.
async fn prepare_root(channel: &Channel, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
    let mut client = SnapshotsClient::new(channel.clone());
    let prepare = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: HashMap::new(),
    };
    match client.prepare(request(prepare, None)).await {
        Ok(reply) => Ok(reply.into_inner().mounts),
        Err(status) if status.code() == Code::AlreadyExists => root_mounts(channel, key).await,
        Err(status) => Err(status),
    }
}

/// Makes the root file system of a container, or finds it; unpacks the image first where nobody did.
pub(super) async fn make_root(
    channel: &Channel,
    id: &str,
    parent: &str,
    manifest: &Manifest,
) -> Result<Vec<Mount>, RuntimeError> {
    let fail = |status: &Status| failed(format!("prepare the root of container {id}"), status);
    match prepare_root(channel, id, parent).await {
        Ok(mounts) => Ok(mounts),
        Err(status) if status.code() == Code::NotFound => {
            unpack(channel, manifest, None).await?;
            prepare_root(channel, id, parent)
                .await
                .map_err(|status| fail(&status))
        }
        Err(status) => Err(fail(&status)),
    }
}

/// The mounts of a container's root.
pub(super) async fn root_mounts(channel: &Channel, key: &str) -> Result<Vec<Mount>, Status> {
    let message = MountsRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: key.to_owned(),
    };
    let reply = SnapshotsClient::new(channel.clone())
        .mounts(request(message, None))
        .await?;
    Ok(reply.into_inner().mounts)
}

/// Removes a snapshot; one that is gone already is no error.
pub(super) async fn remove_snapshot(channel: &Channel, key: &str) -> Result<(), Status> {
    let message = RemoveSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: key.to_owned(),
    };
    match SnapshotsClient::new(channel.clone())
        .remove(request(message, None))
        .await
    {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}
