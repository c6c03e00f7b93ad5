//! The [`Runtime`] over containerd's native API, in the namespace that its CRI half uses too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{
    Container as StoredContainer, CreateContainerRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest,
    ListContainersRequest, ListTasksRequest, StartRequest, UpdateContainerRequest,
    UpdateTaskRequest, container::Runtime as RuntimeOptions,
};
use containerd_client::types::v1::{Process as Task, Status as TaskStatus};
use futures::future::join_all;
use jiff::Timestamp;
use oci_spec::runtime::Spec;
use prost_types::{Any, FieldMask};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::host::Host;
use super::image::{ImageConfig, normalize};
use super::log_pipe::named;
use super::manifests::Manifests;
use super::process::Pipes;
use super::record::{container, timestamp, unseen};
use super::rpc::{LOOK_PATIENCE, connect, failed, percent_encode, request, start_failure, within};
use super::store::{self, SNAPSHOTTER};
use super::{
    Attached, Command, Container, ContainerConfig, ContainerState, DiskUsage, ExecResult, Exit,
    ExitCause, Handler, Image, ImageSummary, ImageVolume, Output, Process, RegistryLogin,
    Resources, Runtime, RuntimeError, RuntimeEvent, Stdio, Streams, TerminalSize, accounts, cgroup,
    events, exec, handlers, image_volumes, images, import, labels, oci, process, pull,
};

const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// containerd at a socket.
pub struct Containerd {
    socket: PathBuf,
    channel: Channel,
    host: Host,
    /// The program whose `log-pipe` command writes containers' logs.
    logger: PathBuf,
    /// Directory for the output of commands run in containers.
    scratch: PathBuf,
    hierarchies: Vec<cgroup::Hierarchy>,
    manifests: Manifests,
    accounts: accounts::Known,
}

impl Containerd {
    /// Uses the containerd at `socket`.
    pub fn new(socket: &Path, host: Host, logger: &Path, scratch: &Path) -> Containerd {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Containerd {
            socket: socket.to_owned(),
            channel: connect(socket),
            manifests: Manifests::new(host.architecture),
            accounts: accounts::Known::default(),
            host,
            logger: logger.to_owned(),
            scratch: scratch.to_owned(),
            hierarchies: cgroup::hierarchies(&mounts),
        }
    }

    /// Ends the commands that an earlier agent ran, for clients, probes or hooks: nobody waits for them.
    /// Which those are is known at the call. To end them may take minutes, and other work may go on meanwhile.
    pub fn end_orphans(&self) -> impl Future<Output = ()> + use<> {
        let (channel, scratch) = (self.channel.clone(), self.scratch.clone());
        let orphans = process::orphans(&scratch);
        async move {
            let ends = orphans.iter().map(async |process| {
                if let Err(status) = process::end(&channel, &scratch, process).await {
                    let container = &process.container;
                    tracing::warn!(%status, "a command is left in container {container}");
                }
                process::remove(&channel, &scratch, process).await;
            });
            join_all(ends).await;
        }
    }

    /// Has the logs written on whose writers have ended with an earlier agent.
    pub fn resume_logs(&self) {
        named::resume(&self.logger, &self.scratch);
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    /// Puts the socket's path into the error when containerd does not answer.
    fn located<T>(&self, result: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        result.map_err(|error| match error {
            RuntimeError::Unreachable { reason, .. } => RuntimeError::Unreachable {
                socket: self.socket.clone(),
                reason,
            },
            other => other,
        })
    }

    async fn stored(&self, id: &str) -> Result<Option<StoredContainer>, RuntimeError> {
        let message = GetContainerRequest { id: id.to_owned() };
        let message = within(LOOK_PATIENCE, request(message, None));
        match self.containers().get(message).await {
            Ok(reply) => Ok(reply.into_inner().container),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(format!("look up container {id}"), &status)),
        }
    }

    async fn task(&self, id: &str) -> Result<Option<Task>, RuntimeError> {
        let message = GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let message = within(LOOK_PATIENCE, request(message, None));
        match self.tasks().get(message).await {
            Ok(reply) => Ok(reply.into_inner().process),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(
                format!("look up the task of container {id}"),
                &status,
            )),
        }
    }

    /// Writes the end into the container's labels. The first end that is written stays.
    async fn write_exit(&self, id: &str, exit: &Exit) -> Result<ContainerState, RuntimeError> {
        let Some(mut stored) = self.stored(id).await? else {
            return Ok(ContainerState::Exited(exit.clone()));
        };
        if let Some(known) = labels::read(&stored.labels).and_then(|identity| identity.exit) {
            return Ok(ContainerState::Exited(known));
        }
        labels::write_exit(&mut stored.labels, exit);
        let message = UpdateContainerRequest {
            container: Some(StoredContainer {
                id: id.to_owned(),
                labels: stored.labels,
                ..StoredContainer::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["labels".to_owned()],
            }),
        };
        self.containers()
            .update(request(message, None))
            .await
            .map_err(|status| failed(format!("write down how container {id} ended"), &status))?;
        Ok(ContainerState::Exited(exit.clone()))
    }

    async fn delete_task(&self, id: &str) -> Result<(), RuntimeError> {
        let message = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        match self.tasks().delete(request(message, None)).await {
            Err(status) if status.code() != Code::NotFound => Err(failed(
                format!("remove the task of container {id}"),
                &status,
            )),
            _ => Ok(()),
        }
    }

    /// Where the container's log writer is told to write; containerd hands the query's key and value to it as arguments.
    fn log_uri(&self, log: &Path) -> String {
        format!(
            "binary://{}?log-pipe={}",
            percent_encode(&self.logger.to_string_lossy()),
            percent_encode(&log.to_string_lossy())
        )
    }

    async fn attach_to(&self, id: &str, log: &Path) -> Result<Attached, RuntimeError> {
        let Some(stored) = self.stored(id).await? else {
            return Err(RuntimeError::Failed {
                action: format!("attach to container {id}"),
                reason: "there is no such container".into(),
            });
        };
        let stdio = labels::stdio(&stored.labels);
        let open = async {
            let pipes = Pipes::new(&self.scratch, id);
            let stdin = stdio.stdin.then(|| process::open_sender(&pipes.stdin()));
            Ok::<_, std::io::Error>((Output::follow(log).await?, stdin.transpose()?))
        };
        let (output, stdin) = open.await.map_err(|error| RuntimeError::Failed {
            action: format!("attach to container {id}"),
            reason: format!("nobody passes its output on ({error}): it has just ended, or was started by an agent that could not do that yet"),
        })?;
        Ok(Attached {
            output,
            stdin,
            stdio,
        })
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<Container, RuntimeError> {
        let Some(reference) = &config.image else {
            return self.create_empty(config).await;
        };
        let name = normalize(reference)?;
        let Some((digest, manifest)) = self.manifests.of(&self.channel, &name).await? else {
            return Err(RuntimeError::Failed {
                action: format!("create container {}", config.name),
                reason: format!("image {name} is not present"),
            });
        };
        let image = Image {
            name: name.clone(),
            digest,
            config: manifest.config.clone(),
        };
        let parent = manifest.config.chain_id();
        let spec_of =
            |accounts: &oci::Accounts| oci::spec(config, &manifest.config, accounts, &self.host);
        let spec = if oci::needs_accounts(&config.security, &manifest.config) {
            let read = async {
                let (channel, id) = (&self.channel, &config.id);
                let mounts = store::make_root(channel, id, &parent, &manifest).await?;
                let read = tokio::task::spawn_blocking(move || accounts::read(&mounts));
                read.await.map_err(|error| RuntimeError::Failed {
                    action: format!("read the accounts of image {name}"),
                    reason: error.to_string(),
                })?
            };
            spec_of(&*self.accounts.of(&parent, read).await?)?
        } else {
            spec_of(&oci::Accounts::default())?
        };
        let stored = StoredContainer {
            image: name,
            snapshotter: SNAPSHOTTER.to_owned(),
            // From here on the garbage collector keeps the snapshot, even before it is there.
            snapshot_key: config.id.clone(),
            ..StoredContainer::default()
        };
        let stop_signal = oci::stop_signal(config, &manifest.config)?;
        let image_id = image.id();
        let made = self.record(config, &spec, &image_id, stop_signal, stored);
        let made = made.await?;
        store::make_root(&self.channel, &config.id, &parent, &manifest).await?;
        Ok(made)
    }

    /// Makes a container without an image. Its root is the empty directory that the shim makes for each. What it runs may
    /// have no handler for any other signal, so that it is killed when it is to stop.
    async fn create_empty(&self, config: &ContainerConfig) -> Result<Container, RuntimeError> {
        let (image, accounts) = (ImageConfig::default(), oci::Accounts::default());
        let spec = oci::spec(config, &image, &accounts, &self.host)?;
        let stored = StoredContainer::default();
        self.record(config, &spec, "", libc::SIGKILL, stored).await
    }

    /// Adds the rest to containerd's record of a container, and writes it, unless it is there already.
    async fn record(
        &self,
        config: &ContainerConfig,
        spec: &Spec,
        image_id: &str,
        stop_signal: i32,
        stored: StoredContainer,
    ) -> Result<Container, RuntimeError> {
        let user = oci::user_of(spec);
        let stored = StoredContainer {
            id: config.id.clone(),
            labels: labels::write(config, image_id, stop_signal, &user, &self.host.boot_id),
            runtime: Some(runtime(config.handler.as_ref())),
            spec: Some(any_spec(spec)?),
            ..stored
        };
        let message = CreateContainerRequest {
            container: Some(stored),
        };
        match self.containers().create(request(message, None)).await {
            Err(status) if status.code() != Code::AlreadyExists => {
                return Err(failed(format!("create container {}", config.name), &status));
            }
            _ => {}
        }
        Ok(Container {
            id: config.id.clone(),
            pod: config.pod.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            streak: config.streak,
            spec_hash: config.spec_hash.clone(),
            image: config.image.clone().unwrap_or_default(),
            image_id: image_id.to_owned(),
            given: config.given.clone(),
            stop_signal,
            user: Some(user),
            created_at: Timestamp::now(),
            earlier_boot: false,
            hook_due: config.hook_due,
            state: ContainerState::Created,
        })
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        let invalid = |error: &dyn std::error::Error| {
            RuntimeError::Config(format!("no valid resources: {error}"))
        };
        let limits = oci::limits(resources).map_err(|error| invalid(&error))?;
        let message = UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(Any {
                type_url: RESOURCES_TYPE.to_owned(),
                value: serde_json::to_vec(&limits).map_err(|error| invalid(&error))?,
            }),
            ..UpdateTaskRequest::default()
        };
        let updated = self.tasks().update(request(message, None)).await;
        let what = || format!("give container {id} other limits");
        updated
            .map_err(|status| failed(what(), &status))
            .map(|_| ())
    }

    async fn note_given(&self, id: &str, given: &str) -> Result<(), RuntimeError> {
        let message = UpdateContainerRequest {
            container: Some(StoredContainer {
                id: id.to_owned(),
                labels: [(labels::GIVEN.to_owned(), given.to_owned())].into(),
                ..StoredContainer::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec![format!("labels.{}", labels::GIVEN)],
            }),
        };
        let noted = self.containers().update(request(message, None)).await;
        let what = || format!("write down what container {id} was given");
        noted.map_err(|status| failed(what(), &status)).map(|_| ())
    }

    /// Writes down that the container was started: should its task be lost, it is not taken for one that never ran. Nobody
    /// waits for it: an agent that is killed before leaves it to the next one.
    fn note_start(&self, id: &str) {
        let message = with_label(id, labels::STARTED);
        let (id, mut containers) = (id.to_owned(), self.containers());
        tokio::spawn(async move {
            match containers.update(request(message, None)).await {
                Err(status) if status.code() != Code::NotFound => {
                    let what = format!("write down that container {id} was started");
                    let error = failed(what, &status);
                    tracing::warn!(%error, "should its shim die, it will be started again");
                }
                _ => {}
            }
        });
    }

    async fn start_container(&self, id: &str, log: &Path) -> Result<ContainerState, RuntimeError> {
        let (rootfs, stored) = tokio::join!(store::root_mounts(&self.channel, id), self.stored(id));
        let stored = stored?;
        let is_empty = stored.as_ref().is_some_and(|it| it.snapshot_key.is_empty());
        let rootfs = match rootfs {
            Err(status) if is_empty && status.code() == Code::NotFound => Vec::new(),
            mounts => mounts
                .map_err(|status| failed(format!("find the root of container {id}"), &status))?,
        };
        let stdio = stored.map_or_else(Stdio::default, |stored| labels::stdio(&stored.labels));
        let pipes = Pipes::new(&self.scratch, id);
        let (names, writer) = match is_empty {
            true => Default::default(),
            false => pipes
                .for_container(stdio, &self.log_uri(log), &self.logger, log)
                .map_err(|error| RuntimeError::Failed {
                    action: format!("make the pipes of container {id}"),
                    reason: error.to_string(),
                })?,
        };
        let [stdin, stdout, stderr] = names;
        let message = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin,
            stdout,
            stderr,
            terminal: stdio.tty,
            ..CreateTaskRequest::default()
        };
        let created = self.tasks().create(request(message, None)).await;
        if let Some(mut writer) = writer {
            if created.is_err() {
                // It waits for a container that will not come; or there is one already, with a writer of its own.
                let _ = writer.start_kill();
            }
            named::reap(writer);
        }
        match created {
            Err(status) if status.code() != Code::AlreadyExists => {
                return Err(start_failure(id, &status));
            }
            _ => {}
        }
        let message = StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        match self.tasks().start(request(message, None)).await {
            Ok(reply) => {
                self.note_start(id);
                Ok(ContainerState::Running {
                    pid: reply.into_inner().pid,
                })
            }
            // It may run already, because an agent before us started it.
            Err(status) => match self.task(id).await? {
                Some(task) if task.status() == TaskStatus::Running => {
                    self.note_start(id);
                    Ok(ContainerState::Running { pid: task.pid })
                }
                Some(task) if task.status() == TaskStatus::Stopped => Ok(ContainerState::Stopped),
                _ => {
                    self.delete_task(id).await?;
                    Err(start_failure(id, &status))
                }
            },
        }
    }

    async fn reap_container(&self, id: &str) -> Result<ContainerState, RuntimeError> {
        let Some(stored) = self.stored(id).await? else {
            return Ok(ContainerState::Exited(unseen()));
        };
        let identity = labels::read(&stored.labels);
        if let Some(exit) = identity.as_ref().and_then(|identity| identity.exit.clone()) {
            self.delete_task(id).await?;
            return Ok(ContainerState::Exited(exit));
        }
        let exit = match self.task(id).await? {
            None => unseen(),
            Some(task) if task.status() == TaskStatus::Stopped => {
                let cgroup = identity.map(|identity| identity.cgroup).unwrap_or_default();
                // The counters are there until the task is removed.
                let oom = cgroup::out_of_memory(&self.hierarchies, Path::new(&cgroup));
                Exit {
                    code: i32::try_from(task.exit_status).unwrap_or(255),
                    at: task.exited_at.map_or_else(Timestamp::now, timestamp),
                    cause: if oom && task.exit_status != 0 {
                        ExitCause::OutOfMemory
                    } else {
                        ExitCause::Process
                    },
                    message: String::new(),
                }
            }
            Some(task) => return Ok(ContainerState::Running { pid: task.pid }),
        };
        let state = self.write_exit(id, &exit).await?;
        self.delete_task(id).await?;
        Ok(state)
    }

    async fn list_containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let message = ListContainersRequest {
            filters: vec![labels::FILTER.to_owned()],
        };
        let (mut containers, mut tasks) = (self.containers(), self.tasks());
        let (stored, tasks) = tokio::join!(
            containers.list(request(message, None)),
            tasks.list(request(ListTasksRequest::default(), None)),
        );
        let stored = stored.map_err(|status| failed("list containers", &status))?;
        let tasks = tasks
            .map_err(|status| failed("list tasks", &status))?
            .into_inner()
            .tasks;
        let mut found = Vec::new();
        for stored in stored.into_inner().containers {
            let task = tasks.iter().find(|task| task.id == stored.id);
            let Some(container) = container(&stored, task, &self.host.boot_id) else {
                continue;
            };
            let runs = matches!(container.state, ContainerState::Running { .. });
            if runs && !labels::is_started(&stored.labels) {
                // An earlier agent was killed in the middle of the start.
                self.note_start(&container.id);
            }
            found.push(container);
        }
        Ok(found)
    }

    async fn delete_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.delete_task(id).await?;
        // The record goes last: it is what says that the rest has to go.
        store::remove_snapshot(&self.channel, id)
            .await
            .map_err(|status| failed(format!("remove the root of container {id}"), &status))?;
        let message = DeleteContainerRequest { id: id.to_owned() };
        if let Err(error) = Pipes::new(&self.scratch, id).remove() {
            tracing::warn!(%error, "the input of container {id} is left");
        }
        match self.containers().delete(request(message, None)).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(failed(format!("delete container {id}"), &status))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn version(&self) -> Result<String, RuntimeError> {
        let reply = VersionClient::new(self.channel.clone())
            .version(within(LOOK_PATIENCE, Request::new(())))
            .await
            .map_err(|status| failed("ask for the version", &status));
        let version = self.located(reply)?.into_inner().version;
        // Debian's packages add a suffix after ~.
        let version = version.split('~').next().unwrap_or(&version);
        Ok(format!("containerd://{}", version.trim_start_matches('v')))
    }

    async fn handlers(&self) -> Result<Vec<Handler>, RuntimeError> {
        self.located(handlers::list(&self.channel).await)
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let name = normalize(reference)?;
        let found = self.located(self.manifests.of(&self.channel, &name).await)?;
        Ok(found.map(|(digest, manifest)| Image {
            name,
            digest,
            config: manifest.config,
        }))
    }

    async fn pull(
        &self,
        reference: &str,
        login: Option<&RegistryLogin>,
    ) -> Result<Image, RuntimeError> {
        let name = normalize(reference)?;
        self.located(pull::pull(&self.channel, &name, reference, login).await)?;
        self.image(&name).await?.ok_or_else(|| RuntimeError::Pull {
            image: reference.to_owned(),
            reason: "it was pulled, and is not there".into(),
        })
    }

    async fn import(&self, archive: &Path) -> Result<Vec<String>, RuntimeError> {
        self.located(import::import(&self.channel, archive, self.host.architecture).await)
    }

    async fn images(&self) -> Result<Vec<ImageSummary>, RuntimeError> {
        let (stored, used) =
            tokio::join!(images::stored(&self.channel), images::used(&self.channel));
        let (stored, used) = (self.located(stored)?, self.located(used)?);
        let mut found = images::by_digest(stored, &used);
        for (image, target) in &mut found {
            let name = image.names.first().cloned().unwrap_or_default();
            match self.manifests.behind(&self.channel, &name, target).await {
                Ok(manifest) => image.size_bytes = manifest.size_bytes,
                // Of another architecture, or not all there: it can be listed, and removed, nevertheless.
                Err(error) => tracing::debug!(%error, name, "the size of an image is not known"),
            }
        }
        Ok(found.into_iter().map(|(image, _)| image).collect())
    }

    async fn remove_image(&self, digest: &str) -> Result<(), RuntimeError> {
        self.located(images::remove(&self.channel, digest).await)
    }

    async fn image_layers(
        &self,
        reference: &str,
        volume: &ImageVolume,
    ) -> Result<Vec<PathBuf>, RuntimeError> {
        let name = normalize(reference)?;
        let found = self.located(self.manifests.of(&self.channel, &name).await)?;
        let Some((digest, manifest)) = found else {
            return Err(RuntimeError::Failed {
                action: format!("prepare volume {}", volume.name),
                reason: format!("image {name} is not present"),
            });
        };
        let layers = image_volumes::layers(&self.channel, volume, &digest, &manifest);
        self.located(layers.await)
    }

    async fn release_images(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        self.located(image_volumes::release(&self.channel, pod_uid).await)
    }

    async fn image_holders(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let listed = self.located(image_volumes::list(&self.channel).await)?;
        Ok(listed.into_keys().collect())
    }

    async fn image_directory(&self) -> Result<Option<PathBuf>, RuntimeError> {
        self.located(images::directory(&self.channel).await)
    }

    async fn written(&self, id: &str) -> Result<Option<DiskUsage>, RuntimeError> {
        self.located(images::written(&self.channel, id).await)
    }

    async fn create(&self, config: &ContainerConfig) -> Result<Container, RuntimeError> {
        self.located(self.create_container(config).await)
    }

    async fn start(&self, id: &str, log: &Path) -> Result<ContainerState, RuntimeError> {
        self.located(self.start_container(id, log).await)
    }

    async fn state(&self, id: &str) -> Result<Option<ContainerState>, RuntimeError> {
        let Some(stored) = self.located(self.stored(id).await)? else {
            return Ok(None);
        };
        let task = self.located(self.task(id).await)?;
        Ok(container(&stored, task.as_ref(), &self.host.boot_id).map(|found| found.state))
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let message = KillRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal: signal.unsigned_abs(),
            all: false,
        };
        match self.tasks().kill(request(message, None)).await {
            // Both say that the process is gone.
            Err(status) if !matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                self.located(Err(failed(
                    format!("send signal {signal} to container {id}"),
                    &status,
                )))
            }
            _ => Ok(()),
        }
    }

    async fn note_hook(&self, id: &str) -> Result<(), RuntimeError> {
        let message = with_label(id, labels::HOOK_DONE);
        match self.containers().update(request(message, None)).await {
            Err(status) if status.code() != Code::NotFound => {
                let what = format!("write down that the postStart hook of container {id} is done");
                self.located(Err(failed(what, &status)))
            }
            _ => Ok(()),
        }
    }

    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        self.located(self.update_container(id, resources).await)
    }

    async fn note(&self, id: &str, given: &str) -> Result<(), RuntimeError> {
        self.located(self.note_given(id, given).await)
    }

    async fn reap(&self, id: &str) -> Result<ContainerState, RuntimeError> {
        self.located(self.reap_container(id).await)
    }

    async fn record_failure(&self, id: &str, exit: &Exit) -> Result<ContainerState, RuntimeError> {
        self.located(self.write_exit(id, exit).await)
    }

    async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        self.located(self.delete_container(id).await)
    }

    async fn list(&self) -> Result<Vec<Container>, RuntimeError> {
        self.located(self.list_containers().await)
    }

    async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        let stored = self.located(self.stored(id).await)?;
        let spec = stored.and_then(|stored| stored.spec).unwrap_or_default();
        let ran = exec::run(
            &self.channel,
            &self.scratch,
            id,
            &spec.value,
            command,
            timeout,
        );
        self.located(ran.await)
    }

    async fn start_command(
        &self,
        id: &str,
        command: &Command,
    ) -> Result<(Process, Streams), RuntimeError> {
        let stored = self.located(self.stored(id).await)?;
        let spec = stored.and_then(|stored| stored.spec).unwrap_or_default();
        let started = process::start(&self.channel, &self.scratch, id, &spec.value, command);
        self.located(started.await)
    }

    async fn resize(&self, process: &Process, size: TerminalSize) -> Result<(), RuntimeError> {
        let resized = process::resize(&self.channel, process, size).await;
        self.located(resized.map_err(|status| failed("resize a terminal", &status)))
    }

    async fn close_stdin(&self, process: &Process) -> Result<(), RuntimeError> {
        let closed = process::close_stdin(&self.channel, process).await;
        self.located(closed.map_err(|status| failed("close a process's stdin", &status)))
    }

    async fn signal_process(&self, process: &Process, signal: i32) -> Result<(), RuntimeError> {
        let sent = process::signal(&self.channel, process, signal).await;
        self.located(sent.map_err(|status| failed("send a signal to a command", &status)))
    }

    async fn wait(&self, process: &Process) -> Result<i32, RuntimeError> {
        let ended = process::wait(&self.channel, process).await;
        self.located(ended.map_err(|status| failed("wait for a process", &status)))
    }

    async fn attach(&self, id: &str, log: &Path) -> Result<Attached, RuntimeError> {
        self.located(self.attach_to(id, log).await)
    }

    async fn remove_command(&self, process: &Process) {
        process::remove(&self.channel, &self.scratch, process).await;
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(events::forward(self.channel.clone(), sender));
        receiver
    }
}

/// Sets one label of a container, and leaves the others.
fn with_label(id: &str, (key, value): (&str, &str)) -> UpdateContainerRequest {
    UpdateContainerRequest {
        container: Some(StoredContainer {
            id: id.to_owned(),
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..StoredContainer::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec![format!("labels.{key}")],
        }),
    }
}

/// What runs a container.
fn runtime(handler: Option<&Handler>) -> RuntimeOptions {
    RuntimeOptions {
        name: handler
            .map_or(Handler::ONE_BY_ONE, |it| &it.kind)
            .to_owned(),
        options: handler.and_then(Handler::options),
    }
}

fn any_spec(spec: &Spec) -> Result<Any, RuntimeError> {
    let value = serde_json::to_vec(spec)
        .map_err(|error| RuntimeError::Config(format!("no valid OCI spec: {error}")))?;
    Ok(Any {
        type_url: SPEC_TYPE.to_owned(),
        value,
    })
}
