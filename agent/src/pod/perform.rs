//! Performing actions. What an action came to is told; what to do about it, the next plan decides.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Volume};
use tokio::sync::mpsc::UnboundedSender;

use super::action::{StopHow, StopReason};
use super::backoff;
use super::config::{self, Parts};
use super::env::{self, Context};
use super::ephemeral;
use super::events::Kind;
use super::holder;
use super::hooks;
use super::hosts;
use super::image_volumes;
use super::observed::{
    CREATE_ERROR, Contents, Failure, ImageState, Observed, RUN_ERROR, Sandbox, StopHook, Volumes,
};
use super::paths::Paths;
use super::refusals::refusals;
use super::runtime_class;
use super::sandbox;
use super::seccomp;
use super::service_env;
use super::shared::Shared;
use super::spec::PodView;
use super::volumes::{self, ReadContents, VolumeError};
use super::{resize, resources};
use crate::runtime::memory::MemoryHierarchy;
use crate::runtime::{
    Container, ContainerState, Exit, ExitCause, Handler, PodRef, Resources, RuntimeError, log_pipe,
};

/// What came of an action.
#[derive(Debug)]
pub(super) enum Outcome {
    Prepared {
        sandbox: Sandbox,
        handler: Option<Handler>,
    },
    SandboxGone,
    /// Those that were made have contents as of now.
    Volumes(Volumes, Contents),
    Image {
        name: String,
        state: ImageState,
    },
    Container(Container),
    State {
        id: String,
        state: ContainerState,
    },
    /// The container could not be made.
    Failed {
        container: String,
        failure: Failure,
    },
    /// The runtime did not answer in time: the same is to be tried again.
    Late {
        container: String,
        failure: Failure,
    },
    Deleted {
        id: String,
    },
    /// What is to be done after its start has begun.
    Hooked {
        id: String,
    },
    /// Containers have other limits now: by id, with the note of it; and why not all of them.
    Resized {
        given: Vec<(String, String)>,
        failure: Option<Failure>,
    },
    /// It was asked to stop.
    Stopping {
        id: String,
        how: StopHow,
        why: StopReason,
        hook: StopHook,
    },
    /// Nothing came of it; the same action is worth another try after a while.
    Trouble(String),
}

impl From<RuntimeError> for Outcome {
    fn from(error: RuntimeError) -> Outcome {
        Outcome::Trouble(error.to_string())
    }
}

pub(super) async fn prepare_sandbox(
    shared: &Shared,
    pod: &PodView,
    observed: &Observed,
) -> Outcome {
    let tries = match &observed.sandbox {
        Sandbox::Failed(failure) => failure.tries + 1,
        _ => 1,
    };
    let settings = &shared.settings;
    let dns = (settings.dns)();
    let prepare = async {
        let handler = runtime_class::handler(shared, pod).await;
        let handler = handler.map_err(|error| error.to_string())?;
        let prepared = sandbox::prepare(
            shared.network.as_ref(),
            &dns,
            settings,
            pod,
            // Its containers may run already, with more than it asks for now.
            resize::while_changing(pod, observed),
        );
        let addresses = prepared.await.map_err(|error| error.to_string())?;
        Ok::<_, String>((addresses, handler))
    };
    match prepare.await {
        Ok((addresses, handler)) => Outcome::Prepared {
            sandbox: Sandbox::Ready { addresses },
            handler,
        },
        Err(why) => {
            let message = format!("Failed to create pod sandbox: {why}");
            let reason = "FailedCreatePodSandBox";
            shared
                .events
                .send(&pod.id, None, Kind::Warning, reason, &message);
            Outcome::Prepared {
                sandbox: Sandbox::Failed(set_up_failure("ContainerCreating", message, tries)),
                handler: None,
            }
        }
    }
}

pub(super) async fn prepare_volumes(
    shared: &Shared,
    pod: &PodView,
    observed: &Observed,
) -> Outcome {
    let tries = match &observed.volumes {
        Volumes::Failed(failure) => failure.tries + 1,
        _ => 1,
    };
    match make(shared, pod, observed).await {
        Ok(again) => {
            let contents = again.map_or(Contents::Unknown, Contents::FreshUntil);
            Outcome::Volumes(Volumes::Ready, contents)
        }
        Err(error) => {
            let message = error.to_string();
            let events = &shared.events;
            events.send(&pod.id, None, Kind::Warning, "FailedMount", error.told());
            let failure = set_up_failure("ContainerCreating", message, tries);
            Outcome::Volumes(Volumes::Failed(failure), Contents::Unknown)
        }
    }
}

/// What volumes shall show, as it was read.
#[derive(Debug)]
pub(super) struct Read {
    pod: Arc<PodView>,
    volumes: Vec<(Volume, Result<ReadContents, VolumeError>)>,
}

/// Reads what is in those of the pod's volumes that have contents.
pub(super) async fn read_volumes(shared: &Shared, pod: Arc<PodView>, sandbox: &Sandbox) -> Read {
    let context = context(shared, &pod, sandbox);
    let sources = sources(shared);
    let mut read = Vec::new();
    let all = pod.spec().volumes.iter().flatten();
    for volume in all.filter(|volume| volumes::has_contents(volume)) {
        let contents = volumes::read(&sources, &context, volume).await;
        read.push((volume.clone(), contents));
    }
    Read { pod, volumes: read }
}

/// Writes it; says when to look again. What could not be read stays as it was, and is tried again when all is looked at the
/// next time.
pub(super) fn write_volumes(shared: &Shared, read: Read) -> Timestamp {
    let (pod, paths) = (&read.pod, &shared.settings.paths);
    let mut first = volumes::look_again(&pod.id.uid, Timestamp::now());
    for (volume, contents) in read.volumes {
        let written = contents.and_then(|contents| volumes::write(pod, paths, &volume, &contents));
        match written {
            Ok(at) => first = first.min(at),
            Err(error) => tracing::warn!(
                pod = pod.id.name,
                namespace = pod.id.namespace,
                %error,
                "a volume's contents stay as they are"
            ),
        }
    }
    first
}

fn sources(shared: &Shared) -> volumes::Sources<'_> {
    volumes::Sources {
        client: &shared.client,
        tokens: &shared.tokens,
    }
}

/// Makes the pod's volumes; says when contents have to be looked at again.
async fn make(
    shared: &Shared,
    pod: &PodView,
    observed: &Observed,
) -> Result<Option<Timestamp>, VolumeError> {
    let (context, sources) = (context(shared, pod, &observed.sandbox), sources(shared));
    let paths = &shared.settings.paths;
    let mut first: Option<Timestamp> = None;
    for volume in pod.spec().volumes.iter().flatten() {
        let again = volumes::prepare(&sources, &context, paths, volume).await?;
        first = first.into_iter().chain(again).min();
    }
    Ok(first)
}

/// What fields of the pod and its node stand for.
fn context<'a>(shared: &'a Shared, pod: &'a PodView, sandbox: &'a Sandbox) -> Context<'a> {
    let settings = &shared.settings;
    let addresses: &[IpAddr] = match sandbox {
        Sandbox::Ready { .. } if pod.host_network() => &settings.host_addresses,
        Sandbox::Ready { addresses } => addresses,
        _ => &[],
    };
    Context {
        pod,
        node_name: &settings.node_name,
        addresses,
        host_addresses: &settings.host_addresses,
        allocatable: &settings.allocatable,
    }
}

/// Makes and starts a container.
pub(super) async fn run_container(
    shared: &Shared,
    pod: &PodView,
    spec: &ContainerSpec,
    observed: &Observed,
    attempt: u32,
    streak: u32,
) -> Outcome {
    if holder::is_one(&spec.name) {
        return run_holder(shared, pod, spec, observed, attempt, streak).await;
    }
    let tries = observed.tries(&spec.name) + 1;
    let fail = |reason, message: String, final_: bool| {
        shared.events.send(
            &pod.id,
            Some(&spec.name),
            Kind::Warning,
            "Failed",
            format!("Error: {message}"),
        );
        let mut failure = set_up_failure(reason, message, tries);
        if final_ {
            failure.retry_at = None;
        }
        Outcome::Failed {
            container: spec.name.clone(),
            failure,
        }
    };
    let refused = refusals(pod, spec);
    if !refused.is_empty() {
        return fail("CreateContainerConfigError", refused.join("; "), true);
    }
    if attempt > 0 {
        // The container before may have been given something else.
        let either = resize::while_changing(pod, observed);
        if let Err(error) = sandbox::limit_to(&shared.settings, either).await {
            return fail(CREATE_ERROR, error.to_string(), false);
        }
    }
    // Somebody may have removed it since: under the kubelet, the runtime makes it anew.
    let volumes = pod.spec().volumes.iter().flatten();
    let paths = &shared.settings.paths;
    let is_gone = |volume: &Volume| {
        let mut mounts = spec.volume_mounts.iter().flatten();
        volume.image.is_none()
            && mounts.any(|mount| mount.name == volume.name)
            && !volumes::path(paths, &pod.id.uid, volume).exists()
    };
    if volumes.into_iter().any(is_gone) {
        let prepared = prepare_volumes(shared, pod, observed).await;
        if !matches!(prepared, Outcome::Volumes(Volumes::Ready, _)) {
            return prepared;
        }
    }
    let context = context(shared, pod, &observed.sandbox);
    let services = service_env::of(&shared.settings.cluster, pod).await;
    let env = match env::resolve(&shared.client, &context, services, spec).await {
        Ok(env) => env,
        Err(error) => return fail("CreateContainerConfigError", error.to_string(), false),
    };
    let shared_with = pod.holder.as_ref().map(|_| holder::NAME);
    let processes = match shared_with.or_else(|| ephemeral::target(pod, &spec.name)) {
        None => None,
        Some(target) => match processes_of(shared, observed, target).await {
            Ok(Some(processes)) => Some(processes),
            Ok(None) => {
                let text = format!("target container {target} does not run");
                return fail("CreateContainerError", text, false);
            }
            Err(error) => return error.into(),
        },
    };
    let seccomp = match seccomp::of(pod, spec, &shared.settings.paths) {
        Ok(seccomp) => seccomp,
        Err(error) => return fail(CREATE_ERROR, error.to_string(), false),
    };
    let parts = Parts {
        pod,
        container: spec,
        id: observed.next_id(&pod.id.uid, &spec.name, attempt),
        attempt,
        streak,
        env,
        paths: &shared.settings.paths,
        node_memory: shared.node_memory,
        hostname: hosts::machine_name(pod, &(shared.settings.dns)().domain),
        processes: processes.as_ref().map(|held| held.path.clone()),
        seccomp,
        handler: observed.handler.clone(),
    };
    match image_volumes::mount(shared, pod, spec).await {
        Ok(()) => {}
        Err(error) if error.is_unreachable() => {
            return unreachable(shared, pod, &spec.name, CREATE_ERROR, error, tries);
        }
        Err(error) => return fail(CREATE_ERROR, error.to_string(), false),
    }
    let config = match config::container(parts) {
        Ok(config) => config,
        Err(error) => return fail("CreateContainerConfigError", error.to_string(), false),
    };
    let message = shared
        .settings
        .paths
        .termination_log(&pod.id.uid, &spec.name, attempt);
    if let Err(error) = touch(&message) {
        return fail(
            "CreateContainerConfigError",
            format!("cannot write {}: {error}", message.display()),
            false,
        );
    }
    let made = match shared.runtime.create(&config).await {
        Ok(made) => made,
        Err(error) if error.is_unreachable() => {
            return unreachable(shared, pod, &spec.name, CREATE_ERROR, error, tries);
        }
        Err(RuntimeError::Config(reason)) => {
            return fail("CreateContainerConfigError", reason, false);
        }
        Err(error) => return fail(CREATE_ERROR, error.to_string(), false),
    };
    shared.events.send(
        &pod.id,
        Some(&spec.name),
        Kind::Normal,
        "Created",
        format!("Created container: {}", spec.name),
    );
    match start_container(shared, pod, &made).await {
        Ok(state) => Outcome::Container(Container { state, ..made }),
        // It is made; starting it is the next plan's first thing.
        Err(_) => Outcome::Container(made),
    }
}

/// A process namespace that is held for as long as this is.
struct Processes {
    path: PathBuf,
    _file: fs::File,
}

/// The process namespace of a container that runs. The process that it is named by may end at any time, and another one
/// have its id: so the namespace is opened, and only then is it seen whether the container still runs. That of a holder is
/// named by its process, as each container that has joined it goes with it, and may be started by another agent than this.
async fn processes_of(
    shared: &Shared,
    observed: &Observed,
    name: &str,
) -> Result<Option<Processes>, RuntimeError> {
    let Some(pid) = running_pid(shared, observed, name).await? else {
        return Ok(None);
    };
    let of_process = PathBuf::from(format!("/proc/{pid}/ns/pid"));
    let Ok(file) = fs::File::open(&of_process) else {
        return Ok(None);
    };
    if running_pid(shared, observed, name).await? != Some(pid) {
        return Ok(None);
    }
    let path = match holder::is_one(name) {
        true => of_process,
        false => format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into(),
    };
    Ok(Some(Processes { path, _file: file }))
}

/// The first process of a container as of now: one that has ended may have given its id to another.
async fn running_pid(
    shared: &Shared,
    observed: &Observed,
    name: &str,
) -> Result<Option<u32>, RuntimeError> {
    let Some(container) = observed.latest(name) else {
        return Ok(None);
    };
    let state = shared.runtime.state(&container.id).await?;
    Ok(match state {
        Some(ContainerState::Running { pid }) => Some(pid),
        _ => None,
    })
}

/// Makes and starts what holds the process namespace of the pod's containers.
async fn run_holder(
    shared: &Shared,
    pod: &PodView,
    spec: &ContainerSpec,
    observed: &Observed,
    attempt: u32,
    streak: u32,
) -> Outcome {
    let fail = |message: String| {
        let (events, tries) = (&shared.events, observed.tries(&spec.name) + 1);
        let reason = "FailedCreatePodSandBox";
        events.send(&pod.id, None, Kind::Warning, reason, &message);
        Outcome::Failed {
            container: spec.name.clone(),
            failure: set_up_failure("ContainerCreating", message, tries),
        }
    };
    if attempt > 0 {
        let text = "Pod sandbox changed, it will be killed and re-created.";
        let events = &shared.events;
        events.send(&pod.id, None, Kind::Normal, "SandboxChanged", text);
    }
    let paths = &shared.settings.paths;
    if let Err(error) = holder::install(paths) {
        return fail(format!(
            "cannot write {}: {error}",
            paths.holder().display()
        ));
    }
    let id = observed.next_id(&pod.id.uid, &spec.name, attempt);
    let handler = observed.handler.clone();
    let config = holder::config(pod, spec, id, attempt, streak, handler, paths);
    let made = match shared.runtime.create(&config).await {
        Ok(made) => made,
        Err(error) if error.is_unreachable() => return error.into(),
        Err(error) => return fail(error.to_string()),
    };
    match start_container(shared, pod, &made).await {
        Ok(state) => Outcome::Container(Container { state, ..made }),
        // It is made; starting it is the next plan's first thing.
        Err(_) => Outcome::Container(made),
    }
}

/// Starts a container that was made. One that cannot be started has ended.
pub(super) async fn start_container(
    shared: &Shared,
    view: &PodView,
    container: &Container,
) -> Result<ContainerState, RuntimeError> {
    let pod = &view.id;
    let log = shared
        .settings
        .paths
        .log(pod, &container.name, container.attempt);
    let warn = |text: String| {
        let (field, reason) = match holder::is_one(&container.name) {
            true => (None, "FailedCreatePodSandBox"),
            false => (Some(&*container.name), "Failed"),
        };
        let events = &shared.events;
        events.send(pod, field, Kind::Warning, reason, text);
    };
    match shared.runtime.start(&container.id, &log).await {
        // Nobody has asked for it.
        Ok(state) if holder::is_one(&container.name) => Ok(state),
        Ok(state) => {
            let text = format!("Started container {}", container.name);
            shared
                .events
                .send(pod, Some(&container.name), Kind::Normal, "Started", text);
            Ok(state)
        }
        Err(RuntimeError::Start(reason)) => {
            warn(format!("Error: {reason}"));
            let exit = Exit {
                code: 128,
                at: Timestamp::now(),
                cause: ExitCause::Start,
                message: reason,
            };
            shared.runtime.record_failure(&container.id, &exit).await
        }
        Err(error) => {
            if !error.is_unreachable() {
                warn(format!("Error: {error}"));
            }
            Err(error)
        }
    }
}

/// What comes of a runtime that was not there: people are told of one that hangs; one that is away is back soon.
fn unreachable(
    shared: &Shared,
    pod: &PodView,
    container: &str,
    reason: &'static str,
    error: RuntimeError,
    tries: u32,
) -> Outcome {
    if !matches!(error, RuntimeError::Late { .. }) || holder::is_one(container) {
        return error.into();
    }
    let text = format!("Error: {error}");
    let events = &shared.events;
    events.send(&pod.id, Some(container), Kind::Warning, "Failed", text);
    Outcome::Late {
        container: container.to_owned(),
        failure: set_up_failure(reason, error.to_string(), tries),
    }
}

/// Starts a container that was made earlier. One that the runtime does not start for reasons of its own is removed, to
/// be made anew: nothing of it ever ran.
pub(super) async fn start_made(
    shared: &Shared,
    pod: &PodView,
    container: &Container,
    observed: &Observed,
) -> Outcome {
    let error = match start_container(shared, pod, container).await {
        Ok(state) => {
            return Outcome::State {
                id: container.id.clone(),
                state,
            };
        }
        Err(error) if error.is_unreachable() => {
            let (name, tries) = (&container.name, observed.tries(&container.name) + 1);
            return unreachable(shared, pod, name, RUN_ERROR, error, tries);
        }
        Err(error) => error,
    };
    // Refused if it runs after all, which is seen at the next look.
    if let Err(error) = shared.runtime.delete(&container.id).await {
        return error.into();
    }
    Outcome::Failed {
        container: container.name.clone(),
        failure: set_up_failure(
            RUN_ERROR,
            error.to_string(),
            observed.tries(&container.name) + 1,
        ),
    }
}

pub(super) async fn stop_container(
    shared: &Shared,
    pod: &PodRef,
    view: Option<&PodView>,
    observed: &Observed,
    container: &Container,
    (how, why): (StopHow, StopReason),
    ended_hooks: &UnboundedSender<String>,
) -> Outcome {
    let signal = match how {
        StopHow::Ask { .. } => container.stop_signal,
        StopHow::Kill => libc::SIGKILL,
    };
    if matches!(how, StopHow::Ask { .. }) && !holder::is_one(&container.name) {
        let name = &container.name;
        let text = match why {
            StopReason::PodEnds => format!("Stopping container {name}"),
            StopReason::Changed => {
                format!("Container {name} definition changed, will be restarted")
            }
            StopReason::Resized => format!("Container {name} resize requires restart"),
            StopReason::Unhealthy { question, restarts } => {
                let then = if restarts { ", will be restarted" } else { "" };
                format!("Container {name} failed {} probe{then}", question.name())
            }
            StopReason::Deadline => format!(
                "Stopping container {name}: pod was active longer than activeDeadlineSeconds"
            ),
        };
        shared
            .events
            .send(pod, Some(name), Kind::Normal, "Killing", text);
    }
    if why == StopReason::Resized {
        // However it ends, it runs again.
        let note = resize::stopped(container);
        if let Err(error) = shared.runtime.note(&container.id, &note).await {
            return error.into();
        }
    }
    let stopping = |hook| Outcome::Stopping {
        id: container.id.clone(),
        how,
        why,
        hook,
    };
    if let (StopHow::Ask { kill_at }, Some(view)) = (how, view)
        && hooks::before_stop(shared, view, observed, container, kill_at, ended_hooks)
    {
        return stopping(StopHook::Runs);
    }
    match shared.runtime.signal(&container.id, signal).await {
        Ok(()) => stopping(StopHook::None),
        Err(error) => error.into(),
    }
}

/// Gives the pod's running containers what it asks for now. The pod's cgroup has enough for either state of each meanwhile.
pub(super) async fn resize(shared: &Shared, pod: &PodView, observed: &Observed) -> Outcome {
    let (mut given, mut after) = (Vec::new(), observed.clone());
    let paths = &shared.settings.paths;
    let give = async {
        let limited =
            sandbox::limit_to(&shared.settings, resize::while_changing(pod, observed)).await;
        limited.map_err(|error| error.to_string())?;
        for (spec, container) in resize::to_update(pod, observed) {
            let resources = resources::of_container(pod, spec);
            let cgroup = paths.cgroup(&pod.id.uid, pod.qos()).join(&container.id);
            fits(paths, &cgroup, &resources)?;
            let note = resize::note(spec);
            let updated = shared.runtime.update(&container.id, &resources).await;
            updated.map_err(|error| error.to_string())?;
            let noted = shared.runtime.note(&container.id, &note).await;
            noted.map_err(|error| error.to_string())?;
            let changed = Container {
                given: note.clone(),
                ..container.clone()
            };
            after.put(changed);
            given.push((container.id.clone(), note));
        }
        let limited =
            sandbox::limit_to(&shared.settings, resize::while_changing(pod, &after)).await;
        limited.map_err(|error| error.to_string())
    };
    let failed: Result<(), String> = give.await;
    let tries = observed.resize_failure.as_ref().map_or(0, |it| it.tries) + 1;
    let failure = failed.err();
    let failure = failure.map(|message| set_up_failure("Error", message, tries));
    Outcome::Resized { given, failure }
}

/// A limit below what a container holds would have the kernel kill it.
fn fits(paths: &Paths, cgroup: &Path, resources: &Resources) -> Result<(), String> {
    let Some(limit) = resources
        .memory_limit
        .and_then(|limit| u64::try_from(limit).ok())
    else {
        return Ok(());
    };
    let counters = MemoryHierarchy::find(&paths.hierarchies);
    match counters.and_then(|hierarchy| hierarchy.read(cgroup)) {
        Some(held) if held.usage > limit => Err(format!(
            "attempting to set a memory limit ({limit}) below current usage ({})",
            held.usage
        )),
        _ => Ok(()),
    }
}

/// Removes an ended container with its log and its termination message.
pub(super) async fn delete_container(
    shared: &Shared,
    pod: &PodRef,
    container: &Container,
) -> Outcome {
    let (name, attempt) = (&container.name, container.attempt);
    let log = shared.settings.paths.log(pod, name, attempt);
    let mut files = log_pipe::files(&log);
    files.push(log_pipe::socket(&log));
    files.push(
        shared
            .settings
            .paths
            .termination_log(&pod.uid, name, attempt),
    );
    // The record goes last: it is what says that the rest has to go.
    for file in files {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Outcome::Trouble(format!("cannot remove {}: {error}", file.display()));
            }
            _ => {}
        }
    }
    match shared.runtime.delete(&container.id).await {
        Ok(()) => Outcome::Deleted {
            id: container.id.clone(),
        },
        Err(error) => error.into(),
    }
}

pub(super) async fn remove_sandbox(
    shared: &Shared,
    pod: &PodRef,
    view: Option<&PodView>,
) -> Outcome {
    let paths = &shared.settings.paths;
    if let Err(error) = sandbox::release(shared.network.as_ref(), paths, pod).await {
        return Outcome::Trouble(error.to_string());
    }
    if image_volumes::may_have(view)
        && let Err(error) = shared.runtime.release_images(&pod.uid).await
    {
        return error.into();
    }
    Outcome::SandboxGone
}

/// Removes the volumes that are on the disk; those in memory have gone with the sandbox.
pub(super) async fn remove_volumes(shared: &Shared, pod: &PodRef) -> Outcome {
    let path = shared.settings.paths.volumes(&pod.uid);
    let removed = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await
    };
    match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Outcome::Trouble(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Outcome::Volumes(Volumes::Gone, Contents::Unknown),
    }
}

/// A failure to make what a container needs, often for want of an object that comes a little later.
fn set_up_failure(reason: &'static str, message: String, tries: u32) -> Failure {
    failure(reason, message, tries, backoff::set_up_delay(tries))
}

pub(super) fn failure(
    reason: &'static str,
    message: String,
    tries: u32,
    wait: jiff::SignedDuration,
) -> Failure {
    Failure {
        reason,
        message,
        tries,
        retry_at: Timestamp::now().checked_add(wait).ok(),
    }
}

/// The file for a container's termination message; writable to whoever it runs as.
fn touch(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::options().create(true).append(true).open(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}
