//! The life of a container: made, started, reaped and deleted, with what is written down of it meanwhile.

use std::path::Path;

use containerd_client::services::v1::{
    Container as StoredContainer, CreateContainerRequest, CreateTaskRequest,
    DeleteContainerRequest, DeleteTaskRequest, ListContainersRequest, ListTasksRequest,
    StartRequest, UpdateContainerRequest, UpdateTaskRequest, container::Runtime as RuntimeOptions,
};
use containerd_client::types::v1::Status as TaskStatus;
use jiff::Timestamp;
use oci_spec::runtime::Spec;
use prost_types::{Any, FieldMask};
use tonic::Code;

use super::Containerd;
use crate::runtime::devices;
use crate::runtime::image::{ImageConfig, normalize};
use crate::runtime::log_pipe::named;
use crate::runtime::mapped_root::{self, MappedRoot};
use crate::runtime::process::Pipes;
use crate::runtime::record::{container, exit, unseen};
use crate::runtime::rpc::{failed, request, start_failure};
use crate::runtime::store::{self, SNAPSHOTTER};
use crate::runtime::{
    Container, ContainerConfig, ContainerState, Exit, Handler, Image, Resources, RuntimeError,
    Stdio, accounts, cgroup, labels, oci,
};

const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl Containerd {
    /// Writes the end into the container's labels. The first end that is written stays.
    pub(super) async fn write_exit(
        &self,
        id: &str,
        exit: &Exit,
    ) -> Result<ContainerState, RuntimeError> {
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

    pub(super) async fn delete_task(&self, id: &str) -> Result<(), RuntimeError> {
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

    pub(super) async fn create_container(
        &self,
        config: &ContainerConfig,
    ) -> Result<Container, RuntimeError> {
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
        let mut spec = spec;
        if config.security.privileged {
            devices::add(&mut spec, Path::new("/dev"))?;
        }
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
    pub(super) async fn create_empty(
        &self,
        config: &ContainerConfig,
    ) -> Result<Container, RuntimeError> {
        let (image, accounts) = (ImageConfig::default(), oci::Accounts::default());
        let spec = oci::spec(config, &image, &accounts, &self.host)?;
        let stored = StoredContainer::default();
        self.record(config, &spec, "", libc::SIGKILL, stored).await
    }

    /// Adds the rest to containerd's record of a container, and writes it, unless it is there already.
    pub(super) async fn record(
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

    pub(super) async fn update_container(
        &self,
        id: &str,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
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

    pub(super) async fn note_given(&self, id: &str, given: &str) -> Result<(), RuntimeError> {
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

    pub(super) async fn start_container(
        &self,
        id: &str,
        log: &Path,
    ) -> Result<ContainerState, RuntimeError> {
        let (rootfs, stored) = tokio::join!(store::root_mounts(&self.channel, id), self.stored(id));
        let stored = stored?;
        let is_empty = stored.as_ref().is_some_and(|it| it.snapshot_key.is_empty());
        let rootfs = match rootfs {
            Err(status) if is_empty && status.code() == Code::NotFound => Vec::new(),
            mounts => mounts
                .map_err(|status| failed(format!("find the root of container {id}"), &status))?,
        };
        let spec = stored.as_ref().and_then(|stored| stored.spec.as_ref());
        let users = spec.and_then(|spec| mapped_root::users(&spec.value));
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
        let root = MappedRoot::new(&self.scratch, id);
        let rootfs = match &users {
            None => rootfs,
            Some(users) => root.mounts(rootfs, users).map_err(|error| {
                // Nothing but another kernel, or another file system, helps.
                RuntimeError::Start(format!(
                    "cannot show the image's layers under the ids of the pod's user namespace: {error}"
                ))
            })?,
        };
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
        if users.is_some()
            && let Err(error) = root.remove()
        {
            tracing::warn!(%error, "the layers of container {id} are left mounted until it is removed");
        }
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
                Some(task) if task.status() == TaskStatus::Stopped => {
                    Ok(ContainerState::Stopped(None))
                }
                _ => {
                    self.delete_task(id).await?;
                    Err(start_failure(id, &status))
                }
            },
        }
    }

    pub(super) fn was_out_of_memory(&self, cgroup: &str) -> bool {
        cgroup::out_of_memory(&self.hierarchies, Path::new(cgroup))
    }

    pub(super) async fn reap_container(&self, id: &str) -> Result<ContainerState, RuntimeError> {
        let Some(stored) = self.stored(id).await? else {
            return Ok(ContainerState::Exited(unseen()));
        };
        let identity = labels::read(&stored.labels);
        if let Some(exit) = identity.as_ref().and_then(|identity| identity.exit.clone()) {
            self.delete_task(id).await?;
            return Ok(ContainerState::Exited(exit));
        }
        let ended = match self.task(id).await? {
            None => unseen(),
            Some(task) if task.status() == TaskStatus::Stopped => {
                let cgroup = identity.map(|identity| identity.cgroup).unwrap_or_default();
                exit(&task, self.was_out_of_memory(&cgroup))
            }
            Some(task) => return Ok(ContainerState::Running { pid: task.pid }),
        };
        let state = self.write_exit(id, &ended).await?;
        self.delete_task(id).await?;
        Ok(state)
    }

    pub(super) async fn list_containers(&self) -> Result<Vec<Container>, RuntimeError> {
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
            let oom = |cgroup: &str| self.was_out_of_memory(cgroup);
            let Some(container) = container(&stored, task, &self.host.boot_id, oom) else {
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

    pub(super) async fn delete_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.delete_task(id).await?;
        // The record goes last: it is what says that the rest has to go.
        store::remove_snapshot(&self.channel, id)
            .await
            .map_err(|status| failed(format!("remove the root of container {id}"), &status))?;
        MappedRoot::new(&self.scratch, id)
            .remove()
            .map_err(|error| RuntimeError::Failed {
                action: format!("take away the layers of container {id}"),
                reason: error.to_string(),
            })?;
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

/// Sets one label of a container, and leaves the others.
pub(super) fn with_label(id: &str, (key, value): (&str, &str)) -> UpdateContainerRequest {
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
