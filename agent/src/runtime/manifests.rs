//! The manifests of images, kept once they were read.

use std::sync::Mutex;

use containerd_client::types::Descriptor;
use tonic::transport::Channel;

use super::RuntimeError;
use super::store::{self, Manifest};

/// Configurations of images in use that are kept parsed. Nodes run few different images.
const CACHED_IMAGES: usize = 64;

/// Reads manifests for the node's architecture.
pub(super) struct Manifests {
    architecture: &'static str,
    /// By digest, which never changes its meaning.
    known: Mutex<Vec<(String, Manifest)>>,
}

impl Manifests {
    pub(super) fn new(architecture: &'static str) -> Manifests {
        Manifests {
            architecture,
            known: Mutex::default(),
        }
    }

    /// The digest that an image name stands for, and the manifest behind it.
    pub(super) async fn of(
        &self,
        channel: &Channel,
        name: &str,
    ) -> Result<Option<(String, Manifest)>, RuntimeError> {
        let Some(target) = store::find(channel, name)
            .await?
            .and_then(|image| image.target)
        else {
            return Ok(None);
        };
        let manifest = self.behind(channel, name, &target).await?;
        Ok(Some((target.digest, manifest)))
    }

    /// The manifest behind `target`, which is that of the image `name`.
    pub(super) async fn behind(
        &self,
        channel: &Channel,
        name: &str,
        target: &Descriptor,
    ) -> Result<Manifest, RuntimeError> {
        if let Ok(cache) = self.known.lock()
            && let Some((_, manifest)) = cache.iter().find(|(digest, _)| *digest == target.digest)
        {
            return Ok(manifest.clone());
        }
        let manifest = store::manifest(channel, name, target, self.architecture).await?;
        if let Ok(mut cache) = self.known.lock() {
            if cache.len() == CACHED_IMAGES {
                cache.remove(0);
            }
            cache.push((target.digest.clone(), manifest.clone()));
        }
        Ok(manifest)
    }
}
