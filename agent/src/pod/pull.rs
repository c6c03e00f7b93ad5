//! Getting the images of containers and of volumes.

use super::action::Action;
use super::backoff;
use super::events::Kind;
use super::image_volumes;
use super::observed::{Failure, ImageState};
use super::perform::{Outcome, failure};
use super::pull_secrets;
use super::shared::Shared;
use super::spec::PodView;
use crate::runtime::{RegistryLogin, RuntimeError};

/// So many are pulled at once: more of them only take longer each, and load the disk.
pub(super) const AT_ONCE: usize = 10;

/// An image that a pod needs.
pub(super) struct Wanted {
    /// Its name in the spec.
    pub(super) image: String,
    policy: PullPolicy,
    /// The container that Events are about; those of a volume's image are about the pod.
    container: Option<String>,
}

impl Wanted {
    /// What a planned action is to fetch, if it is there to fetch anything.
    pub(super) fn by(pod: &PodView, action: &Action) -> Option<Wanted> {
        match action {
            Action::FetchImage { container } => {
                let mut all = pod.every_container();
                let spec = all.find(|spec| spec.name == *container)?;
                let image = spec.image.clone().unwrap_or_default();
                Some(Wanted {
                    policy: pull_policy(spec.image_pull_policy.as_deref(), &image),
                    image,
                    container: Some(container.clone()),
                })
            }
            Action::FetchVolumeImage { volume } => {
                let source = image_volumes::source(pod, volume)?;
                let image = image_volumes::reference(source).to_owned();
                Some(Wanted {
                    policy: pull_policy(source.pull_policy.as_deref(), &image),
                    image,
                    container: None,
                })
            }
            _ => None,
        }
    }
}

/// Finds or pulls an image.
pub(super) async fn fetch_image(
    shared: &Shared,
    pod: &PodView,
    wanted: Wanted,
    tries: u32,
) -> Outcome {
    let state = match image_state(shared, pod, &wanted, tries).await {
        Ok(state) => state,
        Err(error) => return error.into(),
    };
    Outcome::Image {
        name: wanted.image,
        state,
    }
}

async fn image_state(
    shared: &Shared,
    pod: &PodView,
    wanted: &Wanted,
    tries: u32,
) -> Result<ImageState, RuntimeError> {
    let (name, container) = (&*wanted.image, wanted.container.as_deref());
    let tell = |kind, reason, message: String| {
        shared
            .events
            .send(&pod.id, container, kind, reason, message);
    };
    let warn = |reason, message: String| tell(Kind::Warning, reason, message);
    let mut imported = shared.archives_imported.clone();
    // The image may be in an archive that is being read. An error means that nobody imports any more.
    let _ = imported.wait_for(|done| *done).await;
    let present = match shared.runtime.image(name).await {
        Err(error @ RuntimeError::ImageName { .. }) => {
            let message = format!("Failed to apply default image tag \"{name}\": {error}");
            warn("InspectFailed", message.clone());
            let failure = Failure {
                reason: "InvalidImageName",
                message,
                tries,
                retry_at: None,
            };
            return Ok(ImageState::Failed(failure));
        }
        result => result?.is_some(),
    };
    let normal = |reason, message: String| tell(Kind::Normal, reason, message);
    match (wanted.policy, present) {
        (PullPolicy::IfNotPresent | PullPolicy::Never, true) => {
            normal(
                "Pulled",
                format!("Container image \"{name}\" already present on machine"),
            );
            return Ok(ImageState::Present);
        }
        (PullPolicy::Never, false) => {
            let message =
                format!("Container image \"{name}\" is not present with pull policy of Never");
            warn("ErrImageNeverPull", message.clone());
            return Ok(ImageState::Failed(pull_failure(
                "ErrImageNeverPull",
                message,
                tries,
            )));
        }
        (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, false) => {}
    }
    normal("Pulling", format!("Pulling image \"{name}\""));
    let begun = std::time::Instant::now();
    let (logins, unread) = pull_secrets::logins(&shared.client, pod, name).await;
    if !unread.is_empty() {
        let unread = unread.join(", ");
        warn(
            "FailedToRetrieveImagePullSecret",
            format!(
                "Unable to retrieve some image pull secrets ({unread}); attempting to pull the image may not succeed."
            ),
        );
    }
    // Nobody closes it, and without a permit the pull is only one more.
    let permit = shared.pulls.acquire().await;
    let pulled = pull(shared, name, &logins).await;
    drop(permit);
    match pulled {
        Ok(()) => {
            let took = begun.elapsed().as_millis();
            normal(
                "Pulled",
                format!("Successfully pulled image \"{name}\" in {took}ms"),
            );
            Ok(ImageState::Present)
        }
        Err(RuntimeError::Pull { reason, .. }) => {
            warn(
                "Failed",
                format!("Failed to pull image \"{name}\": {reason}"),
            );
            warn("Failed", "Error: ErrImagePull".into());
            let (reason, message) = match tries {
                1 => ("ErrImagePull", reason),
                _ => (
                    "ImagePullBackOff",
                    format!("Back-off pulling image \"{name}\": ErrImagePull: {reason}"),
                ),
            };
            normal("BackOff", format!("Back-off pulling image \"{name}\""));
            Ok(ImageState::Failed(pull_failure(reason, message, tries)))
        }
        Err(error) => Err(error),
    }
}

/// Tries one login after the other; without any the registry is asked without.
async fn pull(shared: &Shared, name: &str, logins: &[RegistryLogin]) -> Result<(), RuntimeError> {
    let mut outcome = match logins {
        [] => shared.runtime.pull(name, None).await,
        [first, ..] => shared.runtime.pull(name, Some(first)).await,
    };
    for login in logins.iter().skip(1) {
        if !matches!(outcome, Err(RuntimeError::Pull { .. })) {
            break;
        }
        outcome = shared.runtime.pull(name, Some(login)).await;
    }
    outcome.map(drop)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

fn pull_policy(policy: Option<&str>, image: &str) -> PullPolicy {
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None => {
            let last = image.rsplit('/').next().unwrap_or(image);
            let floating = last.ends_with(":latest") || !last.contains([':', '@']);
            if floating {
                PullPolicy::Always
            } else {
                PullPolicy::IfNotPresent
            }
        }
    }
}

/// A failure to get an image.
fn pull_failure(reason: &'static str, message: String, tries: u32) -> Failure {
    failure(reason, message, tries, backoff::delay(tries))
}
