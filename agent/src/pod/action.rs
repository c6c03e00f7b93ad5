//! What can be done to a pod, as values.

use jiff::Timestamp;

use super::spec::Question;

/// One thing to do. Each may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Namespaces, network, cgroup, directories and files.
    PrepareSandbox,
    /// Make the volumes, and fill those that have contents.
    PrepareVolumes,
    /// Bring the contents of volumes up to date.
    RefreshVolumes,
    /// Make sure the container's image is there.
    FetchImage { container: String },
    /// Make sure that the image of a volume is there.
    FetchVolumeImage { volume: String },
    /// Make and start the container.
    Run {
        container: String,
        attempt: u32,
        streak: u32,
    },
    /// Give running containers what the pod asks for now.
    Resize,
    /// Start a container that was made before.
    Start { id: String },
    /// Do what is to be done after a container's start.
    PostStart { id: String },
    /// Write down how a container ended.
    Reap { id: String },
    /// Do what is to be done before a container's stop, which comes after that of others.
    PreStop { id: String, until: Timestamp },
    /// Ask a container to stop, or kill it.
    Stop {
        id: String,
        how: StopHow,
        why: StopReason,
    },
    /// Remove an ended container.
    Delete { id: String },
    /// Undo [`Action::PrepareSandbox`].
    RemoveSandbox,
    /// Undo [`Action::PrepareVolumes`], once nothing of the pod runs any more.
    RemoveVolumes,
    /// Tell the API that the pod is gone from the node.
    Finish,
}

/// How a container is made to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopHow {
    /// By the signal that it or its image names; [`StopHow::Kill`] follows at this time.
    Ask {
        kill_at: Timestamp,
    },
    Kill,
}

/// Why a container is made to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod is being deleted, or its work is done.
    PodEnds,
    /// The spec of the container is another now.
    Changed,
    /// It takes notice of other resources at its start only.
    Resized,
    /// The pod has run longer than it may.
    Deadline,
    /// What it was to do after its start has failed.
    PostStartFailed,
    /// A probe says that it does not work.
    Unhealthy { question: Question, restarts: bool },
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake: Option<Timestamp>,
}

impl Plan {
    pub(super) fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

pub(super) fn add(time: Timestamp, duration: jiff::SignedDuration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}
