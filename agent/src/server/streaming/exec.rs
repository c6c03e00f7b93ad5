//! A command in a container, with a client's streams.

use std::sync::Arc;

use bytes::BytesMut;

use super::copy::{Moved, quiet, sizes, to_client, to_process};
use super::remote::{Asked, Remote};
use super::status::Ending;
use super::{Channel, Incoming};
use crate::runtime::{Command, Process, Runtime, RuntimeError, Streams};

/// Runs a command to its end, and tells the client how it ended.
pub(super) async fn run(
    runtime: Arc<dyn Runtime>,
    container: String,
    args: Vec<String>,
    asked: Asked,
    mut remote: Remote,
) {
    let command = Command {
        args,
        tty: asked.tty,
        stdin: asked.stdin,
        stdout: asked.stdout,
        stderr: asked.stderr,
    };
    let ending = match runtime.start_command(&container, &command).await {
        Ok((process, streams)) => {
            let ended = serve(runtime.as_ref(), &process, streams, &mut remote).await;
            runtime.remove_command(&process).await;
            ended.map_or_else(|error| Ending::Failed(error.to_string()), Ending::Exit)
        }
        Err(error) => Ending::Failed(format!("error executing command in container: {error}")),
    };
    remote.finish(&ending).await;
}

/// Until the process has ended and all that it wrote is sent.
async fn serve(
    runtime: &dyn Runtime,
    process: &Process,
    streams: Streams,
    remote: &mut Remote,
) -> Result<i32, RuntimeError> {
    let moved = Moved::default();
    let output = |pipe, channel: &Option<Channel>| {
        let (channel, moved) = (channel.clone(), &moved);
        async move {
            if let (Some(pipe), Some(channel)) = (pipe, channel) {
                to_client(pipe, channel, moved).await;
            }
        }
    };
    let outputs = async {
        tokio::join!(
            output(streams.stdout, &remote.stdout),
            output(streams.stderr, &remote.stderr),
        );
    };
    let (stdin, resize) = (remote.stdin.take(), remote.resize.take());
    let input = async {
        if let (Some(incoming), Some(pipe)) = (stdin, streams.stdin) {
            to_process(incoming, pipe).await;
            if let Err(error) = runtime.close_stdin(process).await {
                tracing::debug!(%error, "a command's stdin stays open");
            }
        }
        std::future::pending::<()>().await;
    };
    let hang_up = async {
        remote.connection.gone.cancelled().await;
        // What a terminal tells those that run on it when its line goes. What wants to go on, may.
        if let Err(error) = runtime.signal_process(process, libc::SIGHUP).await {
            tracing::debug!(%error, "a command runs on without its client");
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(outputs);
    let mut sent = false;
    let ended = {
        let ended = runtime.wait(process);
        let resizing = follow_sizes(runtime, process, resize);
        tokio::pin!(ended, input, hang_up, resizing);
        loop {
            // Each is polled on where it was; only the end of the process ends the loop.
            tokio::select! {
                code = &mut ended => break code,
                () = &mut outputs, if !sent => sent = true,
                () = &mut input => {}
                () = &mut hang_up => {}
                () = &mut resizing => {}
            }
        }
    };
    if !sent {
        tokio::select! {
            () = &mut outputs => {}
            () = quiet(&moved) => {}
        }
    }
    ended
}

/// Passes on the sizes of the client's terminal. Does not end.
pub(super) async fn follow_sizes(
    runtime: &dyn Runtime,
    process: &Process,
    resize: Option<Incoming>,
) {
    if let Some(mut resize) = resize {
        let mut bytes = BytesMut::new();
        while let Some(data) = resize.recv().await {
            bytes.extend_from_slice(&data);
            // Only the last is the present one.
            if let Some(size) = sizes(&mut bytes).pop()
                && let Err(error) = runtime.resize(process, size).await
            {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
    }
    std::future::pending().await
}
