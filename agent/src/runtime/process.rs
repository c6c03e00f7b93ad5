//! Commands with streams, in a container: their pipes are named ones, of which containerd's shim opens the other ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use containerd_client::types::v1::Status as TaskStatus;
use oci_spec::runtime::Spec;
use prost_types::Any;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::log_pipe::named;
use super::rpc::{LOOK_PATIENCE, endless, failed, request, within};
use super::{Command, Process, RuntimeError, Stdio, Streams, TerminalSize};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A link that names the container of a command.
const OWNER: &str = "container";

/// The commands of an earlier agent: nobody waits for them any more.
pub(super) fn orphans(scratch: &Path) -> Vec<Process> {
    let entries = std::fs::read_dir(scratch).into_iter().flatten().flatten();
    let orphans = entries.filter_map(|entry| {
        let container = std::fs::read_link(entry.path().join(OWNER)).ok()?;
        Some(Process {
            container: container.to_string_lossy().into_owned(),
            exec: entry.file_name().to_string_lossy().into_owned(),
        })
    });
    orphans.collect()
}

/// The named pipes of one process, in a directory of their own.
pub(super) struct Pipes {
    directory: PathBuf,
}

impl Pipes {
    pub(super) fn new(scratch: &Path, exec: &str) -> Pipes {
        let directory = scratch.join(exec);
        Pipes { directory }
    }

    /// The path of a pipe as containerd is told it; empty for one that there is not to be.
    fn named(&self, name: &str, wanted: bool) -> String {
        let path = wanted.then(|| self.directory.join(name));
        path.map_or_else(String::new, |path| path.to_string_lossy().into_owned())
    }

    /// What containerd is told of a container's stdin, stdout and stderr, and the process that writes its log, where the
    /// shim does not start that: `uri` says how it would.
    pub(super) fn for_container(
        &self,
        stdio: Stdio,
        uri: &str,
        logger: &Path,
        log: &Path,
    ) -> io::Result<([String; 3], Option<Child>)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        if stdio.stdin {
            make(&self.stdin())?;
        }
        let uri = uri.to_owned();
        Ok(match (stdio.stdin, stdio.tty) {
            (false, false) => ([String::new(), uri.clone(), uri], None),
            (false, true) => ([String::new(), uri, String::new()], None),
            (true, true) => ([text(self.stdin()), uri, String::new()], None),
            // For what writes to a program's pipes the shim has no input.
            (true, false) => {
                let outputs = [named::STDOUT, named::STDERR].map(|name| self.directory.join(name));
                outputs.iter().try_for_each(|path| make(path))?;
                let writer = named::start(logger, log, &self.directory)?;
                let [stdout, stderr] = outputs.map(text);
                ([text(self.stdin()), stdout, stderr], Some(writer))
            }
        })
    }

    /// Notes whose command has these pipes, for an agent that finds them.
    pub(super) fn belong_to(&self, container: &str) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        symlink(container, self.directory.join(OWNER))
    }

    /// Where the output of a command goes that nobody follows.
    pub(super) fn output(&self) -> PathBuf {
        self.directory.join("output")
    }

    /// Makes that pipe and opens it for reading, in a way that it has no end.
    pub(super) fn open_output(&self) -> io::Result<pipe::Receiver> {
        make(&self.output())?;
        pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(self.output())
    }

    /// What the process reads.
    pub(super) fn stdin(&self) -> PathBuf {
        self.directory.join("stdin")
    }

    /// Opens all that there are, both ways. A shim that starts a process waits, with its container locked, until somebody has
    /// the other sides open.
    fn hold(&self) -> Vec<File> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        let pipes = entries.flatten().filter(|entry| {
            let kind = entry.file_type();
            kind.is_ok_and(|kind| kind.is_fifo())
        });
        pipes
            .filter_map(|pipe| {
                File::options()
                    .read(true)
                    .write(true)
                    .open(pipe.path())
                    .ok()
            })
            .collect()
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the pipes and opens this side of them. Nothing may be read before the process was started: until the other
    /// side is open, a pipe looks as if it had ended.
    fn open(&self, command: &Command) -> io::Result<Streams> {
        let receiver = |name: &str, wanted: bool| {
            let path = self.directory.join(name);
            let open = || {
                make(&path)?;
                pipe::OpenOptions::new().open_receiver(&path)
            };
            wanted.then(open).transpose()
        };
        let stdin = self.stdin();
        let sender = || {
            make(&stdin)?;
            open_sender(&stdin)
        };
        Ok(Streams {
            stdin: command.stdin.then(sender).transpose()?,
            stdout: receiver("stdout", command.stdout)?,
            stderr: receiver("stderr", command.has_stderr())?,
        })
    }
}

/// Makes a named pipe, unless there is one.
pub(super) fn make(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(errno) if errno != rustix::io::Errno::EXIST => Err(errno.into()),
        _ => Ok(()),
    }
}

/// Opens the writing side of a pipe, whether or not it is read yet.
pub(super) fn open_sender(path: &Path) -> io::Result<pipe::Sender> {
    pipe::OpenOptions::new().read_write(true).open_sender(path)
}

/// Starts a command in a container; `spec` is the container's own.
pub(super) async fn start(
    channel: &Channel,
    scratch: &Path,
    id: &str,
    spec: &[u8],
    command: &Command,
) -> Result<(Process, Streams), RuntimeError> {
    let args = &command.args;
    let action = || format!("run {args:?} in container {id}");
    let spec: Spec = serde_json::from_slice(spec)
        .map_err(|error| RuntimeError::Config(format!("container {id} has no spec: {error}")))?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.clone()));
    process.set_terminal(Some(command.tty));
    if command.tty {
        with_terminal(&mut process);
    }
    let value = serde_json::to_vec(&process)
        .map_err(|error| RuntimeError::Config(format!("command {args:?}: {error}")))?;

    let exec = uuid::Uuid::new_v4().simple().to_string();
    let pipes = Pipes::new(scratch, &exec);
    let streams = pipes.open(command).map_err(|error| RuntimeError::Failed {
        action: action(),
        reason: format!("its pipes: {error}"),
    })?;
    let message = ExecProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec.clone(),
        stdin: pipes.named("stdin", command.stdin),
        stdout: pipes.named("stdout", command.stdout),
        stderr: pipes.named("stderr", command.has_stderr()),
        terminal: command.tty,
        spec: Some(Any {
            type_url: PROCESS_TYPE.to_owned(),
            value,
        }),
    };
    let process = Process {
        container: id.to_owned(),
        exec: exec.clone(),
    };
    pipes.belong_to(id).map_err(|error| RuntimeError::Failed {
        action: action(),
        reason: format!("its pipes: {error}"),
    })?;
    let mut tasks = TasksClient::new(channel.clone());
    let begin = async {
        tasks.exec(request(message, None)).await?;
        let start = StartRequest {
            container_id: id.to_owned(),
            exec_id: exec,
        };
        tasks.start(request(start, None)).await
    };
    if let Err(status) = begin.await {
        remove(channel, scratch, &process).await;
        return Err(start_failure(action(), &status));
    }
    Ok((process, streams))
}

/// What runs on a terminal is told so.
pub(super) fn with_terminal(process: &mut oci_spec::runtime::Process) {
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
        process.set_env(Some(env));
    }
}

/// The error of a command that did not start: mostly one that is not there.
fn start_failure(action: String, status: &Status) -> RuntimeError {
    match failed(action, status) {
        RuntimeError::Failed { reason, .. } => RuntimeError::Start(reason),
        error => error,
    }
}

pub(super) async fn resize(
    channel: &Channel,
    process: &Process,
    size: TerminalSize,
) -> Result<(), Status> {
    let message = ResizePtyRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
        width: size.columns.into(),
        height: size.rows.into(),
    };
    let mut tasks = TasksClient::new(channel.clone());
    gone_is_fine(tasks.resize_pty(request(message, None)).await)
}

pub(super) async fn close_stdin(channel: &Channel, process: &Process) -> Result<(), Status> {
    let message = CloseIoRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
        stdin: true,
    };
    let mut tasks = TasksClient::new(channel.clone());
    gone_is_fine(tasks.close_io(request(message, None)).await)
}

pub(super) async fn signal(
    channel: &Channel,
    process: &Process,
    signal: i32,
) -> Result<(), Status> {
    let message = KillRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
        signal: signal.unsigned_abs(),
        all: false,
    };
    let mut tasks = TasksClient::new(channel.clone());
    gone_is_fine(tasks.kill(request(message, None)).await)
}

/// Kills a command and waits for its end: only what has ended can be removed.
pub(super) async fn end(
    channel: &Channel,
    scratch: &Path,
    process: &Process,
) -> Result<(), Status> {
    let _held = Pipes::new(scratch, &process.exec).hold();
    signal(channel, process, libc::SIGKILL).await?;
    let message = GetRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
    };
    let mut tasks = TasksClient::new(channel.clone());
    let found = match tasks
        .get(within(LOOK_PATIENCE, request(message, None)))
        .await
    {
        Err(status) if status.code() == Code::NotFound => return Ok(()),
        found => found?.into_inner().process,
    };
    // One whose agent was killed before it was started never ends.
    if found.is_some_and(|found| found.status() == TaskStatus::Running) {
        // Stuck in the kernel, it may not even die.
        let _ = tokio::time::timeout(LOOK_PATIENCE, wait(channel, process)).await;
    }
    Ok(())
}

pub(super) async fn wait(channel: &Channel, process: &Process) -> Result<i32, Status> {
    let message = WaitRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
    };
    let mut tasks = TasksClient::new(channel.clone());
    let reply = tasks.wait(endless(message, None)).await?.into_inner();
    Ok(i32::try_from(reply.exit_status).unwrap_or(255))
}

/// Lets go of a command that has ended, and of its pipes.
pub(super) async fn remove(channel: &Channel, scratch: &Path, process: &Process) {
    let message = DeleteProcessRequest {
        container_id: process.container.clone(),
        exec_id: process.exec.clone(),
    };
    let mut tasks = TasksClient::new(channel.clone());
    // It is gone with its container in any case.
    let _ = tasks.delete_process(request(message, None)).await;
    if let Err(error) = Pipes::new(scratch, &process.exec).remove() {
        tracing::warn!(%error, "the pipes of a command are left in {}", scratch.display());
    }
}

fn gone_is_fine<T>(reply: Result<T, Status>) -> Result<(), Status> {
    match reply {
        Err(status) if !matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
            Err(status)
        }
        _ => Ok(()),
    }
}
