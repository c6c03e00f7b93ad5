//! Performing actions. What an action came to is told; what to do about it, the next plan decides.

pub(super) mod run;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use tokio::sync::mpsc::UnboundedSender;

use super::action::{StopHow, StopReason};
use super::backoff;
use super::env::Context;
use super::events::Kind;
use super::holder;
use super::hooks::{self, Then};
use super::image_volumes;
use super::observed::{Contents, Failure, ImageState, Observed, Sandbox, StopHook, Volumes};
use super::paths::Paths;
use super::runtime_class;
use super::sandbox;
use super::shared::Shared;
use super::spec::PodView;
use super::volumes::{self, ReadContents, VolumeError};
use super::{resize, resources};
use crate::runtime::memory::MemoryHierarchy;
use crate::runtime::{
    Container, ContainerState, Handler, PodRef, Resources, RuntimeError, log_pipe,
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
    /// What is to be done before its stop has begun, if there is something.
    PreStop {
        id: String,
        runs: bool,
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

pub(super) async fn stop_container(
    shared: &Shared,
    pod: &PodRef,
    view: Option<&PodView>,
    observed: &Observed,
    container: &Container,
    (how, why): (StopHow, StopReason),
    ended_hooks: &UnboundedSender<hooks::Ended>,
) -> Outcome {
    let signal = match how {
        StopHow::Ask { .. } => container.stop_signal,
        StopHow::Kill => libc::SIGKILL,
    };
    if matches!(how, StopHow::Ask { .. }) && !holder::is_one(&container.name) {
        let name = &container.name;
        let text = match why {
            StopReason::PodEnds | StopReason::Deadline => format!("Stopping container {name}"),
            StopReason::Changed => {
                format!("Container {name} definition changed, will be restarted")
            }
            StopReason::Resized => format!("Container {name} resize requires restart"),
            StopReason::PostStartFailed => "FailedPostStartHook".to_owned(),
            StopReason::Unhealthy { question, restarts } => {
                let then = if restarts { ", will be restarted" } else { "" };
                format!("Container {name} failed {} probe{then}", question.name())
            }
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
        && !observed.early_hooks.contains_key(&container.id)
        && hooks::before_stop(
            shared,
            view,
            observed,
            container,
            (kill_at, Then::Stop),
            ended_hooks,
        )
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
