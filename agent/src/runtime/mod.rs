//! Containers and images through containerd, behind one small trait.
//!
//! [`Runtime`] is all that the pod half knows of a runtime. [`containerd::Containerd`] is the real one. What a container
//! is to look like is computed by pure functions ([`oci`], [`image`]); the rest performs it.
//!
//! Nothing about a container is kept in the agent's memory only: who it belongs to, which attempt it is and how it ended
//! are labels on containerd's record of it, so [`Runtime::list`] rebuilds everything after a crash.

mod accounts;
mod attach;
pub mod cgroup;
pub mod containerd;
pub mod cpu;
mod devices;
mod events;
mod exec;
mod handlers;
pub mod host;
pub mod idmap;
pub mod image;
mod image_volumes;
mod images;
mod import;
mod labels;
pub mod log_pipe;
mod manifests;
mod mapped_root;
pub mod memory;
pub mod oci;
mod process;
mod pull;
mod record;
mod rpc;
mod seccomp;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::network::namespaces::IdRange;
pub use attach::{Output, OutputStream};
pub use handlers::Handler;
pub use image::{Image, ImageConfig, ImageSummary};

/// What the pod half asks of a container runtime. Every method is idempotent: asked again after a crash, it finishes
/// what was begun and gives the same answer.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Name and version, as `containerd://1.6.20`; also the check that the runtime answers.
    async fn version(&self) -> Result<String, RuntimeError>;

    /// By what names, and how, it can run containers.
    async fn handlers(&self) -> Result<Vec<Handler>, RuntimeError>;

    /// The image of this name, if it is present.
    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError>;
    /// Fetches an image from its registry.
    async fn pull(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
    ) -> Result<Image, RuntimeError>;
    /// Takes in every image of an OCI archive; gives their names.
    async fn import(&self, archive: &Path) -> Result<Vec<String>, RuntimeError>;
    /// Every image, once.
    async fn images(&self) -> Result<Vec<ImageSummary>, RuntimeError>;
    /// Removes every name of the image with this digest, and what nothing else needs of it.
    async fn remove_image(&self, digest: &str) -> Result<(), RuntimeError>;
    /// The directories of which the file system of an image is made, the topmost first, for a volume of a pod. The image and
    /// they stay until they are released.
    async fn image_layers(
        &self,
        reference: &str,
        volume: &ImageVolume,
    ) -> Result<Vec<PathBuf>, RuntimeError>;
    /// Releases the images of a pod's volumes, which are mounted no more.
    async fn release_images(&self, pod_uid: &str) -> Result<(), RuntimeError>;
    /// The uids of the pods for whose volumes images are held.
    async fn image_holders(&self) -> Result<BTreeSet<String>, RuntimeError>;
    /// Where images and containers' writable layers are; `None` where the runtime does not say.
    async fn image_directory(&self) -> Result<Option<PathBuf>, RuntimeError>;
    /// What a container has written; `None` when there is no such container.
    async fn written(&self, id: &str) -> Result<Option<DiskUsage>, RuntimeError>;

    /// Makes a container that does not run yet.
    async fn create(&self, config: &ContainerConfig) -> Result<Container, RuntimeError>;
    /// Runs a container that was made. Its output goes to `log`. A failure of the container itself, rather than of the
    /// runtime, is [`RuntimeError::Start`].
    async fn start(&self, id: &str, log: &Path) -> Result<ContainerState, RuntimeError>;
    /// What became of a container by now; `None` when there is no such container.
    async fn state(&self, id: &str) -> Result<Option<ContainerState>, RuntimeError>;
    /// Sends a signal to the container's first process. A process that is gone already is no error.
    async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError>;
    /// Gives a running container other limits.
    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError>;
    /// Writes down what a container was given.
    async fn note(&self, id: &str, given: &str) -> Result<(), RuntimeError>;
    /// Writes down how a container ended and lets go of what its process held.
    async fn reap(&self, id: &str) -> Result<ContainerState, RuntimeError>;
    /// Writes down that a container could not be started.
    async fn record_failure(&self, id: &str, exit: &Exit) -> Result<ContainerState, RuntimeError>;
    /// Writes down that what was to be done after a container's start is done.
    async fn note_hook(&self, id: &str) -> Result<(), RuntimeError>;
    /// Removes a container that does not run, and its root file system.
    async fn delete(&self, id: &str) -> Result<(), RuntimeError>;
    /// Every container that an agent made, whatever its state.
    async fn list(&self) -> Result<Vec<Container>, RuntimeError>;

    /// Runs a command in a running container and waits for its end, at most for `timeout`.
    async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: std::time::Duration,
    ) -> Result<ExecResult, RuntimeError>;

    /// Starts a command in a running container, and gives its streams. Whoever does that waits for its end, and removes it.
    async fn start_command(
        &self,
        id: &str,
        command: &Command,
    ) -> Result<(Process, Streams), RuntimeError>;
    /// Tells a process's terminal its size.
    async fn resize(&self, process: &Process, size: TerminalSize) -> Result<(), RuntimeError>;
    /// Ends what a process reads, once whoever writes it has closed it, too.
    async fn close_stdin(&self, process: &Process) -> Result<(), RuntimeError>;
    /// Sends a signal to a process. One that is gone already is no error.
    async fn signal_process(&self, process: &Process, signal: i32) -> Result<(), RuntimeError>;
    /// Waits for a process's end; gives its exit code.
    async fn wait(&self, process: &Process) -> Result<i32, RuntimeError>;
    /// Follows the output of a running container's first process, of which `log` is kept, and gives its input, if it has
    /// one.
    async fn attach(&self, id: &str, log: &Path) -> Result<Attached, RuntimeError>;
    /// Lets go of a command that has ended; what it has written can still be read.
    async fn remove_command(&self, process: &Process);

    /// Starts to listen to the runtime's events. The stream ends with its receiver.
    fn events(&self) -> mpsc::Receiver<RuntimeEvent>;
}

/// A volume of a pod that is an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVolume {
    pub pod_uid: String,
    /// Its name in the pod's spec.
    pub name: String,
}

/// Room on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// What happened, told without detail: whoever hears it looks at the container itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// Listening began, at first or after the connection was lost: whatever came before may have been missed.
    Listening,
    /// The container's first process ended.
    Exited { id: String },
}

/// The pod that a container belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// A container that an agent made, as the runtime remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub pod: PodRef,
    /// Its name in the pod's spec.
    pub name: String,
    /// How many containers of this name the pod had before it.
    pub attempt: u32,
    /// How many restarts in a row, this one included, came soon after a start; the back-off follows from it.
    pub streak: u32,
    /// Identifies the part of the pod's spec it was made from.
    pub spec_hash: String,
    /// The image as the spec names it.
    pub image: String,
    /// `name@digest` of the image.
    pub image_id: String,
    /// What it was given, in the words of whoever made it.
    pub given: String,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// Whom its first process runs as at its start; unknown of those that older agents made.
    pub user: Option<ContainerUser>,
    pub created_at: Timestamp,
    /// It was made before the machine was last started.
    pub earlier_boot: bool,
    /// Something is to be done after its start, and nobody wrote down that it is.
    pub hook_due: bool,
    pub state: ContainerState,
}

/// Whom a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUser {
    pub uid: u32,
    pub gid: u32,
    /// The primary group among them, in order.
    pub groups: Vec<u32>,
}

/// Where a container is in its life.
///
/// ```text
/// Created -> Running -> Stopped -> Exited
///    \__________________________/
///          could not be started
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    Running {
        pid: u32,
    },
    /// Its process ended, how if that is known, and that is not written down yet: reap it.
    Stopped(Option<Exit>),
    /// It ended, or never could start, and that is written down.
    Exited(Exit),
}

impl ContainerState {
    /// How it ended, if it did and that is known.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            ContainerState::Stopped(exit) => exit.as_ref(),
            ContainerState::Exited(exit) => Some(exit),
            ContainerState::Created | ContainerState::Running { .. } => None,
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + n when signal n ended it.
    pub code: i32,
    pub at: Timestamp,
    pub cause: ExitCause,
    /// What is known beyond the code; empty if nothing.
    pub message: String,
}

/// Why a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// Its process ended.
    Process,
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// It could not be started.
    Start,
    /// Its end was not seen: the machine restarted meanwhile.
    Unknown,
}

/// What a command in a container gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecResult {
    pub code: i32,
    /// Standard output and standard error, at most the first 10 KiB.
    pub output: String,
}

/// A command that is to run in a container, with streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub args: Vec<String>,
    /// On a terminal of its own, which has no stderr.
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Command {
    fn has_stderr(&self) -> bool {
        self.stderr && !self.tty
    }
}

/// A process in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The container's id.
    pub container: String,
    /// The runtime's id of a command that was started later; empty for the container's first process.
    pub exec: String,
}

/// The streams of a process that were asked for.
#[derive(Debug)]
pub struct Streams {
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

/// The streams of a container's first process.
#[derive(Debug)]
pub struct Attached {
    pub output: Output,
    pub stdin: Option<pipe::Sender>,
    pub stdio: Stdio,
}

/// What a container's first process has besides its outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: bool,
    /// The input ends with the first client that writes it.
    pub stdin_once: bool,
    pub tty: bool,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// User name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    pub username: String,
    pub password: String,
}

/// Everything that makes a container, free of Kubernetes' types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerConfig {
    pub id: String,
    pub pod: PodRef,
    pub name: String,
    pub attempt: u32,
    pub streak: u32,
    pub spec_hash: String,
    /// With what it runs, if not with the default.
    pub handler: Option<Handler>,
    /// The image as the spec names it. Without one the container is empty but for its mounts, of which one has the command,
    /// and its output is lost.
    pub image: Option<String>,
    /// Replaces the image's entrypoint, and its arguments too.
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    pub args: Vec<String>,
    /// Added to the image's environment; a later entry replaces an earlier one of the same name.
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub mounts: Vec<BindMount>,
    pub namespaces: NamespacePaths,
    /// Below the root of each cgroup hierarchy.
    pub cgroup: PathBuf,
    pub resources: Resources,
    /// By the size of a page, how much memory of such pages it may have; all in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    /// What `resources` come from, kept for whoever asks.
    pub given: String,
    pub oom_score_adj: i32,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    pub security: Security,
    pub stdio: Stdio,
    /// The name of the signal that asks it to stop, in place of the one that its image names.
    pub stop_signal: Option<String>,
    /// Something is to be done after its start; see [`Runtime::note_hook`].
    pub hook_due: bool,
}

/// A file or directory of the node that the container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindMount {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
    /// What is mounted below it is read-only, too.
    pub is_recursive: bool,
    /// Nothing in it runs as a program.
    pub no_exec: bool,
    /// No program in it runs as its owner.
    pub no_suid: bool,
    /// Nothing in it is a device.
    pub no_dev: bool,
    pub propagation: Propagation,
}

/// Who sees what is mounted later below a directory of the node that a container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Propagation {
    /// Only who mounts it.
    #[default]
    None,
    /// The container sees what the node mounts.
    FromNode,
    /// And the node what the container mounts.
    Both,
}

/// Namespaces that the container joins; without a path it has the node's, and a process namespace of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// It sees the node's processes.
    pub host_pid: bool,
    pub pid: Option<PathBuf>,
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// Whose numbers of users and groups it has; it owns the other three, then.
    pub users: Option<Users>,
}

/// The user namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    pub namespace: PathBuf,
    pub ids: IdRange,
}

/// Limits, in the units of the kernel's cgroup files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, 1024 for a whole CPU.
    pub cpu_shares: u64,
    /// Microseconds of CPU in each period of 100 ms.
    pub cpu_quota_us: Option<i64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
}

/// What the container's processes may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// It is in no group only because its image says so (KEP-3619).
    pub strict_groups: bool,
    /// Refuse to run as user 0.
    pub run_as_non_root: bool,
    pub read_only_root: bool,
    pub privileged: bool,
    pub allow_privilege_escalation: bool,
    /// Names without `CAP_`; `ALL` stands for every one.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub seccomp: Seccomp,
    /// The profile of the node that confines it, where it is confined.
    pub app_armor: Option<String>,
    /// Where it asks for one. A kernel without SELinux takes no notice, as under upstream.
    pub selinux: Option<SelinuxLabel>,
}

/// By what SELinux knows a container: its processes, and its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelinuxLabel {
    pub process: String,
    pub files: String,
}

/// How a container's system calls are filtered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    Unconfined,
    /// With the agent's own profile.
    RuntimeDefault,
    /// With a profile in the form of the OCI runtime specification, as JSON.
    Profile(String),
}

/// Why the runtime did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nothing answers at the socket; a retry may succeed once the runtime is back.
    #[error("containerd does not answer at {socket}: {reason}; is it running?")]
    Unreachable { socket: PathBuf, reason: String },
    /// No answer came in time; a retry may succeed once the runtime is itself again.
    #[error("cannot {action}: containerd gave no answer in time")]
    Late { action: String },
    /// The runtime answered with an error; a retry may help.
    #[error("cannot {action}: {reason}")]
    Failed { action: String, reason: String },
    /// The container's process cannot be started as its config asks; another attempt would need another config.
    #[error("{0}")]
    Start(String),
    /// The config cannot be honoured; no retry helps before the pod or its image changes.
    #[error("{0}")]
    Config(String),
    /// A command in a container took too long, and was killed.
    #[error("command {command:?} did not end within {timeout:?}")]
    ExecTimeout {
        command: Vec<String>,
        timeout: std::time::Duration,
    },
    /// A registry did not give the image.
    #[error("failed to pull image {image:?}: {reason}")]
    Pull { image: String, reason: String },
    /// The name is not that of an image.
    #[error("{name:?} is not an image name: {reason}")]
    ImageName { name: String, reason: &'static str },
    #[error("cannot import {}: {reason}", archive.display())]
    Archive { archive: PathBuf, reason: String },
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }
}

impl Resources {
    /// What those that ask for nothing may use beside others that do.
    pub const LEAST: Resources = Resources {
        cpu_shares: 2,
        cpu_quota_us: None,
        memory_limit: None,
    };

    /// What is enough for either.
    pub fn or_more(&self, other: &Resources) -> Resources {
        let more = |one: Option<i64>, other: Option<i64>| Some(one?.max(other?));
        Resources {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_quota_us: more(self.cpu_quota_us, other.cpu_quota_us),
            memory_limit: more(self.memory_limit, other.memory_limit),
        }
    }
}

impl RuntimeError {
    /// Whether the runtime itself was away, so that the same request may be made again unchanged.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            RuntimeError::Unreachable { .. } | RuntimeError::Late { .. }
        )
    }
}
