//! The [`Runtime`] over containerd's native API, in the namespace that its CRI half uses too.

mod containers;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{
    Container as StoredContainer, GetContainerRequest, GetRequest, KillRequest,
};
use containerd_client::types::v1::Process as Task;
use futures::future::join_all;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request};

use self::containers::with_label;
use super::host::Host;
use super::image::normalize;
use super::log_pipe::named;
use super::manifests::Manifests;
use super::process::Pipes;
use super::record::container;
use super::rpc::{LOOK_PATIENCE, connect, failed, percent_encode, request, within};
use super::{
    Attached, Command, Container, ContainerConfig, ContainerState, DiskUsage, ExecResult, Exit,
    Handler, Image, ImageSummary, ImageVolume, Output, Process, RegistryLogin, Resources, Runtime,
    RuntimeError, RuntimeEvent, Streams, TerminalSize, accounts, cgroup, events, exec, handlers,
    image_volumes, images, import, labels, process, pull,
};

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
        let oom = |cgroup: &str| self.was_out_of_memory(cgroup);
        let found = container(&stored, task.as_ref(), &self.host.boot_id, oom);
        Ok(found.map(|found| found.state))
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
