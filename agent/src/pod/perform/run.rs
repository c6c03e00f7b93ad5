//! Making and starting containers.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Volume};

use super::{Outcome, context, prepare_volumes, set_up_failure};
use crate::pod::config::{self, Parts};
use crate::pod::events::Kind;
use crate::pod::observed::{CREATE_ERROR, Observed, RUN_ERROR, Volumes};
use crate::pod::refusals::refusals;
use crate::pod::shared::Shared;
use crate::pod::spec::PodView;
use crate::pod::{
    env, ephemeral, holder, hosts, image_volumes, resize, sandbox, seccomp, service_env, users,
    volumes,
};
use crate::runtime::{Container, ContainerState, Exit, ExitCause, RuntimeError};

/// Makes and starts a container.
pub(in crate::pod) async fn run_container(
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
    let env = match env::resolve(&shared.client, &shared.last_env, &context, services, spec).await {
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
    let users = match users::of(paths, pod) {
        Ok(users) => users,
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
        users,
    };
    match image_volumes::mount(shared, pod, spec).await {
        Ok(()) => {}
        Err(error) if error.is_unreachable() => {
            return unreachable(shared, pod, &spec.name, CREATE_ERROR, error, tries);
        }
        Err(error) => return fail(CREATE_ERROR, error.to_string(), false),
    }
    let mut config = match config::container(parts) {
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
    if let Some(users) = &config.namespaces.users {
        let mapped = users::map(&mut config.mounts, paths, &pod.id.uid, &spec.name, users);
        if let Err(error) = mapped {
            return fail("CreateContainerConfigError", error.to_string(), false);
        }
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
    let users = match users::of(paths, pod) {
        Ok(users) => users,
        Err(error) => return fail(error.to_string()),
    };
    let made_with = (handler, users);
    let config = holder::config(pod, spec, id, (attempt, streak), made_with, paths);
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
pub(in crate::pod) async fn start_container(
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
pub(in crate::pod) async fn start_made(
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

/// The file for a container's termination message; writable to whoever it runs as.
fn touch(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::options().create(true).append(true).open(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}
