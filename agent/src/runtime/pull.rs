//! Pulling images, through containerd's CRI image service.

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{AuthConfig, ImageSpec, PullImageRequest};
use tonic::Status;
use tonic::transport::Channel;

use super::rpc::{failed, is_transport};
use super::{RegistryLogin, RuntimeError};

/// Fetches the image of this full name from its registry; errors call it as the spec does, `reference`.
pub(super) async fn pull(
    channel: &Channel,
    name: &str,
    reference: &str,
    login: Option<&RegistryLogin>,
) -> Result<(), RuntimeError> {
    let message = PullImageRequest {
        image: Some(ImageSpec {
            image: name.to_owned(),
            ..ImageSpec::default()
        }),
        auth: login.map(|login| AuthConfig {
            username: login.username.clone(),
            password: login.password.clone(),
            ..AuthConfig::default()
        }),
        sandbox_config: None,
    };
    ImageServiceClient::new(channel.clone())
        .pull_image(message)
        .await
        .map_err(|status| pull_failure(reference, &status))?;
    Ok(())
}

/// The error of an image that was not pulled. A pull has no end of its own here: when time was up, it was the registry's.
pub(super) fn pull_failure(image: &str, status: &Status) -> RuntimeError {
    if is_transport(status) {
        return failed("pull", status);
    }
    RuntimeError::Pull {
        image: image.to_owned(),
        reason: status.message().to_owned(),
    }
}
