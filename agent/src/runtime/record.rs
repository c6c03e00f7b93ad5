//! What containerd's records say of a container.

use containerd_client::services::v1::Container as StoredContainer;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use jiff::Timestamp;

use super::{Container, ContainerState, Exit, ExitCause, labels};

/// A container from containerd's record of it and its task. `out_of_memory` says of a cgroup whether the kernel killed a
/// process there for want of memory.
pub(super) fn container(
    stored: &StoredContainer,
    task: Option<&Process>,
    boot_id: &str,
    out_of_memory: impl FnOnce(&str) -> bool,
) -> Option<Container> {
    let identity = labels::read(&stored.labels)?;
    let state = match (identity.exit, task) {
        (Some(exit), None) => ContainerState::Exited(exit),
        // The end is written down, its task not yet removed.
        (Some(exit), Some(_)) => ContainerState::Stopped(Some(exit)),
        (None, Some(task)) => match task.status() {
            TaskStatus::Stopped => {
                ContainerState::Stopped(Some(exit(task, out_of_memory(&identity.cgroup))))
            }
            // Its shim does not answer at present; whether it died shows soon.
            TaskStatus::Unknown if labels::is_started(&stored.labels) => {
                ContainerState::Running { pid: task.pid }
            }
            TaskStatus::Created | TaskStatus::Unknown => ContainerState::Created,
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => {
                ContainerState::Running { pid: task.pid }
            }
        },
        // Its shim died, and its process with it.
        (None, None) if labels::is_started(&stored.labels) => ContainerState::Stopped(None),
        // Made in an earlier boot: it may have run, and runs no more.
        (None, None) if identity.boot_id != boot_id => ContainerState::Stopped(None),
        (None, None) => ContainerState::Created,
    };
    Some(Container {
        id: stored.id.clone(),
        pod: identity.pod,
        name: identity.name,
        attempt: identity.attempt,
        streak: identity.streak,
        spec_hash: identity.spec_hash,
        image: identity.image,
        image_id: identity.image_id,
        given: identity.given,
        stop_signal: identity.stop_signal,
        user: identity.user,
        created_at: stored.created_at.map_or(Timestamp::UNIX_EPOCH, timestamp),
        earlier_boot: identity.boot_id != boot_id,
        hook_due: identity.hook_due,
        state,
    })
}

/// How the process of a task ended. The counters of its cgroup are there until the task is removed.
pub(super) fn exit(task: &Process, out_of_memory: bool) -> Exit {
    Exit {
        code: i32::try_from(task.exit_status).unwrap_or(255),
        at: task.exited_at.map_or_else(Timestamp::now, timestamp),
        cause: match out_of_memory && task.exit_status != 0 {
            true => ExitCause::OutOfMemory,
            false => ExitCause::Process,
        },
        message: String::new(),
    }
}

/// The end of a container whose end nobody saw.
pub(super) fn unseen() -> Exit {
    Exit {
        code: 137,
        at: Timestamp::now(),
        cause: ExitCause::Unknown,
        message: "The container could not be located when the pod was looked at".into(),
    }
}

/// A time as containerd writes it.
pub(super) fn timestamp(time: prost_types::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, time.nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}
