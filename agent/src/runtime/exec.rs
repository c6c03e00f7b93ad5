//! Running a command in a container.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use oci_spec::runtime::Spec;
use prost_types::Any;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tonic::Status;
use tonic::transport::Channel;

use super::process::Pipes;
use super::rpc::{failed, request, within};
use super::{ExecResult, RuntimeError};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// How long a command may take to end after it was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The most output that is kept of a command run in a container.
const EXEC_OUTPUT_LIMIT: usize = 10 << 10;

/// Runs a command in a container and waits for its end, at most for `timeout`. `spec` is the container's own;
/// the output passes through a pipe in `scratch`.
pub(super) async fn run(
    channel: &Channel,
    scratch: &Path,
    id: &str,
    spec: &[u8],
    command: &[String],
    timeout: Duration,
) -> Result<ExecResult, RuntimeError> {
    let fail = |status: &Status| failed(format!("run {command:?} in container {id}"), status);
    let spec: Spec = serde_json::from_slice(spec)
        .map_err(|error| RuntimeError::Config(format!("container {id} has no spec: {error}")))?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(command.to_vec()));
    let value = serde_json::to_vec(&process)
        .map_err(|error| RuntimeError::Config(format!("command {command:?}: {error}")))?;

    let exec_id = uuid::Uuid::new_v4().simple().to_string();
    let files = Pipes::new(scratch, &exec_id);
    // An agent that finds them ends the command, which may have been a probe or a hook of one that was killed.
    files.belong_to(id).map_err(|error| RuntimeError::Failed {
        action: format!("run {command:?} in container {id}"),
        reason: format!("a directory for its output: {error}"),
    })?;
    let mut output = files.open_output().map_err(|error| RuntimeError::Failed {
        action: format!("run {command:?} in container {id}"),
        reason: format!("the pipe of its output: {error}"),
    })?;
    let path = files.output().to_string_lossy().into_owned();
    let mut tasks = TasksClient::new(channel.clone());
    let work = async {
        let named = || (id.to_owned(), exec_id.clone());
        let run = async {
            let (container_id, exec) = named();
            let message = ExecProcessRequest {
                container_id,
                exec_id: exec,
                stdout: path.clone(),
                stderr: path,
                spec: Some(Any {
                    type_url: PROCESS_TYPE.to_owned(),
                    value,
                }),
                ..ExecProcessRequest::default()
            };
            tasks.exec(request(message, None)).await?;
            let (container_id, exec) = named();
            let start = StartRequest {
                container_id,
                exec_id: exec,
            };
            tasks.start(request(start, None)).await?;
            let (container_id, exec) = named();
            let wait = WaitRequest {
                container_id,
                exec_id: exec,
            };
            // A little longer than the caller waits, who is to be the one that gives up.
            let patience = timeout + KILL_PATIENCE;
            tasks.wait(within(patience, request(wait, None))).await
        };
        let ended = tokio::time::timeout(timeout, run).await;
        if ended.is_err() {
            let kill = KillRequest {
                container_id: id.to_owned(),
                exec_id: exec_id.clone(),
                signal: libc::SIGKILL as u32,
                all: false,
            };
            let _ = tasks.kill(request(kill, None)).await;
            let wait = WaitRequest {
                container_id: id.to_owned(),
                exec_id: exec_id.clone(),
            };
            // Stuck in the kernel, it may not even die.
            let wait = within(KILL_PATIENCE, request(wait, None));
            let _ = tasks.wait(wait).await;
        }
        let delete = DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.clone(),
        };
        // It is gone with its container in any case.
        let _ = tasks.delete_process(request(delete, None)).await;
        ended
    };
    let (ended, text) = heard(&mut output, work).await;
    if let Err(error) = files.remove() {
        tracing::warn!(%error, "the output of a command is left in {}", scratch.display());
    }
    match ended {
        Ok(Ok(reply)) => Ok(ExecResult {
            code: i32::try_from(reply.into_inner().exit_status).unwrap_or(255),
            output: String::from_utf8_lossy(&text).into_owned(),
        }),
        Ok(Err(status)) => Err(fail(&status)),
        Err(_) => Err(RuntimeError::ExecTimeout {
            command: command.to_vec(),
            timeout,
        }),
    }
}

/// The first bytes that come through the pipe until `work` is done, and what came of that. The rest is read, so that the
/// command can go on, and dropped.
async fn heard<T>(output: &mut pipe::Receiver, work: impl Future<Output = T>) -> (T, Vec<u8>) {
    let (mut kept, mut chunk) = (Vec::new(), vec![0; 4096]);
    let mut keep = |chunk: &[u8]| {
        let room = EXEC_OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        kept.len() < EXEC_OUTPUT_LIMIT
    };
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            // Cancel-safe: what is not read now stays in the pipe. It never ends, as this side holds it open.
            Ok(count) = output.read(&mut chunk) => {
                keep(&chunk[..count]);
            }
        }
    };
    // What it left behind may write on for ever.
    while let Ok(count @ 1..) = output.try_read(&mut chunk)
        && keep(&chunk[..count])
    {}
    (done, kept)
}
