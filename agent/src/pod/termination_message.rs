//! The termination message of a container that ended, for its status.

use std::path::Path;

use k8s_openapi::api::core::v1::Container as ContainerSpec;

use super::paths::Paths;
use crate::runtime::{Container, Exit, log_pipe};

/// How much of it is kept, in bytes, as upstream.
const LIMIT: usize = 4096;

/// What the container wrote; without that, where the spec asks for that, the end of its log.
pub(super) fn read(
    paths: &Paths,
    spec: Option<&ContainerSpec>,
    container: &Container,
    exit: &Exit,
) -> String {
    let (pod, name, attempt) = (&container.pod, &container.name, container.attempt);
    let message = tail(&paths.termination_log(&pod.uid, name, attempt));
    let falls_back = spec.is_some_and(|spec| {
        spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
    });
    if !message.is_empty() || !falls_back || exit.code == 0 {
        return message;
    }
    let logs = log_pipe::files(&paths.log(pod, name, attempt));
    logs.last().map(|file| tail(file)).unwrap_or_default()
}

fn tail(path: &Path) -> String {
    use std::os::unix::fs::FileExt;
    let Ok(file) = std::fs::File::open(path) else {
        return String::new();
    };
    let size = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; LIMIT.min(usize::try_from(size).unwrap_or(LIMIT))];
    match file.read_at(&mut bytes, size.saturating_sub(LIMIT as u64)) {
        Ok(count) => String::from_utf8_lossy(&bytes[..count]).into_owned(),
        Err(_) => String::new(),
    }
}
