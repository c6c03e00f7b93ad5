//! Taking in OCI archives: blobs into the content store, layers into snapshots, and a name for each image.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteRequest, Image, UpdateImageRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::types::Descriptor;
use oci_spec::image::{ImageIndex, ImageManifest};
use prost_types::FieldMask;
use tonic::Code;
use tonic::transport::Channel;

use super::RuntimeError;
use super::image::normalize;
use super::images::PINNED;
use super::rpc::{LAYER_PATIENCE, failed, request, within};
use super::store::{self, descriptor, keep_labels};

/// How much of a blob travels in one message; gRPC's limit is 4 MiB.
const CHUNK: usize = 1 << 20;

/// Annotations that name an image, the more telling one first.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// What the archive's files are called, and where their bytes are in it.
#[derive(Debug)]
struct Archive {
    file: File,
    /// Offset and length by the path in the archive.
    entries: HashMap<String, (u64, u64)>,
}

impl Archive {
    fn open(path: &Path) -> io::Result<Archive> {
        let mut tar = tar::Archive::new(File::open(path)?);
        let mut entries = HashMap::new();
        for entry in tar.entries_with_seek()? {
            let entry = entry?;
            let name = entry
                .path()?
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            entries.insert(name, (entry.raw_file_position(), entry.size()));
        }
        Ok(Archive {
            file: File::open(path)?,
            entries,
        })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let (offset, size) = self.entries.get(name).ok_or(format!("it has no {name}"))?;
        let size = usize::try_from(*size).map_err(|_| format!("{name} is too large"))?;
        let mut bytes = vec![0; size];
        self.file
            .read_exact_at(&mut bytes, *offset)
            .map_err(|error| format!("{name}: {error}"))?;
        Ok(bytes)
    }

    fn blob(&self, digest: &str) -> String {
        format!("blobs/{}", digest.replacen(':', "/", 1))
    }
}

/// Takes in every named image of the archive; gives the names.
pub(super) async fn import(
    channel: &Channel,
    path: &Path,
    architecture: &str,
) -> Result<Vec<String>, RuntimeError> {
    let bad = |reason: String| RuntimeError::Archive {
        archive: path.to_owned(),
        reason,
    };
    let opened = path.to_owned();
    let archive = tokio::task::spawn_blocking(move || Archive::open(&opened))
        .await
        .map_err(|error| bad(error.to_string()))?
        .map_err(|error| bad(format!("not a readable tar archive: {error}")))?;
    let index = ImageIndex::from_reader(archive.read("index.json").map_err(bad)?.as_slice())
        .map_err(|error| bad(format!("index.json: {error}")))?;

    let lease = take_lease(channel).await?;
    let mut names = Vec::new();
    let mut outcome = Ok(());
    for target in index.manifests() {
        let Some(name) = image_name(target) else {
            outcome = Err(bad(format!(
                "its manifest {} has no name: annotation {} is missing",
                target.digest(),
                NAMES[0]
            )));
            continue;
        };
        outcome = import_one(channel, &archive, target, &name, architecture, &lease, &bad).await;
        match outcome {
            Ok(()) => names.push(name),
            Err(_) => break,
        }
    }
    // The lease expires by itself should this fail.
    let message = DeleteRequest {
        id: lease,
        sync: false,
    };
    let _ = LeasesClient::new(channel.clone())
        .delete(request(message, None))
        .await;
    outcome.map(|()| names)
}

/// Protects what is written from the garbage collector until the image's name does.
async fn take_lease(channel: &Channel) -> Result<String, RuntimeError> {
    let expiry = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let message = CreateRequest {
        id: format!("kernelet-import-{}", uuid::Uuid::new_v4()),
        labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expiry.to_string())]),
    };
    let reply = LeasesClient::new(channel.clone())
        .create(request(message, None))
        .await
        .map_err(|status| failed("take a lease for an import", &status))?;
    Ok(reply.into_inner().lease.unwrap_or_default().id)
}

fn image_name(target: &oci_spec::image::Descriptor) -> Option<String> {
    let annotations = target.annotations().as_ref()?;
    NAMES
        .iter()
        .find_map(|key| annotations.get(*key))
        .and_then(|name| normalize(name).ok())
}

async fn import_one(
    channel: &Channel,
    archive: &Archive,
    target: &oci_spec::image::Descriptor,
    name: &str,
    architecture: &str,
    lease: &str,
    bad: &impl Fn(String) -> RuntimeError,
) -> Result<(), RuntimeError> {
    write_tree(channel, archive, target.digest().as_ref(), lease, bad).await?;
    let target = descriptor(target);
    let manifest = store::manifest(channel, name, &target, architecture).await?;
    store::unpack(channel, &manifest, Some(lease)).await?;
    name_image(channel, name, target).await
}

/// Writes a manifest, or an index of them, after everything that it names.
async fn write_tree(
    channel: &Channel,
    archive: &Archive,
    digest: &str,
    lease: &str,
    bad: &impl Fn(String) -> RuntimeError,
) -> Result<(), RuntimeError> {
    let bytes = archive.read(&archive.blob(digest)).map_err(bad)?;
    let labels = if let Ok(index) = ImageIndex::from_reader(bytes.as_slice()) {
        let children: Vec<String> = index
            .manifests()
            .iter()
            .map(|child| child.digest().to_string())
            .collect();
        for child in &children {
            Box::pin(write_tree(channel, archive, child, lease, bad)).await?;
        }
        let roles = children.iter().enumerate();
        keep_labels(roles.map(|(at, digest)| (format!("m.{at}"), digest.as_str())))
    } else {
        let manifest = ImageManifest::from_reader(bytes.as_slice())
            .map_err(|error| bad(format!("manifest {digest}: {error}")))?;
        let config = manifest.config().digest().to_string();
        let layers: Vec<String> = manifest
            .layers()
            .iter()
            .map(|layer| layer.digest().to_string())
            .collect();
        for blob in layers.iter().chain([&config]) {
            write_blob(channel, archive, blob, HashMap::new(), lease, bad).await?;
        }
        let roles = layers.iter().enumerate();
        keep_labels(
            roles
                .map(|(at, digest)| (format!("l.{at}"), digest.as_str()))
                .chain([("config".to_owned(), config.as_str())]),
        )
    };
    write_blob(channel, archive, digest, labels, lease, bad).await
}

async fn write_blob(
    channel: &Channel,
    archive: &Archive,
    digest: &str,
    labels: HashMap<String, String>,
    lease: &str,
    bad: &impl Fn(String) -> RuntimeError,
) -> Result<(), RuntimeError> {
    let name = archive.blob(digest);
    let &(start, size) = archive
        .entries
        .get(&name)
        .ok_or_else(|| bad(format!("it has no {name}")))?;
    let file = archive
        .file
        .try_clone()
        .map_err(|error| bad(error.to_string()))?;
    let total = i64::try_from(size).map_err(|_| bad(format!("{name} is too large")))?;
    let reference = format!("kernelet-import-{digest}");
    let expected = digest.to_owned();
    let commit_labels = labels.clone();
    let messages = futures::stream::unfold(Some(0u64), move |at| {
        let file = file.try_clone();
        let (reference, expected) = (reference.clone(), expected.clone());
        let labels = commit_labels.clone();
        async move {
            let at = at?;
            let mut message = WriteContentRequest {
                r#ref: reference,
                total,
                expected,
                offset: i64::try_from(at).unwrap_or(i64::MAX),
                ..WriteContentRequest::default()
            };
            if at == size {
                message.set_action(WriteAction::Commit);
                message.labels = labels;
                return Some((message, None));
            }
            let length = (size - at).min(CHUNK as u64);
            let mut data = vec![0; length as usize];
            // A short read shows as a digest that does not match, which containerd refuses with a clear message.
            let _ = file.and_then(|file| file.read_exact_at(&mut data, start + at));
            message.set_action(WriteAction::Write);
            message.data = data;
            Some((message, Some(at + length)))
        }
    });
    let fail = |status: &tonic::Status| failed(format!("write {name} of the archive"), status);
    let written = async {
        let mut replies = ContentClient::new(channel.clone())
            .write(within(LAYER_PATIENCE, request(messages, Some(lease))))
            .await?
            .into_inner();
        while replies.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    match written.await {
        Err(status) if status.code() == Code::AlreadyExists => {
            if labels.is_empty() {
                return Ok(());
            }
            store::label(channel, digest, labels)
                .await
                .map_err(|status| fail(&status))
        }
        Err(status) => Err(fail(&status)),
        Ok(()) => Ok(()),
    }
}

/// Gives the image its name, or points an existing name to it.
async fn name_image(channel: &Channel, name: &str, target: Descriptor) -> Result<(), RuntimeError> {
    let fail = |status: &tonic::Status| failed(format!("name image {name}"), status);
    let image = Image {
        name: name.to_owned(),
        target: Some(target),
        // Somebody put it here on purpose; it would be back at the next start, and is missed until then.
        labels: HashMap::from([(PINNED.0.to_owned(), PINNED.1.to_owned())]),
        ..Image::default()
    };
    let mut client = ImagesClient::new(channel.clone());
    let create = CreateImageRequest {
        image: Some(image.clone()),
        source_date_epoch: None,
    };
    match client.create(request(create, None)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => {
            let update = UpdateImageRequest {
                image: Some(image),
                update_mask: Some(FieldMask {
                    paths: vec!["target".to_owned(), format!("labels.{}", PINNED.0)],
                }),
                source_date_epoch: None,
            };
            client
                .update(request(update, None))
                .await
                .map(|_| ())
                .map_err(|status| fail(&status))
        }
        Err(status) => Err(fail(&status)),
    }
}
